"""Is it the saliency? Which weights are random, at equal numbers, against five other choices.

    python benchmarks/saliency.py --cache ~/features     # runs what is not there yet
    python benchmarks/saliency.py --report               # writes the tables into the page
    python benchmarks/saliency.py --quick                # digits, one share: does it run here?

The sets and features of `benchmarks/methods.py`; the network is its hidden layer and head. A
deterministic network trains for a third of the steps (Abboud et al. 2024, steps 1 and 2); from each
seed's all rows go on with the other two thirds, with new moments: weights chosen by squared
gradients, by size, by chance, from the first or from the last layer on, as many in each row; all
biases, beside the other choices at that number; and two controls without random weights, "Dense"
and "MC dropout", with as many passes. One draw a training step, five a prediction. The penalty of
weights is the one with which Dense has the lowest NLL on the validation rows with seed 0, and all
rows share it; nothing else is tuned. All can be stopped at any time, and goes on where it was.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from evidence import cells, images, measures, nuclei, pages, paired, rows, tasks
from evidence.traced import Traced, class_loss

from tfuq import convert, layers

RESULTS = pathlib.Path(__file__).with_name("results") / "saliency.json"
SHARES = (0.01, 0.2, 0.05, 0.8, 0.001, 0.1, 0.005, 0.4)  # in the order in which they run
WHICH = ("saliency", "random", "magnitude", "first", "last")
CONTROLS = ("Dense", "MC dropout")
PASSES, PRIOR, RATE = 5, 0.3, 0.2
BIASES = "biases"  # the number of all biases, as a share
COLUMNS = ("accuracy", "dice", "nll", "ece", "augrc", "near", "far")


def selected(network, data, plan, which, share):
    """A copy of a trained network with random weights: `share` of all of its kernels."""
    options = {"kl_weight": plan.kl_weight, "prior_scale": PRIOR, "seed": plan.seed}
    if which == BIASES:
        return convert.sparse_bayesian(network, None, class_loss(), which=BIASES, **options)
    return convert.sparse_bayesian(
        network, data, class_loss(), share, which=which, batch_size=plan.batch, **options
    )


def with_dropout(network):
    """The network with dropout before its head."""
    made = keras.models.clone_model(network)
    made.set_weights(network.get_weights())
    return keras.Sequential(
        [
            keras.Input(network.input_shape[1:]),
            made.layers[0],
            layers.MCDropout(RATE),
            *made.layers[1:],
        ]
    )


def biases_share(network):
    """Of the weights of the kernels, as many as there are biases."""
    sizes = {name: 0 for name in ("kernel", "bias")}
    for layer in network.layers:
        for name in sizes:
            sizes[name] += int(np.prod(getattr(layer, name).shape))
    return sizes["bias"] / sizes["kernel"]


class Runs:
    """The runs of one set; a row is named by what is chosen and its share."""

    def __init__(self, store, task, shares, seeds, is_quick):
        self.store, self.task, self.shares, self.seeds = store, task, shares, seeds
        self.is_quick, self.of_places = is_quick, isinstance(task, nuclei.Pixels)
        self.entry = store.task(task)
        self.entry |= {"rows": task.counts, "classes": task.classes}
        self.traced, self.begun = Traced(), {}
        self.data = task.x["train"], task.y["train"]

    def fit(self, model, plan, stages):
        rows.train(model, *self.data, plan._replace(stages=stages))
        return model

    def plan(self, seed):
        """As in `methods.py`; the penalty is chosen once, with seed 0."""
        plan = self.task.plan(seed)
        if "l2" not in self.entry:
            found, graphs = {}, {}
            for l2 in rows.L2:
                tried = plan._replace(seed=0, l2=l2)
                model = rows.fitted("Dense", *self.data, tried, graphs=graphs)
                probs, _ = rows.asked(model, self.task.x["validation"])
                found[l2] = measures.nll_of(probs, self.task.y["validation"])
            self.entry["l2"] = min(found, key=found.get)
        return plan._replace(l2=self.entry["l2"])

    def begin(self, seed):
        """The deterministic network that all rows of a seed go on from."""
        if seed not in self.begun:
            plan = self.plan(seed)
            keras.utils.set_random_seed(seed)
            model = self.traced.of("begin", rows.dense(self.data[0].shape[1], plan))
            self.fit(model, plan, plan.stages // 3)
            network = rows.dense(self.data[0].shape[1], plan)
            network.set_weights(model.get_weights())
            self.begun[seed] = network, plan
        return self.begun[seed]

    def made(self, which, share, seed):
        network, plan = self.begin(seed)
        if which == "Dense":
            fresh = keras.models.clone_model(network)
            fresh.set_weights(network.get_weights())
        elif which == "MC dropout":
            fresh = with_dropout(network)
        else:
            fresh = selected(network, self.data, plan, which, share)
        model = self.traced.of(which if which in CONTROLS else "random", fresh)
        keras.utils.set_random_seed(seed)
        return self.fit(model, plan, plan.stages - plan.stages // 3)

    def run_one(self, which, name, share, seed):
        row = row_name(which, name)
        runs = self.entry["runs"].setdefault(row, {})
        if str(seed) in runs and self.path(row, seed).is_file():
            return
        model = self.made(which, share, seed)
        probs = self.asked(model)
        found = measures.of_answers(probs, self.task.y)
        if self.of_places:
            found["dice"] = round(float(nuclei.dice(probs["test"], self.task.y["test"]).mean()), 5)
        found["random"] = count_random(model)
        path = self.path(row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{part: p.astype("float32") for part, p in probs.items()})
        runs[str(seed)] = found
        self.store.write()
        print(self.task.name, row, seed, found, flush=True)

    def path(self, row, seed):
        return self.store.predictions(f"saliency-{self.task.key}", row, seed)

    def asked(self, model):
        parts = [part for part in ("test", "near", "far") if part in self.task.x]
        x = np.concatenate([self.task.x[part] for part in parts])
        probs, _ = rows.asked(model, x, draws=PASSES)
        ends = np.cumsum([len(self.task.x[part]) for part in parts])[:-1]
        return dict(zip(parts, np.split(probs, ends), strict=True))

    def run(self):
        named = {label(each): each for each in self.shares}
        if not self.is_quick:
            named[BIASES] = biases_share(self.begin(0)[0])
        rest = {name: each for name, each in named.items() if name not in self.entry["differences"]}
        for name, each in rest.items():
            choices = [*WHICH, BIASES] if name == BIASES else WHICH[:2] if self.is_quick else WHICH
            for which in [*CONTROLS, *choices]:
                for seed in range(self.seeds):
                    self.run_one(which, name, each, seed)
            self.compare(name, choices)

    def compare(self, name, choices):
        """Saliency less each other choice at that number, and less the controls."""
        runs = {
            which: [dict(np.load(self.path(row_name(which, name), s))) for s in range(self.seeds)]
            for which in [*CONTROLS, *choices]
        }
        comparisons = (len(SHARES) + 1) * (len(CONTROLS) + len(WHICH) - 1) + 1
        if self.of_places:
            found = self.of_images(runs, comparisons)
        else:
            mine, found = runs["saliency"], {}
            for which in [*CONTROLS, *choices]:
                if which != "saliency":
                    pair = {which: runs[which], "saliency": mine}
                    less = measures.differences(pair, self.task.y, comparisons, base=which)
                    found[which] = less["saliency"]
        self.entry["differences"][name] = found
        self.store.write()

    def of_images(self, runs, comparisons):
        """As above, of places: whole images are drawn."""
        counts = {p: len(v) // nuclei.PLACES for p, v in runs["saliency"][0].items()}
        resampled = nuclei.resampled(self.task.y)
        more = paired.differences(runs, resampled, counts, comparisons, "saliency")
        return {
            which: {column: [-mean, -high, -low] for column, (mean, low, high) in each.items()}
            for which, each in more.items()
        }


def label(share):
    return f"{100 * share:g} %"


def row_name(which, name):
    return which if which in CONTROLS else f"{which}, {name}"


def count_random(model):
    """How many weights are random: those that have a standard deviation."""
    named = (v for v in model.trainable_variables if v.name.endswith("_rho"))
    return sum(int(np.prod(v.shape)) for v in named)


# --- Tables -------------------------------------------------------------------------------------


def run_table(name, task):
    """Means over seeds, with a + or − where saliency is better or worse than that row."""
    columns = [
        c for c in COLUMNS if any(c in r for runs in task["runs"].values() for r in runs.values())
    ]
    titles = ["chosen, share", "random weights", *(measures.COLUMNS[c][0] for c in columns)]
    body = []
    for row in task["runs"]:
        if row in CONTROLS or is_compared(task, row):
            runs = task["runs"][row]
            figures = (f"{cells.mean_of(runs, c):.{measures.COLUMNS[c][1]}f}" for c in columns)
            body.append([row, f"{cells.mean_of(runs, 'random'):.0f}", *figures])
    seeds = len(task["runs"]["Dense"])
    head = f"**{name}** ({task['classes']} classes; seeds: {seeds}; L2 {task['l2']:g})\n\n"
    return head + pages.markdown(titles, body)


def is_compared(task, row):
    return row.partition(", ")[2] in task["differences"]


def difference_table(found, column):
    """Saliency less the others, set by set and share by share."""
    titles, body = ["set, share", *(f"less {w}" for w in (*WHICH[1:], BIASES, *CONTROLS))], []
    digits = measures.COLUMNS[column][1]
    for name, task in found["tasks"].items():
        for share, known in task["differences"].items():
            differences = (known.get(w, {}).get(column) for w in (*WHICH[1:], BIASES, *CONTROLS))
            told = ["-" if e is None else shown(e, column, digits) for e in differences]
            if any(each != "-" for each in told):
                body.append([f"{name}, {share}", *told])
    return pages.markdown(titles, body) + "\n" + verdict(found, column)


def shown(each, column, digits):
    mean, low, high = (f"{value:+.{digits}f}" for value in each)
    return f"{mean} [{low}, {high}]{cells.sign(each, column)}"


def verdict(found, column):
    """How often the interval of a difference leaves out 0, and on which side."""
    said = []
    for which in (*WHICH[1:], BIASES, *CONTROLS):
        signs = signs_of(found, which, column)
        if signs:
            said.append(
                f"{which}: {signs.count(' +')} better, {signs.count(' −')} worse of {len(signs)}"
            )
    title = measures.COLUMNS[column][0]
    return f"{title} of saliency, against " + "; ".join(said or ["nothing yet"]) + ".\n"


def signs_of(found, which, column):
    """The signs of saliency less another choice, of all sets and shares."""
    return [
        cells.sign(known[which][column], column)
        for task in found["tasks"].values()
        for known in task["differences"].values()
        if column in known.get(which, {})
    ]


def count_table(found):
    """In how many sets and shares saliency is better / worse than the others, of how many."""
    others, body = (*WHICH[1:], BIASES, *CONTROLS), []
    for column in JUDGED:
        told = []
        for signs in (signs_of(found, which, column) for which in others):
            better, worse = signs.count(" +"), signs.count(" −")
            told.append(f"{better} / {worse} of {len(signs)}" if signs else "-")
        body.append([measures.COLUMNS[column][0], *told])
    return pages.markdown(["saliency against", *others], body)


JUDGED = (*measures.PAIRED, "dice")
TABLES = {
    "sets": lambda found: "\n".join(
        run_table(name, task) for name, task in found["tasks"].items() if task["differences"]
    ),
    **{c: (lambda found, c=c: difference_table(found, c)) for c in JUDGED},
    "counts": count_table,
}


def sets(given, cache):
    """The sets of classes that are asked for, and the nuclei, which are judged place by place."""
    alone = given.quick or given.data or given.pixels
    has_nuclei = not alone and (given.tasks is None or nuclei.NAME in given.tasks)
    if given.tasks is not None and has_nuclei:
        given.tasks = [name for name in given.tasks if name != nuclei.NAME]
    if given.tasks != []:
        yield from tasks.asked_for(given, cache)[0]
    if has_nuclei:
        yield nuclei.Pixels(images.default_folder())


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = tasks.add_options(parser, RESULTS)
    add("--shares", nargs="*", type=float, default=SHARES, help="default: %(default)s")
    add("--quick", action="store_true", help="digits, one seed, one share")
    given = parser.parse_args(argv)
    if given.report:
        return pages.write_all(json.loads(given.json.read_text("utf-8")), "saliency", TABLES)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        each = sets(given, cache)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "passes": PASSES, "prior": PRIOR}
        path = tasks.results_of(given, RESULTS, cache)
        store = tasks.Store(path, cache, settings)
        shares = given.shares[:1] if given.quick else given.shares
        for task in each:
            Runs(store, task, shares, given.seeds, given.quick).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
