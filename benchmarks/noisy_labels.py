"""Paper 004 where labels are noisy: is it the covariance, is it the temperature?

    python benchmarks/noisy_labels.py --cache ~/features   # runs what is not there yet
    python benchmarks/noisy_labels.py --report             # writes the tables into the page
    python benchmarks/noisy_labels.py --quick              # digits, two rows: does it run here?

One label an image: CIFAR-10N, "aggregate" (9 % of labels wrong) and "worst" (40 %). Several:
mosaics of four images of "worst", named by the classes in them; fundus images of IDRiD, with four
steps of a retinopathy and two of an oedema. The network is that of `methods.py`: a hidden layer and
a head on frozen features. Heads: "Dense"; independent noise ("diagonal"); noise of one, of three
and of as many factors as there are classes ("full": any covariance); three, parameter-efficient.

All rows are tuned alike: four temperatures times four penalties of weights, and the best of these
with a third of the steps, 17 trials with seed 0; the one of the lowest NLL on held-out labels is
kept, which are as noisy as those that train. The logits of "Dense" are divided by the temperature,
too, so that it is a control of what a temperature does without noise. Then five seeds at that, and
at each temperature with its own best penalty. Test labels are clean. All can be stopped at any
time, and goes on where it was.
"""

import argparse
import collections
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from evidence import images, measures, multilabel, noise_pages, pages, paired, rows, tasks
from evidence.features import Features, pixels
from evidence.traced import Traced, class_loss
from scipy.special import softmax

from tfuq import interpret
from tfuq import layers as uncertain

RESULTS = noise_pages.RESULTS
TEMPERATURES = (0.25, 0.5, 1.0, 2.0)
PENALTIES = (0.0, 1e-2, 3e-2, 1e-1)
SEEDS, TOP, TEST_SAMPLES = 5, 5, 256
ROWS, TABLES = noise_pages.ROWS, noise_pages.TABLES
FULL = "full"  # as many factors as classes
FACTORS = {
    "diagonal": 0, "1 factor": 1, "3 factors": 3, FULL: None, "efficient": 3
}  # fmt: skip
QUICK = ("Dense", "3 factors")
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
IDRID = (
    "mild", "moderate", "severe", "proliferative", "oedema", "oedema near the centre"
)  # fmt: skip
Kind = collections.namedtuple("Kind", "loss nll figures resampled head")


def label_loss():
    return keras.losses.BinaryCrossentropy(from_logits=True)


def in_top(logits, labels):
    """Whether each label is among the `TOP` most likely classes."""
    own = logits[np.arange(len(labels)), labels][:, None]
    return (logits > own).sum(axis=1) < TOP


def class_figures(logits, labels):
    found = measures.of_answers({"test": softmax(logits, axis=1)}, {"test": labels})
    return found | {"top5": round(float(in_top(logits, labels).mean()), 5)}


def class_resampled(logits, labels, weights):
    found = measures.resampled({"test": softmax(logits, axis=1)}, {"test": labels}, weights)
    return found | {"top5": weights["test"] @ in_top(logits, labels) / len(labels)}


def class_nll(logits, labels):
    return measures.nll_of(softmax(logits, axis=1), labels)


KINDS = {
    "classes": Kind(
        class_loss, class_nll, class_figures, class_resampled, uncertain.MCSoftmaxDenseFA
    ),
    "labels": Kind(
        label_loss, multilabel.nll_of, multilabel.figures, multilabel.resampled,
        uncertain.MCSigmoidDenseFA,
    ),
}  # fmt: skip


def kind_of(task):
    return "labels" if task.y["train"].ndim == 2 else "classes"


# --- Networks -----------------------------------------------------------------------------------


def built(row, features, plan, head):
    """A hidden layer and the head of a row; `plan.value` is its temperature."""
    options = {"kernel_regularizer": rows.penalty(plan)}
    if row == "Dense":
        parts = keras.layers.Dense(plan.classes, **options), keras.layers.Rescaling(1 / plan.value)
        return rows.sequential(features, rows.hidden(plan), *parts)
    factors = plan.classes if FACTORS[row] is None else min(FACTORS[row], plan.classes)
    noisy = head(
        plan.classes, factors, plan.value, parameter_efficient=row == "efficient",
        train_mc_samples=rows.TRAIN_SAMPLES, test_mc_samples=TEST_SAMPLES, logits_only=True,
        seed=plan.seed, **options,
    )  # fmt: skip
    return rows.sequential(features, rows.hidden(plan), noisy)


