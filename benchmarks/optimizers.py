"""Optimizers and schedules side by side: the baselines that a reader would ask for, and the recipe.

    python benchmarks/optimizers.py --cache ~/features     # runs what is not there yet
    python benchmarks/optimizers.py --times --cache ~/features  # by the clock, rows in turns
    python benchmarks/optimizers.py --report               # writes the tables into the page
    python benchmarks/optimizers.py --quick                # digits, two rows: does it run here?

The sets, features and network of `benchmarks/methods.py` (a hidden layer and a head on a frozen
trunk), the same number of steps in each row. Tuned rows try six highest rates with seed 0, about
three times apart, and keep the one of the lowest NLL on the validation rows; rows named "default"
have Keras' rate of Adam, and are not tuned. SGD has momentum 0.9. "SGDR" are five cycles of equal
length, "CLM" four, each twice as long as the one before; "DLR" gives the first layer 0.3 of the
last one's rate. "bfloat16" has Keras' policy mixed_bfloat16. No row is stopped early. A training is
twelve calls of a graph: CPU time of the steps is the median call's after the first, times twelve;
that of the tracing is what the first one takes beyond such a call. `--times` measures by the clock,
rows in turns, three rounds. All can be stopped at any time, and goes on where it was.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from evidence import answers, cells, measures, pages, rows, tasks
from evidence.watch import Watch, steady

from tfuq.callbacks import SGDR
from tfuq.optimizers import DiscriminativeLearningRate

RESULTS = pathlib.Path(__file__).with_name("results") / "optimizers.json"
MOMENTUM, MIN_FACTOR = 0.9, 0.3
ADAPTIVE = 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2
PLAIN = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1
CYCLES, DOUBLED, WARMUP = 5, 4, 0.3  # of equal length; each twice as long; of one cycle
BASE = "Adam, tuned"
COLUMNS = ("accuracy", "nll", "ece", "augrc")
JUDGED = ("accuracy", "nll", "augrc")
QUICK = [BASE, "SGDR+DLR+CLM"]


def sgd(rate):
    return keras.optimizers.SGD(rate, momentum=MOMENTUM)


def with_layer_rates(rate):
    return DiscriminativeLearningRate(sgd(rate), min_factor=MIN_FACTOR)


def cosine(rate, stages):
    return SGDR(rate, cycle_length=stages)


def one_cycle(rate, stages):
    return SGDR(rate, warmup=WARMUP * stages, cycle_length=(1 - WARMUP) * stages)


def restarts(rate, stages):
    return SGDR(rate, cycle_length=stages / CYCLES)


def growing(rate, stages):
    return SGDR(rate, cycle_length=stages / (2**DOUBLED - 1), cycle_mult=2)


ROWS = {  # optimizer of a rate, schedule of rate and stages, rates to try
    "Adam, default": (keras.optimizers.Adam, None, (1e-3,)),
    "Adam, tuned": (keras.optimizers.Adam, None, ADAPTIVE),
    "AdamW, default": (keras.optimizers.AdamW, None, (1e-3,)),
    "AdamW, tuned": (keras.optimizers.AdamW, None, ADAPTIVE),
    "schedule-free AdamW": (keras.optimizers.ScheduleFreeAdamW, None, ADAPTIVE),
    "SGD, one cosine": (sgd, cosine, PLAIN),
    "SGD, one-cycle": (sgd, one_cycle, PLAIN),
    "SGDR": (sgd, restarts, PLAIN),
    "SGDR+DLR": (with_layer_rates, restarts, PLAIN),
    "SGDR+DLR+CLM": (with_layer_rates, growing, PLAIN),
    "Adam, tuned, bfloat16": (keras.optimizers.Adam, None, ADAPTIVE),
    "SGDR+DLR+CLM, bfloat16": (with_layer_rates, growing, PLAIN),
}
MIXED = tuple(row for row in ROWS if row.endswith("bfloat16"))
TIMED, ROUNDS = "CIFAR-10N worst", 3


def averaged(model):
    """Gives a model the average of its iterates, which schedule-free training is to be judged by.

    Keras leaves y = (1 - beta) z + beta x in the model; x is the average (Defazio et al. 2024). In
    its update it reads z after the step where the formula has z before it, so that each step moves
    x by (1 - beta) / beta of that step; the row is of Keras as it is.
    """
    optimizer = model.optimizer
    beta = optimizer.beta_1
    for y, z in zip(model.trainable_variables, optimizer._momentums, strict=True):
        y.assign((y - (1 - beta) * z) / beta)


class Runs:
    """The runs of one set."""

    def __init__(self, store, task, names, seeds):
        self.store, self.task, self.names, self.seeds = store, task, names, seeds
        self.entry = store.task(task)
        self.entry |= {"rows": task.counts, "classes": task.classes}
        self.parts = [part for part in ("test", "near", "far") if part in task.x]

    def fit(self, row, rate, seed):
        """A trained network, and the watch that saw its stages."""
        make, schedule, _ = ROWS[row]
        plan, (x, y) = self.task.plan(seed), (self.task.x["train"], self.task.y["train"])
        keras.utils.set_random_seed(seed)
        policy = keras.config.dtype_policy()
        try:
            keras.config.set_dtype_policy("mixed_bfloat16" if row in MIXED else policy)
            model = rows.dense(x.shape[1], plan)
        finally:
            keras.config.set_dtype_policy(policy)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        rows.compiled(model, make(rate), loss)
        watch = Watch()
        callbacks = [watch] if schedule is None else [watch, schedule(rate, plan.stages)]
        rows.train(model, x, y, plan, callbacks)
        if isinstance(model.optimizer, keras.optimizers.ScheduleFreeAdamW):
            averaged(model)
        return model, watch

    def rate(self, row):
        """The rate of the lowest validation NLL with seed 0; training that diverges has none."""
        rates = ROWS[row][2]
        if len(rates) == 1:
            return rates[0]
        if row not in self.entry["trials"]:
            found = []
            for rate in rates:
                probs, _ = rows.asked(self.fit(row, rate, 0)[0], self.task.x["validation"])
                nll = measures.nll_of(probs, self.task.y["validation"])
                found.append([rate, round(nll, 5) if np.isfinite(nll) else None])
            self.entry["trials"][row] = found
        known = [trial for trial in self.entry["trials"][row] if trial[1] is not None]
        return min(known, key=lambda trial: trial[1])[0]

    def path(self, row, seed):
        return self.store.predictions(f"optimizers-{self.task.key}", row, seed)

    def run_one(self, row, seed):
        runs = self.entry["runs"].setdefault(row, {})
        if str(seed) in runs and (
            self.path(row, seed).is_file() or row in self.entry["differences"]
        ):
            return
        model, watch = self.fit(row, self.rate(row), seed)
        seconds, tracing = watch.of_epoch * rows.STAGES, watch.spent[0] - watch.of_epoch
        probs, _ = rows.asked(model, np.concatenate([self.task.x[part] for part in self.parts]))
        ends = np.cumsum([len(self.task.x[part]) for part in self.parts])[:-1]
        probs = dict(zip(self.parts, np.split(probs, ends), strict=True))
        path = self.path(row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{part: p.astype("float32") for part, p in probs.items()})
        found = measures.of_answers(probs, self.task.y)
        runs[str(seed)] = {**found, "seconds": round(seconds, 3), "tracing": round(tracing, 3)}
        self.store.write()
        print(self.task.name, row, seed, runs[str(seed)], flush=True)

    def run(self):
        for row in self.names:
            for seed in range(self.seeds):
                self.run_one(row, seed)
            keras.utils.clear_session()
        self.compare()

    def measure(self):
        """Seconds by the clock, of the steps and of all of `fit`, with its tracing; in turns."""
        found = {row: [] for row in self.names}
        for _ in range(ROUNDS):
            for row in self.names:
                keras.utils.clear_session()
                begin = time.perf_counter()
                _, watch = self.fit(row, self.rate(row), 0)
                all_of_it = time.perf_counter() - begin
                found[row].append([steady(watch.clock) * rows.STAGES, all_of_it])
        self.entry["times"] = {
            row: [round(float(v), 3) for v in np.median(each, axis=0)]
            for row, each in found.items()
        }
        self.entry["load"] = round(os.getloadavg()[0], 1)
        self.store.write()

    def compare(self):
        """Paired differences with tuned Adam, of the rows that have all seeds and are new."""
        wanted = [BASE, *(row for row in self.names if row not in self.entry["differences"])]
        read = {}
        for row in dict.fromkeys(wanted):
            paths = [self.path(row, seed) for seed in range(self.seeds)]
            if all(path.is_file() for path in paths):
                read[row] = [dict(np.load(path)) for path in paths]
        if BASE in read and len(read) > 1:
            found = measures.differences(read, self.task.y, len(ROWS) - 1, base=BASE)
            self.entry["differences"] |= found
            self.store.write()


# --- Tables -------------------------------------------------------------------------------------


def set_table(name, task):
    titles = ["row", "rate", *(measures.COLUMNS[c][0] for c in COLUMNS)]
    titles += ["CPU s, steps", "CPU s, tracing"]
    body = []
    for row in filter(task["runs"].get, ROWS):
        runs = task["runs"][row]
        figures = [cells.cell(task, row, column) for column in COLUMNS]
        times = [f"{cells.mean_of(runs, key):.1f}" for key in ("seconds", "tracing")]
        body.append([row, told(chosen_rate(task, row), ROWS[row][2]), *figures, *times])
    seeds = len(task["runs"][BASE])
    return f"**{name}** ({seeds} seeds)\n\n" + pages.markdown(titles, body)


def told(rate, rates):
    """A rate, and whether it is an end of those that were tried: beyond it may be a better one."""
    return f"{rate:g}" + (" (end)" if len(rates) > 1 and rate in (rates[0], rates[-1]) else "")


def chosen_rate(task, row):
    known = [t for t in task["trials"].get(row, []) if t[1] is not None]
    return min(known, key=lambda trial: trial[1])[0] if known else ROWS[row][2][0]


def judged(found):
    return {name: task for name, task in found["tasks"].items() if task["differences"]}


def difference_table(found, column):
    """Row less tuned Adam, set by set."""
    known, digits = judged(found), measures.COLUMNS[column][1]
    body = []
    for row in ROWS:
        shown = []
        for task in known.values():
            each = task["differences"].get(row, {}).get(column)
            if each is not None:
                mean, low, high = (f"{value:+.{digits}f}" for value in each)
                each = f"{mean} [{low}, {high}]{cells.sign(each, column)}"
            shown.append(each or "-")
        if any(cell != "-" for cell in shown):
            body.append([row, *shown])
    title = f"{measures.COLUMNS[column][0]}, row less {BASE}"
    return pages.markdown([title, *known], body) + "\n" + answers.verdict(known, column, ROWS, BASE)


def time_table(found):
    """By the clock: the steps alone, and together with building and tracing."""
    body, told = [], []
    for name, task in found["tasks"].items():
        times = task.get("times", {})
        for row in filter(times.get, ROWS):
            steps, together = times[row]
            base_steps, base = times[BASE]
            ratios = f"{steps / base_steps:.2f}", f"{together / base:.2f}"
            body.append([f"{name}: {row}", f"{steps:.2f}", f"{together:.2f}", *ratios])
        if times:
            told.append(f"{name}: the load of the machine was {task['load']:g} on two cores.")
    titles = ["row", "steps, s", "with building and tracing, s", f"steps / {BASE}", "together"]
    return pages.markdown(titles, body) + "\n" + " ".join(told) + "\n"


def verdicts(found):
    """Column by column, in how many sets a row is better or worse than tuned Adam."""
    known = judged(found)
    said = (f"- {measures.COLUMNS[c][0]}: {answers.verdict(known, c, ROWS, BASE)}" for c in JUDGED)
    return "".join(said) + f"- Sets: {', '.join(known)}.\n"


TABLES = {
    "times": time_table,
    "sets": lambda found: "\n".join(set_table(n, t) for n, t in judged(found).items()),
    **{c: (lambda found, c=c: difference_table(found, c)) for c in JUDGED},
    "verdicts": verdicts,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = tasks.add_options(parser, RESULTS)
    add("--rows", nargs="*", choices=list(ROWS), metavar="ROW", help="only these rows")
    add("--times", action="store_true", help="measure by the clock, and no more")
    add("--quick", action="store_true", help="digits, one seed, two rows")
    given = parser.parse_args(argv)
    if given.report:
        return pages.write_all(json.loads(given.json.read_text("utf-8")), "optimizers", TABLES)
    names = given.rows or (QUICK if given.quick else list(ROWS))
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        if given.times and not (given.tasks or given.quick or given.data):
            given.tasks = [TIMED]
        each, _ = tasks.asked_for(given, cache)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "rates": [ADAPTIVE, PLAIN]}
        path = tasks.results_of(given, RESULTS, cache)
        settings = json.loads(json.dumps(settings))
        store = tasks.Store(path, cache, settings, ("trials", "runs", "differences"))
        for task in each:
            runs = Runs(store, task, names, given.seeds)
            runs.measure() if given.times else runs.run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # CPU time is then that of the work
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
