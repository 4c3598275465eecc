"""Conformal scores: how strange a label is, the threshold of that, and the sets below it."""

import numpy as np
from keras import ops

SCORES = ("lac", "aps", "raps")
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)  # among which Angelopoulos et al. 2021 choose
ROUNDING = 1e-6  # by which a sum of float32 may differ from one machine to the next


def strangeness(probs, score, penalty=0.0, k_reg=0, share=None):
    """How strange each class is, `(..., classes)`, beside what was predicted, same shape.

    "lac": 1 - p_y. "aps": the probability of y and of all that is likelier, of which p_y counts by
    `share` `(...)`, 1 if None. "raps": the same plus `penalty` for each rank of y beyond `k_reg`.
    Of equal probabilities that of the lower class is taken for the larger.
    """
    if score == "lac":
        return 1 - probs
    order = ops.argsort(-probs, axis=-1)
    ranks = ops.argsort(order, axis=-1)
    running = ops.cumsum(ops.take_along_axis(probs, order, axis=-1), axis=-1)
    running = ops.take_along_axis(running, ranks, axis=-1)
    if share is not None:
        running = running - (1 - share[..., None]) * probs
    if score == "raps":
        beyond = ops.cast(ranks, probs.dtype) + 1.0 - k_reg
        running = running + penalty * ops.maximum(beyond, 0.0)
    return running


def by_example(values, multi_label, classes=True):
    """`(n, ..., labels, classes)` as `(n, entries, labels, classes)`; labels 1 if there is one.

    Without `classes`, values have not that axis.
    """
    kept = values.shape[values.ndim - classes - multi_label :]
    return values.reshape(len(values), -1, *(() if multi_label else (1,)), *kept)


def prediction_sets(probs, scores, limits, class_conditional, multi_label, allow_empty):
    """Sets, a bool for each class, of mean probabilities and scores, as tensors.

    What is not finite has the set of all classes.
    """
    classes = tuple(probs.shape)[-2:] if multi_label else tuple(probs.shape)[-1:]
    expected = classes[:multi_label] + classes[-1:] * class_conditional
    if limits.shape != expected:
        raise ValueError(
            f"Argument `probs` must have as many classes or labels as there are thresholds, "
            f"{limits.shape}. Received: probs with {expected}"
        )
    limits = limits if class_conditional or not multi_label else limits[:, None]
    found = scores <= with_tolerance(limits)
    if not allow_empty:
        top = ops.one_hot(ops.argmax(probs, axis=-1), probs.shape[-1], dtype="bool")
        found = ops.logical_or(found, top)
    known = ops.all(ops.isfinite(probs), axis=-1, keepdims=True)
    return ops.logical_or(found, ops.logical_not(known))


def uniform_of(probs, seed):
    """A number in [0, 1) for each prediction `(...)`, a hash of its probabilities `(..., classes)`.

    The same prediction gets the same number wherever it stands, so that a score that uses it is a
    function of prediction and label alone, as conformal prediction asks.
    """
    bits = np.ascontiguousarray(probs, "float32").view("uint32").astype("uint64")
    factors = np.random.default_rng(seed).integers(0, 2**64, bits.shape[-1], "uint64")
    mixed = (bits * (factors | np.uint64(1))).sum(axis=-1)  # modulo 2^64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return ((mixed >> np.uint64(40)) / 2.0**24).astype("float32")


def fewest_examples(alpha):
    """The fewest calibration examples for which a threshold exists: ceil(1 / alpha) - 1."""
    return int(np.ceil(1 / alpha - 1e-9)) - 1


def smallest_threshold(scores, weights, examples, alpha):
    """The smallest score t with sum_i w_i [s_i > t] <= alpha (n + 1) - 1; inf if there is none.

    Of `examples` n whose entries' weights sum to 1 each, this is conformal risk control
    (Angelopoulos et al. 2024) of the fraction of an example that is missed; with one entry for
    each it is the score of rank ceil((n + 1) (1 - alpha)), split conformal prediction.
    """
    budget = alpha * (examples + 1) - 1 + 1e-9 * (examples + 1)
    if budget < 0 or not len(scores):
        return np.inf
    values, level = np.unique(scores, return_inverse=True)
    mass = np.bincount(level, weights, len(values))
    above = np.append(np.cumsum(mass[:0:-1])[::-1], 0.0)
    return float(values[np.argmax(above <= budget)])


def true_scores(scores, labels):
    """Of scores `(..., classes)` those of the true classes `(...)`."""
    return np.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]


def with_tolerance(limits):
    """Thresholds in float32 that equal scores pass whichever way they were rounded."""
    limits = np.asarray(limits, "float64")
    return (limits + ROUNDING * np.maximum(1, limits)).astype("float32")


def thresholds(scores, labels, alpha, classes=None, known=None):
    """Threshold and number of examples of each label, or of each label and class.

    Args:
        scores: Of the true classes, `(n, entries, labels)`.
        labels: The true classes, of the same shape.
        alpha: Fraction to miss.
        classes: None, or how many classes have a threshold of their own.
        known: Which labels are, bool of the same shape, or None for all.

    Returns:
        Two arrays `(labels, 1)` or `(labels, classes)`.
    """
    keys = [None] if classes is None else range(classes)
    shape = (scores.shape[-1], len(keys))
    found, counts = np.full(shape, np.inf), np.zeros(shape, int)
    for row in range(shape[0]):
        for column, key in enumerate(keys):
            chosen = np.ones(scores.shape[:2], bool) if key is None else labels[..., row] == key
            chosen = chosen if known is None else chosen & known[..., row]
            each = chosen.sum(axis=1)
            weights = np.broadcast_to(1 / np.maximum(each, 1)[:, None], chosen.shape)[chosen]
            counts[row, column] = np.count_nonzero(each)
            found[row, column] = smallest_threshold(
                scores[..., row][chosen], weights, counts[row, column], alpha
            )
    return found, counts


def tuned_rank(probs, labels, alpha):
    """`k_reg` by Angelopoulos et al. 2021, algorithm 4: the rank that true classes seldom pass."""
    ranks = np.argsort(np.argsort(-probs, axis=-1, kind="stable"), axis=-1) + 1
    ranks = true_scores(ranks, labels)
    ones = np.full(ranks.shape, 1 / ranks.shape[1])
    found = smallest_threshold(ranks.ravel(), ones.ravel(), len(ranks), alpha)
    return int(min(found, probs.shape[-1]))


def tuned_penalty(scores_of, labels, alpha):
    """The penalty with the smallest sets (the same, algorithm 5); of several, the least.

    `scores_of(penalty)` are the scores `(n, entries, labels, classes)` of the tuning examples.
    """
    sizes = []
    for penalty in PENALTIES:
        scores = scores_of(penalty)
        limit, _ = thresholds(true_scores(scores, labels), labels, alpha)
        sizes.append(np.mean(scores <= with_tolerance(limit)))
    return PENALTIES[int(np.argmin(np.round(sizes, 9)))]
