"""Which method, when, and what it costs: all of them on the same frozen features.

    python benchmarks/methods.py --cache ~/features      # runs what is not there yet
    python benchmarks/methods.py --report                # writes the tables into the pages
    python benchmarks/methods.py --data FOLDER --json found.json --cache ~/features  # your images
    python benchmarks/methods.py --quick                 # digits, two rows: does it run here?
    python benchmarks/methods.py --costs --cache ~/features  # of answers and exports, once it ran

Images go through EfficientNet-Lite0, which knows ImageNet and stays as it is; a hidden layer and a
head learn from its features (`evidence/rows.py`). Each row has the same number of trials with seed
0, of which that of the lowest NLL on the validation rows is kept, with their labels as they are:
noisy where those of the training are. Then five seeds. The rule is fitted to calibration rows that
nothing else has seen. All can be stopped at any time, and goes on where it was.

A file of FOLDER is a set, an `.npz` with `images`, `labels` and, where there are, `groups` and
more: `evidence/own.py` says in which form. What was found is printed at the end, and written beside
the JSON as a page.
"""

import argparse
import functools
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from evidence import costs, measures, pages, rows, tasks
from evidence.watch import Watch

QUICK = ["Dense", "temperature scaling"]
RESULTS = pathlib.Path(__file__).with_name("results") / "methods.json"


PARTS = ("trials", "runs", "differences", "controls", "costs")  # of what is kept of a set


