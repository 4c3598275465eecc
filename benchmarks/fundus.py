"""Paper 000 with a network that knows images: must a doctor see this retina, and who may decide?

    python benchmarks/fundus.py --cache ~/features    # runs what is not there yet
    python benchmarks/fundus.py --report              # writes the tables into the page
    python benchmarks/fundus.py --quick               # digits: does it run here?
    python benchmarks/fundus.py --abroad FILE.npz     # `images` (uint8) and `labels` of a hospital

IDRiD: retinopathy of grade 2 and above, or not. The official training images are split anew for
each of five seeds, into rows that train, that choose (a penalty, a rate or a prior, of eight each,
by their NLL, seed 0), 123 that the rule is fitted to and 70 on which it is judged "at home". The
official test is not drawn with them, and is judged apart. The network is that of `methods.py`.
Columns of the paper's table I, which accepts what is surer than .7, stand beside ours: a rule that
promises, with 95 % certainty, at most 15 % errors among what it accepts.

Abroad is where nobody has promised anything: the test images as another camera takes them (noise,
fog, defocus), and the 40 images of DRIVE, from another hospital: of none of these is a retinopathy
more than mild by the set's own description, so that a referral is an error. A monitor of the rule
follows the cases in 1,000 orders, and a two-sample test looks at the features, without labels.
All can be stopped at any time, and goes on where it was.
"""

import argparse
import json
import os
import pathlib
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from evidence import fundus_pages, images, measures, pages, paired, rows, tasks
from evidence.features import Features, pixels
from evidence.images import Part

from tfuq import metrics, selective
from tfuq.selective.monitor import SHARES

RESULTS = fundus_pages.RESULTS
TARGET, SURE, CALIBRATION, VALIDATION, HOME, SEEDS = 0.15, 0.7, 123, 50, 70, 5
ORDERS, SUBSETS, SIZES = 1000, 200, (10, 20, 40, 80, 160)
ROWS, TABLES = fundus_pages.ROWS, fundus_pages.TABLES
QUICK = ("Dense", "VBLL")
JUDGED = ("home", "test", "another camera", "DRIVE", "another hospital")


class Known:
    """Features of images that were computed once, in whatever order they are asked for again."""

    def __init__(self, features, parts):
        self.rows = {}
        for part in parts:
            for image, *values in zip(part, *features(part), strict=True):
                self.rows[image.tobytes()] = values

    def __call__(self, images):
        found = [self.rows[image.tobytes()] for image in images]
        return tuple(np.stack(column) for column in zip(*found, strict=True))


# --- Sets ---------------------------------------------------------------------------------------


def square(images_):
    """The middle of images, as wide as high, at 128 pixels as those of IDRiD."""
    from PIL import Image

    made = []
    for image in images_:
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        cut = Image.fromarray(image[top : top + side, left : left + side])
        made.append(np.asarray(cut.resize((128, 128), Image.BILINEAR)))
    return np.stack(made)


def retinas(folder, abroad=None):
    """Images at home, in one row after another, those of the test, and those abroad."""
    file = images.read(folder, "idrid_grading_128_jpeg")
    home = images.decoded(file, "train", range(413)), (file["y_train"] >= 2).astype(int)
    test = images.decoded(file, "test", range(103)), (file["y_test"] >= 2).astype(int)
    drive = images.read(folder, "drive_vessels_jpeg")
    eyes = np.concatenate([square(images.decoded(drive, g, range(20))) for g in ("train", "test")])
    away = {"DRIVE": Part(eyes, np.zeros(40, int))}
    if abroad:
        arrays = np.load(abroad, allow_pickle=False)
        x, y = images.checked(arrays, pathlib.Path(abroad).name)
        away["another hospital"] = Part(x, y)
    return Part(*home), Part(*test), away


