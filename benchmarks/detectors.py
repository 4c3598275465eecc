"""Which detector tells unknown inputs best: all of `tfuq.ood` on the same networks.

    python benchmarks/detectors.py --cache ~/features   # runs what is not there yet
    python benchmarks/detectors.py --report             # writes the tables into the pages
    python benchmarks/detectors.py --quick              # digits: does it run here?

The networks are those of "Dense" in `methods.py`: a hidden layer of 128 units and a head on frozen
features of EfficientNet-Lite0. For each of five seeds the rows that train are drawn anew from those
of training and validation, and the head starts from other weights; the penalty is chosen once, with
seed 0, by the NLL on the rows that do not train. The test rows, and those that are near and far,
stay. A detector is fitted to the rows that have trained, with their labels, and has its defaults:
it has seen nothing unknown, and nothing is tuned.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from evidence import detection, images, measures, rows, tasks
from evidence.features import Features, pixels
from keras.ops import convert_to_numpy, log_softmax

SEEDS, PENALTIES = 5, (0.0, 1e-3, 1e-2, 3e-2, 1e-1)
TASKS = ("HAM10000", "CIFAR-10 clean", "Brain MRI")


class Runs:
    """The runs of one set: those that are in the store are not run again."""

    def __init__(self, store, task, names, seeds):
        self.store, self.task, self.names, self.seeds = store, task, names, seeds
        empty = {"trials": [], "runs": {}, "differences": {}, "controls": {}}
        self.entry = store.found["tasks"].setdefault(task.name, empty)
        parts = ("train", "test", *detection.known_kinds(task.x))
        self.entry["rows"] = {part: task.counts[part] for part in parts}

    def drawn(self, seed):
        """Rows and labels that train, and those that do not, of a seed."""
        x, y = (
            np.concatenate([each[part] for part in ("train", "validation")])
            for each in (self.task.x, self.task.y)
        )
        order, count = np.random.default_rng(seed).permutation(len(y)), self.task.counts["train"]
        return (x[order[:count]], y[order[:count]]), (x[order[count:]], y[order[count:]])

    def plan(self):
        """That of the lowest validation NLL of all penalties, with seed 0."""
        start, done, graphs = self.task.plan(0), self.entry["trials"], {}
        if not done:
            known, (x, y) = self.drawn(0)
            for l2 in PENALTIES:
                plan = start._replace(value=l2, l2=l2)
                logits = rows.fitted("Dense", *known, plan, graphs=graphs).predict(x, 1000, 0)
                log_probs = convert_to_numpy(log_softmax(logits))
                done.append([l2, round(float(-log_probs[np.arange(len(y)), y].mean()), 5)])
        l2, _ = min(done, key=lambda trial: trial[1])
        return start._replace(value=l2, l2=l2)

    def path(self, name, seed):
        return self.store.predictions(f"detectors-{self.task.key}", name, seed)

    def run(self):
        for seed in range(self.seeds):
            missing = [name for name in self.names if not self.path(name, seed).is_file()]
            if missing:
                self.run_seed(seed, missing)
                keras.utils.clear_session()
        self.judge()

    def run_seed(self, seed, missing):
        """Scores of the detectors that are missing, into files of the cache."""
        known, (x, _) = self.drawn(seed)
        network = rows.fitted("Dense", *known, self.plan()._replace(seed=seed))
        model = detection.with_trunk(network)
        parts = {part: self.task.x[part] for part in ("test", *detection.known_kinds(self.task.x))}
        parts["validation"] = x
        found = model.predict(parts["test"], 1000, verbose=0).argmax(-1)
        accuracies = self.entry.setdefault("accuracies", {})
        accuracies[str(seed)] = round(float(np.mean(found == self.task.y["test"])), 5)
        for name in missing:
            scores = detection.scored(name, model, known, parts)
            path = self.path(name, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{part: s for part, s in scores.items() if part != "validation"})
            print(self.task.name, name, seed, detection.figures(scores), flush=True)
        self.store.write()

    def judge(self):
        """Figures of the detectors that have all seeds, and what pixels alone tell."""
        self.entry["accuracy"] = float(np.mean(list(self.entry["accuracies"].values())))
        for kind in detection.known_kinds(self.task.x):
            pairs = (("pixels", self.task.energies), ("features", self.task.raw))
            if kind not in self.entry["controls"]:
                self.entry["controls"][kind] = {
                    name: measures.control(each["test"], each[kind]) for name, each in pairs
                }
        paths = {
            name: [self.path(name, seed) for seed in range(self.seeds)]
            for name in detection.DETECTORS
        }
        runs = {
            name: [dict(np.load(path)) for path in each]
            for name, each in paths.items()
            if all(path.is_file() for path in each)
        }
        for name, each in runs.items():
            found = {str(seed): detection.figures(scores) for seed, scores in enumerate(each)}
            self.entry["runs"][name] = found
        if detection.BASE in runs:
            self.entry["differences"] = detection.differences(runs)
        self.store.write()


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=detection.RESULTS, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of features and scores, outside of here")
    add("--tasks", nargs="*", default=list(TASKS), help="sets of methods.py (%(default)s)")
    add("--detectors", nargs="*", choices=list(detection.DETECTORS), help="only these")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--quick", action="store_true", help="digits and one seed")
    add("--report", action="store_true", help="write the tables into the pages, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    given = parse(argv)
    if given.report:
        return detection.write_all(json.loads(given.json.read_text(encoding="utf-8")))
    folder = images.default_folder()
    if given.quick:
        makers, given.seeds = tasks.quick_tasks(), 1
    else:
        if unknown := sorted(set(given.tasks) - set(images.TASKS)):
            raise ValueError(f"--tasks must be among {list(images.TASKS)}. Received: {unknown}")
        makers = {name: lambda name=name: images.TASKS[name](folder) for name in given.tasks}
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        path = cache / "detectors.json" if given.quick else given.json
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "seeds": given.seeds}
        store = tasks.Store(path, cache, settings)
        features = pixels if given.quick else Features(folder, cache)
        for name, make in makers.items():
            task = tasks.Task(name, make(), features, None)
            Runs(store, task, given.detectors or list(detection.DETECTORS), given.seeds).run()
        return store.found


if __name__ == "__main__":
    main()
