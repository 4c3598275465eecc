"""Sets of images as features, and the file of results that a benchmark goes on with.

`methods.py`, `saliency.py` and their like read the same sets, in the same projection.
"""

import functools
import hashlib
import json
import os
import pathlib

import numpy as np
from sklearn.decomposition import PCA

from evidence import images, own, pages, rows
from evidence.features import Features, pixels

SEEDS, COMPONENTS, TARGET = 5, 256, 0.1


class Store:
    """The results, in a file that is whole at any time, and predictions beside the features."""

    def __init__(self, path, cache, settings, kinds=("runs", "differences")):
        self.path, self.cache, self.kinds = pathlib.Path(path), pathlib.Path(cache), kinds
        self.found = {"settings": settings, "tasks": {}}
        if self.path.is_file():
            self.found = json.loads(self.path.read_text(encoding="utf-8"))
            if self.found["settings"] != settings:
                raise ValueError(
                    "Argument `--json` must name a new file, or one made with the same settings. "
                    f"Received: {path}, made with {self.found['settings']}, now {settings}"
                )

    def task(self, task):
        """What is known of a set; ValueError if that is of another of the same name."""
        known = self.found["tasks"].setdefault(task.name, {kind: {} for kind in self.kinds})
        now = {"identity": task.identity, "target_risk": task.target_risk}
        if any(known.setdefault(key, value) != value for key, value in now.items()):
            raise ValueError(
                f"Argument `--json` must name a new file: {self.path} has a set {task.name!r} of "
                f"other images, labels or risk. Received: {now}, known "
                f"{[known[key] for key in now]}"
            )
        return known

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(pages.compact(self.found), encoding="utf-8")
        os.replace(partial, self.path)

    def predictions(self, task, row, seed):
        name = "".join(c if c.isalnum() else "_" for c in f"{task}-{row}-{seed}")
        return self.cache / "predictions" / f"{name}.npz"


def identity_of(parts):
    """A number in words of all images and labels of a set."""
    found = hashlib.sha256()
    for part, each in parts.items():
        found.update(f"{part}{each.images.shape}{each.labels is None}".encode())
        found.update(np.ascontiguousarray(each.images).tobytes())
        if each.labels is not None:
            found.update(np.asarray(each.labels, "int64").tobytes())
    return found.hexdigest()[:16]


class Task:
    """A set of images as features: what `evidence/images.py` says, projected."""

    def __init__(self, name, parts, features, target_risk, is_own=False):
        self.name, self.target_risk = name, target_risk
        self.images = {part: each.images for part, each in parts.items()}
        self.identity = identity_of(parts)
        self.key = f"{name}-{self.identity}" if is_own else name  # of its files in a cache
        read = {part: features(each.images) for part, each in parts.items()}
        raw = {part: values for part, (values, _) in read.items()}
        self.energies = {part: values for part, (_, values) in read.items()}
        self.raw = raw
        count = min(COMPONENTS, raw["train"].shape[1], len(raw["train"]) - 1)
        pca = PCA(count, svd_solver="randomized", random_state=0).fit(raw["train"])
        scale = np.sqrt(pca.explained_variance_.mean())
        kernel = (pca.components_.T / scale).astype("float32")
        self.projection = kernel, -(pca.mean_ @ kernel).astype("float32")  # as a layer's weights
        self.x = {part: (pca.transform(v) / scale).astype("float32") for part, v in raw.items()}
        self.y = {n: p.labels.astype("int64") for n, p in parts.items() if p.labels is not None}
        self.classes = 1 + max(int(labels.max()) for labels in self.y.values())
        self.counts = {part: len(values) for part, values in raw.items()}

    def plan(self, seed):
        return rows.Plan(None, 0.0, rows.STAGES, seed, len(self.x["train"]), self.classes)

    def asked(self, model, parts=None):
        """Mean probabilities of these parts, or of all but the training's, in one call."""
        parts = parts or [part for part in self.x if part != "train"]
        probs, _ = rows.asked(model, np.concatenate([self.x[part] for part in parts]))
        ends = np.cumsum([len(self.x[part]) for part in parts])[:-1]
        return dict(zip(parts, np.split(probs, ends), strict=True))


def quick_tasks():
    """Digits of scikit-learn: 0 to 7 are known, 8 and 9 near, noise is far."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) * 15).astype("uint8")
    noise = np.random.default_rng(0).integers(0, 255, (200, 8, 8, 1), "uint8")
    arrays = {"images": x[y < 8], "labels": y[y < 8], "near": x[y >= 8], "far": noise}
    return {"digits": lambda: own.own_task(arrays, {}, "digits")}


# --- What the scripts are asked for -------------------------------------------------------------


def add_options(parser, results):
    """The options that all scripts have, which read these sets."""
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=results, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of features and predictions, outside of here")
    add("--data", metavar="FOLDER", help="sets of your own, instead of those of TFUQ_DATA")
    add("--top", type=int, choices=(1, 255), help="white, where images of --data are floats")
    add("--tasks", nargs="*", help="only these sets")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--target-risk", type=float, help="of the rule; default: that of each set, or .1")
    add("--pixels", action="store_true", help="pixels are the features: no trunk is needed")
    add("--report", action="store_true", help="write the tables into the pages, run nothing")
    return add


def asked_for(given, cache):
    """Each set that the options name, one after another, as a `Task`; and where the trunk is."""
    folder = images.default_folder()
    if given.seeds < 1:
        raise ValueError(f"--seeds must be at least 1. Received: {given.seeds}")
    if given.quick:
        given.seeds = 1
    if given.data:
        makers = own.own_tasks(given.data, given.top)
    elif given.quick:
        makers, given.pixels = quick_tasks(), True
    else:
        makers = {name: lambda make=make: make(folder) for name, make in images.TASKS.items()}
    if unknown := sorted(set(given.tasks or ()) - set(makers)):
        raise ValueError(f"--tasks must be among {', '.join(makers)}. Received: {unknown}")
    features = pixels if given.pixels else Features(folder, cache)
    targets = {} if given.data else images.TARGETS
    targets = {name: given.target_risk or targets.get(name, TARGET) for name in makers}
    names = given.tasks or list(makers)
    if given.data:  # all are looked at before one is run
        read = {name: makers[name]() for name in names}
        makers = {name: functools.partial(read.pop, name) for name in names}
    each = (Task(n, makers[n](), features, targets[n], bool(given.data)) for n in names)
    return each, None if given.pixels else folder


def results_of(given, default, cache):
    """Where the results are kept: those of quick runs and of own sets are none of the pages'."""
    if given.data and given.json == default:
        return pathlib.Path(
            f"{default.stem}-quick.json" if given.quick else f"{default.stem}-found.json"
        )
    return cache / default.name if given.quick and not given.data else given.json