class Runs:
    """The runs of one set: those that are in the store are not run again."""

    table, budget = rows.ROWS, rows.TRIALS  # the rows there are, and how many trials each has

    def __init__(self, store, task, names, seeds):
        self.store, self.task, self.seeds = store, task, seeds
        self.entry = store.task(task)
        self.entry |= {"budget": self.budget, "rows": task.counts, "classes": task.classes}
        behind = [row for row in self.entry["trials"] if self.has_trials_left(row)]
        self.names = list(dict.fromkeys([*names, *behind]))  # rows of fewer trials are no rivals

    def has_trials_left(self, row):
        return len(self.entry["trials"].get(row, [])) != self.budget

    def fit(self, row, plan, graphs):
        """A model, and the CPU seconds of its steps."""
        watch, (x, y) = Watch(), (self.task.x["train"], self.task.y["train"])
        model = rows.fitted(row, x, y, plan, watch, graphs)
        return model, watch.of_epoch * plan.stages

    def plans(self, row, start, best):
        """The trials of a row; `best()` is the best of those before."""
        return rows.trials(row, start, best)

    def asked(self, model, parts=None):
        """Mean probabilities of these parts, or of all but the training's."""
        return self.task.asked(model, parts)

    def made_of(self, row, network):
        """What is made of a trained network of "Dense" without training it on."""
        x, y = self.task.x, self.task.y
        validation = x["validation"], y["validation"]
        return rows.made_of(row, network, x["train"], y["train"], validation)

    def lacks(self, row, seed):
        """Whether a run is missing, or what it predicted is, while a comparison waits for that."""
        if str(seed) not in self.entry["runs"].get(row, {}):
            return True
        known = self.entry["differences"]
        waits = row not in known and any(r not in known for r in self.names if r != "Dense")
        return waits and not self.store.predictions(self.task.key, row, seed).is_file()

    def keep(self, row, seed, probs, seconds):
        """Writes the figures and the predictions of a run."""
        path = self.store.predictions(self.task.key, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{part: p.astype("float32") for part, p in probs.items()})
        found = measures.figures(probs, self.task.y, self.task.target_risk)
        found["seconds"] = round(seconds, 3)
        self.entry["runs"].setdefault(row, {})[str(seed)] = found
        self.store.write()
        print(self.task.name, row, seed, found, flush=True)

    def chosen(self, row, graphs):
        """The plan of the lowest validation NLL of all trials; those that are missing run.

        Runs of another plan, of fewer trials, are forgotten, with what was made of them.
        """
        known = {tuple(trial[:3]): trial[3] for trial in self.entry["trials"].get(row, [])}
        before, done, start = min(known, key=known.get, default=None), {}, self.task.plan(0)

        def best():
            value, l2, stages = min(done, key=done.get)
            return start._replace(value=value, l2=l2, stages=stages)

        for plan in self.plans(row, start, best):
            key = plan.value, plan.l2, plan.stages
            if key not in known:
                model, _ = self.fit(row, plan, graphs)
                probs = self.asked(model, ["validation"])["validation"]
                known[key] = round(measures.nll_of(probs, self.task.y["validation"]), 5)
            done[key] = known[key]
        self.entry["trials"][row] = [[*key, nll] for key, nll in done.items()]
        if before not in (None, min(done, key=done.get)):
            self.forget(row)
        self.store.write()
        return best()

    def forget(self, row):
        """Without the runs of a row, and, of Dense, of all that is made of it or beside it."""
        made = (
            [r for r, each in self.table.items() if each.kind == "of Dense"]
            if row == "Dense"
            else []
        )
        for each in (row, *made):
            self.entry["runs"].pop(each, None)
            self.entry["differences"].pop(each, None)
        if row == "Dense":
            self.entry["differences"].clear()

    def run_fit(self, row):
        """All seeds of a row that trains."""
        graphs = {}
        if self.has_trials_left(row):
            self.chosen(row, graphs)
        missing = [seed for seed in range(self.seeds) if self.lacks(row, seed)]
        if missing:
            plan = self.chosen(row, graphs)
            for seed in missing:
                model, seconds = self.fit(row, plan._replace(seed=seed), graphs)
                self.keep(row, seed, self.asked(model), seconds)

    def run_dense(self, others):
        """All seeds of "Dense" and of what is made of its networks."""
        graphs = {}
        names = ["Dense", *others]
        if self.has_trials_left("Dense"):
            self.chosen("Dense", graphs)
        for seed in range(self.seeds):
            if not any(self.lacks(row, seed) for row in names):
                continue
            plan = self.chosen("Dense", graphs)
            network, seconds = self.fit("Dense", plan._replace(seed=seed), graphs)
            probs = self.asked(network)
            self.keep("Dense", seed, probs, seconds)
            for row in filter(lambda row: row != "deep ensemble", others):
                start = time.process_time()
                model = self.made_of(row, network)
                more = time.process_time() - start
                self.keep(row, seed, self.asked(model), seconds + more)
            if "deep ensemble" in others:
                self.keep("deep ensemble", seed, *self.ensemble(plan, seed, probs, seconds, graphs))

    def ensemble(self, plan, seed, probs, seconds, graphs):
        """The mean prediction of a network and of four more, each from a seed of its own."""
        stacks, spent = [probs], seconds
        for member in range(1, rows.MEMBERS):
            other = plan._replace(seed=1000 + seed * rows.MEMBERS + member)
            model, more = self.fit("Dense", other, graphs)
            stacks.append(self.asked(model))
            spent += more
        return {part: np.mean([s[part] for s in stacks], axis=0) for part in probs}, spent

    def controls(self):
        """How well what is strange is told by pixels alone, with examples of it."""
        for kind in ("near", "far"):
            if kind in self.task.x and kind not in self.entry["controls"]:
                self.entry["controls"][kind] = {
                    name: measures.control(each["test"], each[kind])
                    for name, each in (("pixels", self.task.energies), ("features", self.task.raw))
                }

    def run(self):
        of_dense = [row for row in self.names if self.table[row].kind != "fit"]
        self.run_dense(of_dense)
        for row in self.names:
            if self.table[row].kind == "fit" and row != "Dense":
                self.run_fit(row)
                keras.utils.clear_session()
        self.controls()
        self.compare()

    def measure(self, trunk):
        """Costs of the rows and of Dense, beside those of other rows that are known."""
        plan_of, known = functools.partial(self.chosen, graphs={}), self.entry["costs"]
        found = costs.measured(self.task, plan_of, dict.fromkeys(["Dense", *self.names]), trunk)
        self.entry["costs"] = {**found, "rows": known.get("rows", {}) | found["rows"]}
        self.store.write()

    def compare(self):
        """Paired differences with Dense, of the rows that have all seeds; those there are stay."""
        read, known = {}, self.entry["differences"]
        for row in self.table:
            seeds = range(self.seeds)
            paths = [self.store.predictions(self.task.key, row, seed) for seed in seeds]
            is_new = row == "Dense" or row not in known
            is_run = len(self.entry["runs"].get(row, {})) >= self.seeds
            if is_new and is_run and all(path.is_file() for path in paths):
                read[row] = [dict(np.load(path)) for path in paths]
        if len(read) > 1:
            known |= measures.differences(read, self.task.y, len(self.table) - 1)
            self.store.write()


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = tasks.add_options(parser, RESULTS)
    add("--rows", nargs="*", choices=list(rows.ROWS), metavar="ROW", help="only these rows")
    add("--costs", action="store_true", help="measure time, memory and exports, and no more")
    add("--quick", action="store_true", help="digits, one seed, and two rows or those of --rows")
    return parser.parse_args(argv)


def main(argv=None):
    given = parse(argv)
    if given.report:
        return pages.write_all(json.loads(given.json.read_text(encoding="utf-8")))
    names = given.rows or (QUICK if given.quick else list(rows.ROWS))
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        each, trunk = tasks.asked_for(given, cache)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "pixels": given.pixels}
        path = tasks.results_of(given, RESULTS, cache)
        store, done = tasks.Store(path, cache, settings, PARTS), []
        for task in each:
            runs = Runs(store, task, names, given.seeds)
            runs.measure(trunk) if given.costs else runs.run()
            done.append(task.name)
        told = pages.told({"tasks": {name: store.found["tasks"][name] for name in done}})
        print(told, flush=True)
        if given.data:
            store.path.with_suffix(".md").write_text(told, encoding="utf-8")
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # CPU time is then that of the work
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