class Runs:
    """The runs of one set."""

    def __init__(self, store, task, names, seeds):
        self.store, self.task, self.names, self.seeds = store, task, names, seeds
        self.kind = KINDS[kind_of(task)]
        self.entry = store.task(task)
        parts = ("train", "validation", "test")
        self.entry |= {"rows": {part: task.counts[part] for part in parts}}
        self.entry |= {"classes": task.classes, "kind": kind_of(task)}
        self.traced = Traced(self.kind.loss)

    def fit(self, row, plan):
        keras.utils.set_random_seed(plan.seed)
        fresh = built(row, self.task.x["train"].shape[1], plan, self.kind.head)
        model = self.traced.of((row, plan.value), fresh)
        rows.train(model, self.task.x["train"], self.task.y["train"], plan)
        return model

    def logits(self, model, part):
        x = self.task.x[part]
        padded = np.resize(x, (-(-len(x) // rows.ASKED) * rows.ASKED, x.shape[1]))
        return model.predict(padded, batch_size=rows.ASKED, verbose=0)[: len(x)]

    def plan(self, temperature, l2, stages, seed):
        return self.task.plan(seed)._replace(value=temperature, l2=l2, stages=stages)

    def tried(self, row, temperature, l2, stages):
        """The noisy NLL of a trial, which runs if it has not."""
        done = self.entry["trials"].setdefault(row, [])
        for trial in done:
            if trial[:3] == [temperature, l2, stages]:
                return trial
        model = self.fit(row, self.plan(temperature, l2, stages, 0))
        nll = self.kind.nll(self.logits(model, "validation"), self.task.y["validation"])
        done.append([temperature, l2, stages, round(nll, 5)])
        self.keep(row, done[-1], 0, model)
        return done[-1]

    def best(self, row):
        """{temperature: its best trial}, and under None the best of all and of a shorter one."""
        found = {}
        for value in TEMPERATURES:
            trials = [self.tried(row, value, l2, rows.STAGES) for l2 in PENALTIES]
            found[value] = min(trials, key=lambda trial: trial[-1])
        first = min(found.values(), key=lambda trial: trial[-1])
        shorter = self.tried(row, *first[:2], rows.STAGES // 3)
        self.store.write()
        return {**found, None: min(first, shorter, key=lambda trial: trial[-1])}

    def path(self, row, trial, seed):
        name = f"{row} {trial[0]:g} {trial[1]:g} {trial[2]}"
        return self.store.predictions(f"noisy-{self.task.key}", name, seed)

    def keep(self, row, trial, seed, model):
        path = self.path(row, trial, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, logits=self.logits(model, "test").astype("float32"))

    def answers(self, row, trial, seed):
        """Logits of the test rows, which are computed unless they are there."""
        path = self.path(row, trial, seed)
        if not path.is_file():
            self.keep(row, trial, seed, self.fit(row, self.plan(*trial[:3], seed)))
        with np.load(path) as file:
            return file["logits"].astype("float64")

    def run(self):
        stacks, judge = {}, self.kind.figures
        for row in self.names:
            best, curve = self.best(row), {}
            for value in TEMPERATURES:
                each = [self.answers(row, best[value], s) for s in range(self.seeds)]
                found = [judge(logits, self.task.y["test"]) for logits in each]
                curve[f"{value:g}"] = noise_pages.summary(found, best[value])
                stacks[f"{row}, {value:g}"] = each
            stacks[row] = [self.answers(row, best[None], s) for s in range(self.seeds)]
            self.entry["curves"][row] = curve
            self.entry["runs"][row] = {
                str(seed): judge(logits, self.task.y["test"])
                for seed, logits in enumerate(stacks[row])
            }
            self.store.write()
            print(self.task.name, row, best[None], self.entry["runs"][row]["0"], flush=True)
        self.compare(stacks)
        if "Dense" in stacks and "covariances" not in self.entry:
            self.entry["covariances"] = self.covariances(stacks["Dense"])
        self.store.write()

    def compare(self, stacks):
        """Paired differences with Dense, also at the row's temperature, and with others."""
        labels, counts = self.task.y["test"], {"test": len(self.task.y["test"])}
        comparisons = len(noise_pages.BASES) * len(ROWS)

        def resampled(logits, weights):
            return self.kind.resampled(logits, labels, weights)

        def less(base, others):
            runs = {row: stacks[row] for row in (base, *others)}
            return paired.differences(runs, resampled, counts, comparisons, base)

        heads = [row for row in self.names if row != "Dense"]
        self.entry["differences"].clear()
        wanted = {"Dense": heads, "diagonal": [r for r in heads if r != "diagonal"]}
        for base, others in wanted.items():
            if base in stacks and others:
                self.entry["differences"][base] = less(base, others)
        chosen = {row: noise_pages.chosen(self.entry, row)[0] for row in self.names}
        for name, rows_ in noise_pages.OTHERS.items():
            self.entry["differences"][name] = {
                row: less(base, [row])[row]
                for row in self.names
                if (base := rows_(row, chosen[row])) in stacks and base != f"{row}, {chosen[row]:g}"
            }

    # --- Tables 4 and 5 and figure 2 of the paper ---

    def covariances(self, others):
        """What the noise of the heads has learned of which classes are taken for each other."""
        found = {}
        for row in self.names:
            if row not in ("Dense", "diagonal"):
                found[row] = [
                    self.covariance(row, seed, others[seed]) for seed in range(self.seeds)
                ]
        return {row: noise_pages.over_seeds(each) for row, each in found.items()}

    def covariance(self, row, seed, other):
        model = self.fit(row, self.plan(*self.best(row)[None][:3], seed))
        x, y, names = self.task.x["test"], self.task.y["test"], self.task.names
        pairs = interpret.label_noise_pairs(model, x, names=names, batch_size=rows.ASKED)
        found = {
            "pairs": [[p.first, p.second, round(p.covariance, 4)] for p in pairs.pairs],
            "confusion": self.agreement(pairs.covariance),
        }
        if self.entry["kind"] == "classes":
            ranks = interpret.label_noise_ranks(
                model, (x, y), other, from_logits=True, batch_size=rows.ASKED
            )
            found["histogram"] = ranks.histogram().tolist()
            found["examples"] = noise_pages.examples_of(ranks, names)
        return found

    def agreement(self, covariance):
        """Spearman's correlation of |covariance| with how often two labels are mistaken.

        Of one label: how often people gave one class for the other; it needs the true labels of the
        training rows. Of several labels: the size of the correlation of the labels themselves.
        """
        above = np.triu_indices(self.task.classes, 1)
        y = self.task.y["train"]
        if self.entry["kind"] == "classes":
            if self.task.true is None:
                return None
            counts = np.zeros((self.task.classes,) * 2)
            np.add.at(counts, (self.task.true, y), 1)
            related = (counts + counts.T)[above]
        else:
            related = np.abs(np.corrcoef(y.T))[above]
        return round(float(scipy.stats.spearmanr(np.abs(covariance)[above], related)[0]), 4)


# --- Sets ---------------------------------------------------------------------------------------


def one_label(folder, labels):
    parts = images.cifar10(folder, labels)
    return {name: parts[name] for name in ("train", "validation", "test")}


TASKS = {
    "CIFAR-10N worst": (lambda folder: one_label(folder, "worst"), CIFAR10),
    "Mosaics of CIFAR-10N worst": (multilabel.cifar10_mosaics, CIFAR10),
    "CIFAR-10N aggregate": (lambda folder: one_label(folder, "aggre"), CIFAR10),
    "IDRiD, six labels": (multilabel.idrid, IDRID),
}


def noisy_digits(folder):
    """Digits, of whose labels that train a fifth are the next digit's."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, rng = (x.reshape(-1, 8, 8, 1) * 15).astype("uint8"), np.random.default_rng(0)
    noisy = np.where(rng.random(len(y)) < 0.2, (y + 1) % 10, y)
    cut = np.split(np.arange(len(y)), [1000, 1300])
    each = zip(("train", "validation", "test"), cut, (noisy, noisy, y), strict=True)
    return {name: images.Part(images.in_colour(x[r]), labels[r]) for name, r, labels in each}


def digit_mosaics(folder):
    parts = noisy_digits(folder)
    return {name: multilabel.mosaics(part, 10, times=2) for name, part in parts.items()}


DIGITS = {
    "digits": (noisy_digits, list("0123456789")),
    "digits, mosaics": (digit_mosaics, list("0123456789")),
}


def task_of(name, make, names, features, folder):
    task = tasks.Task(name, make(folder), features, None)
    task.names, task.true = names, None
    if kind_of(task) == "labels":
        task.classes = task.y["train"].shape[1]
    if name.startswith("CIFAR-10N"):
        clean = images.read(folder, "cifar10_human")["cifar10n_clean"]
        task.true = clean[np.random.default_rng(0).permutation(50000)[:20000]]
    return task


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done (%(default)s)")
    add("--cache", type=pathlib.Path, help="folder of features and predictions, outside of here")
    add("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS), help="only these sets")
    add("--rows", nargs="*", choices=list(ROWS), metavar="ROW", help="only these heads")
    add("--seeds", type=int, default=SEEDS, help="default: %(default)s")
    add("--quick", action="store_true", help="digits, one seed, two heads")
    add("--report", action="store_true", help="write the tables into the page, run nothing")
    return parser.parse_args(argv)


def main(argv=None):
    given = parse(argv)
    if given.report:
        found = json.loads(given.json.read_text(encoding="utf-8"))
        return pages.write_all(found, "noisy_labels", TABLES)
    folder, known, seeds = images.default_folder(), TASKS, given.seeds
    if given.quick:
        known, given.tasks, seeds = DIGITS, list(DIGITS), 1
    names = given.rows or (QUICK if given.quick else ROWS)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        features = pixels if given.quick else Features(folder, cache)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "seeds": seeds}
        settings |= {"temperatures": list(TEMPERATURES), "penalties": list(PENALTIES)}
        path = cache / "noisy_labels.json" if given.quick else given.json
        store = tasks.Store(path, cache, settings, ("trials", "runs", "curves", "differences"))
        for name in given.tasks:
            Runs(store, task_of(name, *known[name], features, folder), names, seeds).run()
            keras.utils.clear_session()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