def digits():
    """Digits of 5 and above, or not; abroad they are noisy."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = images.in_colour((x.reshape(-1, 8, 8, 1) * 15).astype("uint8")), (y >= 5).astype(int)
    away = {"DRIVE": Part(255 - x[900:1000], y[900:1000])}
    return Part(x[:500], y[:500]), Part(x[500:900], y[500:900]), away


def split(home, test, away, seed):
    """Parts of a seed."""
    sizes = {"validation": VALIDATION, "calibration": CALIBRATION, "home": HOME, "train": 0}
    drawn = images.split_rows(np.arange(len(home.labels)), sizes, seed)
    parts = {name: Part(home.images[r], home.labels[r]) for name, r in drawn.items()}
    return {**parts, "test": test, "another camera": images.corrupted(test, 103), **away}


# --- Figures ------------------------------------------------------------------------------------


def fitted_rule(probs, labels):
    try:
        return selective.RejectionRule.fit(probs, labels, target_risk=TARGET)
    except selective.UnattainableRisk:
        return None


def share(values):
    return float(np.mean(values)) if len(values) else None


def figures(p, y, rule):
    """Columns of table I, ours of the whole, and those of the rule."""
    wrong, sure = p.argmax(-1) != y, p.max(-1) > SURE
    taken = np.zeros(len(y), bool) if rule is None else np.asarray(rule.accept(p))
    found = {
        "accuracy": np.mean(~wrong),
        "accuracy of sure": share(~wrong[sure]),
        "sure": np.mean(sure),
        "ece": metrics.expected_calibration_error(y, p),
        "nll": metrics.negative_log_likelihood(y, p),
        "augrc": selective.augrc(p, y) if len(set(y)) > 1 else None,
        "coverage": np.mean(taken),
        "risk": share(wrong[taken]),
        "sensitivity": share(~wrong[taken & (y == 1)]),
        "specificity": share(~wrong[taken & (y == 0)]),
    }
    return measures.rounded(found)


def resampled(run, weights):
    """What differences are taken of, under resamples of the test rows."""
    p, y, w = run["test"].astype("float64"), run["labels"], weights["test"]
    right, sure = (p.argmax(-1) == y).astype(float), (p.max(-1) > SURE).astype(float)
    return {
        "accuracy": w @ right / len(y),
        "accuracy of sure": w @ (right * sure) / np.maximum(w @ sure, 1e-9),
        "sure": w @ sure / len(y),
        "nll": w @ -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)) / len(y),
        "augrc": measures.augrc_of(w, p.max(axis=1), (1 - right).astype("float32")),
        "coverage": w @ run["taken"] / len(y),
    }


def alarms(rule, p, y, orders):
    """After how many cases a monitor says so, of each of its tests, in `orders` orders."""
    found = {"any": [], "risk": [], "coverage": [], "scores": []}
    for order in range(orders):
        rows_ = np.random.default_rng(order).permutation(len(y))
        monitor = rule.monitor()
        wealth = monitor.follow(p[rows_], y[rows_])
        first = {}
        for test, part in SHARES.items():
            reached = np.flatnonzero(np.asarray(wealth[test]) >= 1 / (part * monitor.alpha))
            first[test] = int(reached[0]) + 1 if len(reached) else None
        known = [value for value in first.values() if value is not None]
        first["any"] = min(known) if known else None
        for test, value in first.items():
            found[test].append(value)
    return {test: told(values) for test, values in found.items()}


def told(values):
    """Share of orders with an alarm, and after how many cases: median, 5th and 95th percentile."""
    known = [value for value in values if value is not None]
    if not known:
        return {"share": 0.0}
    low, middle, high = np.percentile(known, [5, 50, 95])
    return {"share": len(known) / len(values), "cases": [float(middle), float(low), float(high)]}


def found_by_features(here, there, subsets):
    """{cases: share of subsets in which the two-sample test says p < .05}."""
    found = {}
    for size in SIZES:
        if size <= min(len(here), len(there)):
            seen = 0
            for seed in range(subsets):
                rng = np.random.default_rng(seed)
                drawn = [x[rng.choice(len(x), size, replace=False)] for x in (here, there)]
                seen += selective.classifier_two_sample_test(*drawn, seed=seed).p_value < 0.05
            found[str(size)] = seen / subsets
    return found


# --- Runs ---------------------------------------------------------------------------------------


class Runs:
    """All rows and seeds."""

    def __init__(self, store, sets, known, names, seeds, few):
        self.store, self.sets, self.known, self.names = store, sets, known, names
        self.seeds, self.few, self.plans = seeds, few, {}
        home, test, away = sets
        identity = tasks.identity_of({"home": home, "test": test, **away})
        named = types.SimpleNamespace(name="retinas", identity=identity, target_risk=TARGET)
        self.entry = store.task(named)

    def task(self, seed):
        task = tasks.Task(f"retinas {seed}", split(*self.sets, seed), self.known, TARGET)
        self.entry |= {"rows": task.counts}
        return task

    def plan(self, row, task):
        """The plan of the lowest validation NLL among eight, with the rows of seed 0."""
        base = "Dense" if row == "deep ensemble" else row
        done, start, graphs = self.entry["trials"].setdefault(base, []), task.plan(0), {}
        if not done:
            plans = [start._replace(**options) for options in fundus_pages.GRID[base]]
            for plan in plans[:2] if self.few else plans:
                model = rows.fitted(base, task.x["train"], task.y["train"], plan, graphs=graphs)
                probs, _ = rows.asked(model, task.x["validation"])
                nll = measures.nll_of(probs, task.y["validation"])
                done.append([plan.value, plan.l2, round(nll, 5)])
        value, l2, _ = min(done, key=lambda trial: trial[-1])
        return start._replace(value=value, l2=l2)

    def path(self, row, seed):
        return self.store.predictions("retinas", row, seed)

    def answers(self, row, task, seed, plan):
        """Probabilities of all parts, and the network of a row that has one."""
        train, seeds = (task.x["train"], task.y["train"]), [seed]
        if row == "deep ensemble":
            seeds = [seed, *(1000 + seed * rows.MEMBERS + m for m in range(1, rows.MEMBERS))]
        base, each, graphs = "Dense" if len(seeds) > 1 else row, [], {}
        for one in seeds:
            model = rows.fitted(base, *train, plan._replace(seed=one), graphs=graphs)
            each.append(task.asked(model))
        return {part: np.mean([e[part] for e in each], axis=0) for part in each[0]}, model

    def run(self):
        first = self.task(0)
        for seed in range(self.seeds):
            task = first if seed == 0 else self.task(seed)
            for row in self.names:
                if str(seed) not in self.entry["runs"].get(row, {}):
                    self.run_one(row, task, seed, self.plan(row, first))
            keras.utils.clear_session()
        self.compare(first.y)

    def run_one(self, row, task, seed, plan):
        probs, model = self.answers(row, task, seed, plan)
        rule = fitted_rule(probs["calibration"], task.y["calibration"])
        judged = [part for part in JUDGED if part in probs]
        found = {part: figures(probs[part], task.y[part], rule) for part in judged}
        taken = np.zeros(len(task.y["test"])) if rule is None else rule.accept(probs["test"])
        path = self.path(row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, test=probs["test"], labels=task.y["test"], taken=np.asarray(taken, float))
        if row == "Dense":
            self.watch(task, seed, model, rule, probs, judged)
        self.entry["runs"].setdefault(row, {})[str(seed)] = found
        self.store.write()
        print(row, seed, found["test"], flush=True)

    def watch(self, task, seed, model, rule, probs, judged):
        """What a monitor and a shift report say of the cases at home and abroad."""
        orders, subsets = (20, 5) if self.few else (ORDERS, SUBSETS)
        hidden = keras.Model(model.inputs[0], model.layers[0].output)
        inside = {part: np.asarray(hidden(task.x[part])) for part in ("calibration", *judged)}
        here = task.x["calibration"], task.y["calibration"]
        for part in judged:
            there = task.x[part], task.y[part]
            report = selective.shift_report(model, here, there, from_logits=True)
            found = {
                "p": float(report.feature_shift.p_value),
                "estimated": round(float(report.thresholded_confidence.accuracy), 4),
                "true": round(float(np.mean(probs[part].argmax(-1) == task.y[part])), 4),
                "subsets": found_by_features(inside["calibration"], inside[part], subsets),
            }
            if rule is not None:
                found["monitor"] = alarms(rule, probs[part], task.y[part], orders)
            self.entry["watched"].setdefault(part, {})[str(seed)] = found

    def compare(self, labels):
        read = {
            row: [dict(np.load(self.path(row, seed))) for seed in range(self.seeds)]
            for row in self.names
            if all(self.path(row, seed).is_file() for seed in range(self.seeds))
        }
        if "Dense" in read and len(read) > 1:
            counts = {"test": len(labels["test"])}
            self.entry["differences"] = paired.differences(
                read, resampled, counts, len(ROWS) - 1, "Dense"
            )
        self.store.write()


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of features and predictions, outside of here")
    add("--abroad", type=pathlib.Path, help="an .npz file of another hospital; needs a new --json")
    add("--rows", nargs="*", choices=ROWS, metavar="ROW", help="only these rows")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--quick", action="store_true", help="digits, one seed, two rows")
    add("--report", action="store_true", help="write the tables into the page, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    given = parse(argv)
    if given.report:
        found = json.loads(given.json.read_text(encoding="utf-8"))
        return pages.write_all(found, "fundus", TABLES)
    folder, seeds = images.default_folder(), 1 if given.quick else given.seeds
    names = given.rows or (QUICK if given.quick else ROWS)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        sets = digits() if given.quick else retinas(folder, given.abroad)
        features = pixels if given.quick else Features(folder, cache)
        home, test, away = sets
        camera = images.corrupted(test, 103)
        each = [part.images for part in (home, test, camera, *away.values())]
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "target": TARGET, "sure": SURE}
        settings |= {
            "calibration": CALIBRATION,
            "orders": ORDERS,
            "abroad": given.abroad and given.abroad.name,
        }
        path = cache / "fundus.json" if given.quick else given.json
        kinds = ("trials", "runs", "differences", "watched")
        store = tasks.Store(path, cache, settings, kinds)
        Runs(store, sets, Known(features, each), names, seeds, given.quick).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
