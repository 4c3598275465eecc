"""Which method, when the last stage of the network learns, too: heads on EfficientNet-Lite0.

    python benchmarks/finetuning.py --cache ~/features      # runs what is not there yet
    python benchmarks/finetuning.py --report                # writes the tables into the pages
    python benchmarks/finetuning.py --quick                 # digits, two rows

The network and the rows of `benchmarks/methods.py`, with their projection and their hidden layer;
but the last stage and the head's convolution train with them, from what they know of ImageNet. The
value and the penalty of a row are those that it chose on frozen features. What is tuned here, for
all rows alike, is the learning rate, and then whether a third of the steps is enough: four trials
with seed 0, of which that of the lowest NLL on the validation rows is kept. Three seeds. "Dense,
frozen" is the network of `benchmarks/methods.py`, with its own number of steps.
"""

import argparse
import collections
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import methods
import numpy as np
import tensorflow as tf
from evidence import answers, cells, finetuned, images, measures, pages, rows, tasks
from evidence.features import Features, pixels, trunk
from evidence.watch import Watch
from keras.ops import convert_to_numpy

SEEDS, QUICK, FROZEN = 3, ["Dense", "temperature scaling"], "Dense, frozen"
ROWS = ["Dense", "temperature scaling", "MC dropout", "VBLL", "HET full", "SNGP", "Laplace"]
ROWS += ["deep ensemble", FROZEN]
CUT = "block14_add"  # the last layer that stays as it is: stages 1 to 6
BATCH, STAGES = 32, 3  # of `rows.STAGES`, so that a trial of a third has one
RATES = 1e-4, 3e-4, 1e-3
SETS = "IDRiD", "PneumoniaMNIST", "Brain MRI", "HAM10000"
RESULTS = pathlib.Path(__file__).with_name("results") / "finetuning.json"
COLUMNS = [c for c in measures.COLUMNS if c not in ("confidence", "dice")]

Network = collections.namedtuple("Network", ["is_tuned", "head"])


class Plan(rows.Plan):
    """As on frozen features, but of batches that are equal for all sets."""

    batch = BATCH


class Stages:
    """A set, the stages that learn, and what those before them give for its images."""

    def __init__(self, task, network, given, cut=CUT):
        """`given(first, images)`: what the stages before `cut` give for images."""
        first, upper = finetuned.parts_of(network, task.projection[0].shape[1], cut)
        finetuned.set_statistics(upper, False)
        projection = upper.layers[-1]  # of the features, as it is for all rows
        projection.trainable = False
        projection.set_weights(task.projection)
        self.task, self.upper, self.start = task, upper, upper.get_weights()
        self.middle = {part: given(first, each) for part, each in task.images.items()}

    def features(self, parts):
        ask = self.upper.predict
        return {p: ask(self.middle[p].astype("float32"), batch_size=256, verbose=0) for p in parts}


class Runs(methods.Runs):
    """The runs of one set, of networks whose last stage learns."""

    table = {row: rows.ROWS.get(row, rows.Row("fit", "", ())) for row in ROWS}
    budget = len(RATES) + 1

    def __init__(self, store, stages, names, seeds, frozen):
        """`frozen`: {row: what it chose on frozen features, as value, penalty and stages}."""
        super().__init__(store, stages.task, names, seeds)
        self.stages, self.frozen = stages, frozen

    def has_trials_left(self, row):
        return row != FROZEN and super().has_trials_left(row)

    def plans(self, row, start, best):
        start = Plan(*start)._replace(stages=STAGES, l2=self.frozen[row][1])
        yield from (start._replace(value=rate) for rate in RATES)
        yield best()._replace(stages=1)

    def chosen(self, row, graphs):
        if row != FROZEN:
            plan = super().chosen(row, graphs)
            return Plan(*plan)
        value, l2, stages = self.frozen["Dense"]
        return self.task.plan(0)._replace(value=value, l2=l2, stages=stages)

    def fit(self, row, plan, graphs):
        if row == FROZEN:
            model, seconds = super().fit("Dense", plan, graphs)
            return Network(False, model), seconds
        watch = Watch()
        model, head = self.started(row, plan, graphs)
        x, y = self.stages.middle["train"].astype("float32"), self.task.y["train"]
        rows.train(model, x, y, plan, [watch])
        return Network(True, head), watch.of_epoch * plan.stages

    def started(self, row, plan, graphs):
        """A network and its head, as they begin; traced once for all of a row."""
        keras.utils.set_random_seed(plan.seed)
        upper = self.stages.upper
        upper.set_weights(self.stages.start)
        value = self.frozen[row][0]
        fresh = rows.BUILD[row](upper.output.shape[-1], plan._replace(value=value))
        if row not in graphs:
            model = keras.Model(upper.input, fresh(upper.output))
            rows.compiled(model, "adam", rows.loss_of(row, plan))
            model.optimizer.build(model.trainable_variables)
            states = [convert_to_numpy(v).copy() for v in model.optimizer.variables]
            graphs[row] = model, fresh, states
        model, head, states = graphs[row]
        for old, new in zip(head.variables, fresh.variables, strict=True):
            old.assign(new)
        for variable, known in zip(model.optimizer.variables, states, strict=True):
            variable.assign(known)
        model.optimizer.learning_rate = plan.value
        return model, head

    def asked(self, network, parts=None):
        if not network.is_tuned:
            return self.task.asked(network.head, parts)
        parts = parts or [part for part in self.task.x if part != "train"]
        found = self.stages.features(parts)
        probs, _ = rows.asked(network.head, np.concatenate(list(found.values())))
        ends = np.cumsum([len(found[part]) for part in parts])[:-1]
        return dict(zip(parts, np.split(probs, ends), strict=True))

    def made_of(self, row, network):
        x, y = self.stages.features(["train", "validation"]), self.task.y
        validation = x["validation"], y["validation"]
        return Network(True, rows.made_of(row, network.head, x["train"], y["train"], validation))

    def controls(self):
        """None beside those of `benchmarks/methods.py`, of the same images."""


