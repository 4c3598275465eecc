"""Which method for segmentation: heads of a place, on frozen features of three stages.

    python benchmarks/segmentation.py --cache ~/features      # runs what is not there yet
    python benchmarks/segmentation.py --report                # writes the tables into the pages
    python benchmarks/segmentation.py --quick                 # made-up places, two rows

Nuclei of cells (`evidence/nuclei.py`) and vessels of retinas (`evidence/vessels.py`): each place is
a row, and the rows of `benchmarks/methods.py` are tuned and trained as there, with three seeds. Of
the intervals whole images are drawn, with all of their places, which are no independent witnesses.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import methods
import numpy as np
import tensorflow as tf
from evidence import cells, images, measures, nuclei, pages, paired, rows, tasks, vessels
from evidence.marked import markdown

SEEDS, QUICK = 3, ["Dense", "temperature scaling"]
ROWS = ["Dense", "temperature scaling", "MC dropout", "VBLL", "HET full", "SNGP", "Laplace"]
ROWS += ["deep ensemble"]
SETS = {"Nuclei": nuclei.Pixels, "Vessels": vessels.Vessels}
RESULTS = pathlib.Path(__file__).with_name("results") / "segmentation.json"
COLUMNS = {"dice": ("Dice", 3, True)} | {
    name: measures.COLUMNS[name]
    for name in ("accuracy", "nll", "brier", "ece", "aurc", "augrc", "near", "far")
}
PAIRED = "dice", "nll", "brier", "augrc", "near", "far"


class Runs(methods.Runs):
    """The runs of one set, of which each row is a place."""

    def keep(self, row, seed, probs, seconds):
        path = self.store.predictions(self.task.key, row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{part: p.astype("float32") for part, p in probs.items()})
        found = measures.of_answers(probs, self.task.y)
        found["dice"] = round(float(nuclei.dice(probs["test"], self.task.y["test"]).mean()), 5)
        found["seconds"] = round(seconds, 3)
        self.entry["runs"].setdefault(row, {})[str(seed)] = found
        self.store.write()
        print(self.task.name, row, seed, found, flush=True)

    def controls(self):
        """None: what is strange is of another kind of image, as in `benchmarks/saliency.py`."""

    def compare(self):
        read = {}
        for row in ROWS:
            paths = [self.store.predictions(self.task.key, row, seed) for seed in range(self.seeds)]
            is_run = len(self.entry["runs"].get(row, {})) >= self.seeds
            if is_run and all(path.is_file() for path in paths):
                read[row] = [dict(np.load(path)) for path in paths]
        if len(read) > 1 and set(read) - {"Dense"} - set(self.entry["differences"]):
            parts = [part for part in read["Dense"][0] if part != "validation"]
            counts = {part: len(read["Dense"][0][part]) // nuclei.PLACES for part in parts}
            resampled, comparisons = nuclei.resampled(self.task.y), len(ROWS) - 1
            found = paired.differences(read, resampled, counts, comparisons, "Dense")
            self.entry["differences"] = found
            self.store.write()


def cell(task, row, column):
    value, digits = cells.mean_of(task["runs"][row], column), COLUMNS[column][1]
    if value is None:
        return "-"
    found = task["differences"].get(row, {}).get(column)
    if found is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f}{paired.told(found, digits, COLUMNS[column][2]).split(']')[1]}"


def known(task, columns):
    return [c for c in columns if cells.mean_of(task["runs"]["Dense"], c) is not None]


def figures(found):
    """Means of the seeds, + and − where the interval of the difference with Dense leaves out 0."""
    parts = []
    for name, task in found["tasks"].items():
        columns = known(task, COLUMNS)
        titles = ["row", *(COLUMNS[c][0] for c in columns)]
        body = [
            [row, *(cell(task, row, c) for c in columns)] for row in ROWS if row in task["runs"]
        ]
        sizes = ", ".join(f"{part} {count}" for part, count in task["rows"].items())
        seeds = len(task["runs"]["Dense"])
        head = f"**{name}** (places: {sizes}; seeds: {seeds}; trials: {task['budget']})"
        parts.append(f"{head}\n\n{markdown(titles, body)}")
    return "\n".join(parts)


def differences(found):
    """Row less Dense, with the interval."""
    parts = []
    for name, task in found["tasks"].items():
        columns = known(task, PAIRED)
        body = [
            [row, *(paired.told(each[c], *COLUMNS[c][1:]) for c in columns)]
            for row, each in task["differences"].items()
        ]
        titles = ["row less Dense", *(COLUMNS[c][0] for c in columns)]
        parts.append(f"**{name}**\n\n{markdown(titles, body)}")
    return "\n".join(parts)


def verdicts(found):
    """Column by column, in how many sets a row is better or worse than Dense."""
    lines = []
    for column in PAIRED:
        counts = {" +": {}, " −": {}}
        having = [t for t in found["tasks"].values() if column in known(t, PAIRED)]
        for task in having:
            for row, each in task["differences"].items():
                sign = paired.told(each[column], *COLUMNS[column][1:]).split("]")[1]
                if sign:
                    counts[sign][row] = counts[sign].get(row, 0) + 1
        total = len(having)
        better, worse = (
            ", ".join(f"{row} ({count} of {total})" for row, count in each.items()) or "none"
            for each in counts.values()
        )
        title = COLUMNS[column][0]
        lines.append(f"- {title}: better than Dense: {better}. Worse: {worse}.\n")
    return "".join(lines)


TABLES = {"figures": figures, "differences": differences, "verdicts": verdicts}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of predictions, outside of here")
    add("--tasks", nargs="*", choices=list(SETS), default=list(SETS), help="only these sets")
    add("--rows", nargs="*", choices=ROWS, metavar="ROW", help="only these rows")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--quick", action="store_true", help="made-up places, one seed, two rows")
    add("--report", action="store_true", help="write the tables into the pages, run nothing")
    given = parser.parse_args(argv)
    if given.report:
        return pages.write_all(json.loads(given.json.read_text("utf-8")), "segmentation", TABLES)
    names = given.rows or (QUICK if given.quick else ROWS)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN}
        path = cache / "segmentation.json" if given.quick else given.json
        store = tasks.Store(path, cache, settings, methods.PARTS)
        makers = [vessels.MadeUp] if given.quick else [SETS[name] for name in given.tasks]
        for make in makers:
            task = make(images.default_folder())
            task.asked = tasks.Task.asked.__get__(task)
            Runs(store, task, names, 1 if given.quick else given.seeds).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)  # CPU time is then that of the work
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
