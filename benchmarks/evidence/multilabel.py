"""Sets with several labels an image, and what is measured of several labels.

A mosaic is four images of CIFAR-10, two by two; its labels are the classes that are in it, as
people named each of the four. Those that train and choose are as noisy as the people were; those of
the test are the true ones.
"""

import numpy as np
from scipy.special import expit

from evidence import images, measures
from evidence.images import Part
from tfuq import metrics, selective

TILES = 4
COLUMNS = {  # title, digits, whether more is better
    "gap": ("gAP", 4, True),
    "nll": ("NLL a label", 4, False),
    "accuracy": ("labels right", 4, True),
    "augrc": ("AUGRC of labels", 4, False),
}


def present(labels, classes):
    """Which classes are among the labels of each row: (rows, classes) of 0 and 1."""
    return np.eye(classes, dtype="int64")[labels].max(axis=1)


def mosaics(part, classes, times=1, seed=0):
    """Each image of a part in `times` mosaics, each with others."""
    rng, made, named = np.random.default_rng(seed), [], []
    for _ in range(times):
        rows = rng.permutation(len(part.labels) // TILES * TILES).reshape(-1, TILES)
        left, right = (
            np.concatenate(part.images[rows[:, pair]].swapaxes(0, 1), axis=1)
            for pair in ([0, 1], [2, 3])
        )
        made.append(np.concatenate([left, right], axis=2))
        named.append(present(part.labels[rows], classes))
    return Part(np.concatenate(made), np.concatenate(named))


def cifar10_mosaics(folder):
    parts = images.cifar10(folder, "worst")
    return {
        name: mosaics(parts[name], 10, times=2 if name == "train" else 1)
        for name in ("train", "validation", "test")
    }


def idrid(folder):
    """How far a retinopathy has gone, grade by grade, and the risk of an oedema: six labels."""
    file = images.read(folder, "idrid_grading_128_jpeg")

    def part(group, rows):
        grade, oedema = file[f"y_{group}"][rows], file[f"dme_{group}"][rows]
        reached = [grade >= 1, grade >= 2, grade >= 3, grade >= 4, oedema >= 1, oedema >= 2]
        return Part(images.decoded(file, group, rows), np.stack(reached, axis=1).astype(int))

    rows = images.split_rows(np.arange(413), {"validation": 100, "train": 0})
    parts = {name: part("train", each) for name, each in rows.items()}
    return {**parts, "test": part("test", np.arange(103))}


# --- What is measured ---------------------------------------------------------------------------


def average_precision(weights, scores, truth):
    """Global average precision of resamples: of all pairs of an example and a label, in one list.

    gAP = sum over pairs in the order of their scores of (recall gained) * (precision until there).
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    w = weights[:, order // scores.shape[1]].astype("float64")
    hits = w * truth.ravel()[order]
    precision = np.cumsum(hits, axis=1) / np.maximum(np.cumsum(w, axis=1), 1e-12)
    return (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1e-12)


def nll_by_row(logits, truth):
    """Mean binary cross-entropy over the labels of each row, in nats."""
    logits = logits.astype("float64")
    return np.mean(np.logaddexp(0, logits) - truth * logits, axis=1)


def nll_of(logits, truth):
    return float(nll_by_row(logits, truth).mean())


def resampled(logits, truth, weights):
    """`COLUMNS` under resamples of the rows."""
    probs, w = expit(logits.astype("float64")), weights["test"]
    wrong = ((probs > 0.5) != truth).astype("float32")
    each = np.repeat(w, truth.shape[1], axis=1)
    return {
        "gap": average_precision(w, logits, truth),
        "nll": w @ nll_by_row(logits, truth) / len(truth),
        "accuracy": 1 - w @ wrong.mean(axis=1) / len(truth),
        "augrc": measures.augrc_of(each, np.maximum(probs, 1 - probs).ravel(), wrong.ravel()),
    }


def figures(logits, truth):
    probs = expit(logits.astype("float64"))
    found = resampled(logits, truth, {"test": np.ones((1, len(truth)))})
    flat, labels = probs.ravel(), truth.ravel()
    return measures.rounded(
        {
            **{name: values[0] for name, values in found.items()},
            "ece": metrics.expected_calibration_error(labels, np.stack([1 - flat, flat], 1)),
            "augrc": selective.augrc(np.stack([1 - flat, flat], axis=1), labels),
        }
    )