def frozen_choice(known):
    """{row: value, penalty, stages} of the best trials on frozen features."""
    return {row: min(trials, key=lambda trial: trial[-1])[:3] for row, trials in known.items()}


def made_up():
    """Digits, pixels as features, and a stage that starts as what leaves them as they are."""
    make = tasks.quick_tasks()["digits"]
    task = tasks.Task("digits", make(), pixels, tasks.TARGET)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255, name=CUT)(inputs)
    x = keras.layers.Conv2D(3, 1, name="stage")(x)
    network = keras.Model(inputs, keras.layers.Flatten()(x))
    network.get_layer("stage").set_weights([np.eye(3).reshape(1, 1, 3, 3), np.zeros(3)])
    stages = Stages(task, network, lambda first, x: first.predict(x, verbose=0))
    return stages, {row: (spec.values[0], 0.01, 3) for row, spec in Runs.table.items() if spec.knob}


def real(name, folder, cache):
    task = tasks.Task(
        name, images.TASKS[name](folder), Features(folder, cache), images.TARGETS[name]
    )
    stages = Stages(task, trunk(folder), lambda first, x: finetuned.middle_of(first, x, cache, CUT))
    known = json.loads(methods.RESULTS.read_text(encoding="utf-8"))["tasks"][name]
    return stages, frozen_choice(known["trials"])


# --- Tables -------------------------------------------------------------------------------------


def figures(found):
    """Means of the seeds, + and − where the interval of the difference with Dense leaves out 0."""
    each = found["tasks"].items()
    return "\n".join(pages.set_table(name, task, COLUMNS) for name, task in each)


def differences(found):
    each = found["tasks"].items()
    return "\n".join(pages.difference_table(name, task) for name, task in each)


def trials(found):
    """The best trial of each row: its learning rate, whether at an end, and its steps."""
    titles, body = ["row", *found["tasks"]], []
    for row in ROWS:
        cell = []
        for task in found["tasks"].values():
            known = task["trials"].get(row)
            rate, _, stages, nll = min(known, key=lambda trial: trial[-1]) if known else [0] * 4
            few = "" if stages == STAGES else ", a third"
            few += ", end" if rate in (RATES[0], RATES[-1]) else ""
            cell.append(f"{rate:g}{few}: {nll:.3f}" if known else "")
        if any(cell):
            body.append([row, *cell])
    return answers.markdown(titles, body)


def verdicts(found):
    """Column by column, in how many sets a row is better or worse than Dense."""
    judged, heads = cells.judged_sets(found), [row for row in ROWS[1:] if row != FROZEN]
    lines = [f"Sets: {', '.join(judged)}.\n\n"]
    for column in measures.PAIRED:
        said = answers.verdict(judged, column, heads)
        lines.append(f"- {measures.COLUMNS[column][0]}: {said}")
    return "".join(lines)


def frozen(found):
    """What it brings that the stage learns: frozen less fine-tuned, set by set."""
    judged, titles = cells.judged_sets(found), ["set"]
    columns = [c for c in measures.PAIRED if c != "brier"]
    titles += [f"{measures.COLUMNS[c][0]}, frozen less fine-tuned" for c in columns]
    body = []
    for name, task in judged.items():
        known = task["differences"].get(FROZEN)
        if known:
            cell = [shown(known[c], c) for c in columns]
            body.append([name, *cell])
    return answers.markdown(titles, body)


def shown(difference, column):
    digits = measures.COLUMNS[column][1]
    mean, low, high = (f"{value:+.{digits}f}" for value in difference)
    return f"{mean} [{low}, {high}]{cells.sign(difference, column)}"


TABLES = {"figures": figures, "differences": differences, "trials": trials}
TABLES |= {"verdicts": verdicts, "frozen": frozen}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of features and predictions, outside of here")
    add("--tasks", nargs="*", choices=SETS, default=list(SETS), help="only these sets")
    add("--rows", nargs="*", choices=ROWS, metavar="ROW", help="only these rows")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--quick", action="store_true", help="digits, one seed, and two rows or those of --rows")
    add("--report", action="store_true", help="write the tables into the pages, run nothing")
    given = parser.parse_args(argv)
    if given.report:
        return pages.write_all(json.loads(given.json.read_text("utf-8")), "finetuning", TABLES)
    names = given.rows or (QUICK if given.quick else ROWS)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        settings = {"steps": STAGES * rows.steps_of_stage(), "batch": BATCH, "cut": CUT}
        path = cache / RESULTS.name if given.quick else given.json
        store = tasks.Store(path, cache / "finetuning", settings, methods.PARTS)
        for name in ["digits"] if given.quick else given.tasks:
            stages, known = made_up() if given.quick else real(name, images.default_folder(), cache)
            Runs(store, stages, names, 1 if given.quick else given.seeds, known).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # CPU time is then that of the work
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
