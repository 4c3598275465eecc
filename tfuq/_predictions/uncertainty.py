"""Uncertainty of a stack of predictions: entropies, their parts, votes.

A stack of predictions is `(samples, batch, ..., classes)`, probabilities, whoever made it: draws of
a Bayesian network, of dropout, an ensemble, snapshots, or augmented images. All entropies are in
nats; all measures of uncertainty grow with it.

Binary predictions have one class in the last axis, several labels have `multi_label=True`: each is
then a distribution over two classes, and the last axis stays in what is per example.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfuq._arguments import ArrayLike, Self, to_float64, told
from tfuq._predictions import probabilities as home
from tfuq._predictions.probabilities import is_binary


class _Measures(NamedTuple):
    """The arrays of `Uncertainty`."""

    probs: np.ndarray
    """Mean probabilities E_w p(y | x, w): `(batch, ..., classes)`."""
    label: np.ndarray
    """The most probable class under `probs`, int; 0 or 1 for binary predictions."""
    confidence: np.ndarray
    """The largest of `probs` (for binary ones, of p and 1 - p), in [0, 1]."""
    predictive_entropy: np.ndarray
    """Total: H[E_w p(y | x, w)], nats."""
    expected_entropy: np.ndarray
    """Aleatoric: E_w H[p(y | x, w)], nats."""
    mutual_information: np.ndarray
    """Epistemic: I[y, w | x], their difference, nats, never below 0."""
    variation_ratio: np.ndarray
    """Share of samples whose most probable class is not the most frequent one, in [0, 1)."""
    std: np.ndarray
    """Standard deviation over the samples of each class's probability: `(batch, ..., classes)`."""


@told
class Uncertainty(_Measures):
    """Label, confidence and uncertainty of each example, as arrays `(batch, ...)`.

    With `multi_label` or one class, the arrays are `(batch, ..., labels)`. Rejection rules and
    conformal predictors take this object as it is.

    Attributes:
        multi_label: Whether the labels do not exclude one another.
        note: Why the epistemic part is 0, if it is.

    Example:

    >>> from tfuq.predictive import decompose
    >>> print(decompose([[[0.9, 0.1]], [[0.7, 0.3]]]).confidence)
    [0.8]

    See also: `tfuq.predictive.predict_uncertainty`, `tfuq.predictive.decompose`,
    `tfuq.selective.RejectionRule`.
    """

    multi_label = False
    note = ""

    @property
    def probabilities(self) -> np.ndarray:
        """Another name of `probs`: that of exports and of `score_dataset`."""
        return self.probs

    @property
    def margin(self) -> np.ndarray:
        """The largest of `probs` less the second largest (of binary ones, |2 p - 1|), in [0, 1]."""
        if self.confidence.shape == self.probs.shape:
            return np.abs(2 * self.probs - 1)
        top = np.sort(self.probs, axis=-1)
        return top[..., -1] - top[..., -2]

    def told(self, multi_label: bool = False, note: str = "") -> Self:
        """The same arrays, with what is known of them all."""
        found = type(self)(*self)
        found.multi_label, found.note = bool(multi_label), note
        return found

    def _told_arguments(self):
        return {"multi_label": True} if self.multi_label else {}

    def _told_lines(self):
        parts = {
            "mean confidence": self.confidence,
            "predictive entropy": self.predictive_entropy,
            "mutual information": self.mutual_information,
        }
        means = [f"{name} {_mean_of(values):.3g}" for name, values in parts.items()]
        kind = "labels" if self.multi_label else "classes"
        shape = self.probs.shape
        head = f"{len(self.probs)} examples, {shape[-1]} {kind}: probs {shape}"
        return [head, ", ".join(means), *([self.note] if self.note else [])]

    def _told_table(self):
        if self.confidence.ndim != 1:
            return (), ()
        names = ("label", "confidence", *(name for name in _TOLD if name != "confidence"))
        columns = [getattr(self, name) for name in names]
        return ("example", *names), [(i, *row) for i, row in enumerate(zip(*columns, strict=True))]


_TOLD = ("confidence", "predictive_entropy", "expected_entropy", "mutual_information")


def _mean_of(values):
    known = values[np.isfinite(values)]
    return known.mean() if known.size else np.nan


def entropy(probs: ArrayLike, multi_label: bool = False) -> np.ndarray:
    """H[p] = -sum_c p_c log p_c in nats, with 0 log 0 = 0, over the last axis.

    Args:
        probs: Probabilities `(..., classes)`; with one class, of class 1 of two.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        Array `(...)`; for binary predictions `(..., labels)`.

    Raises:
        ValueError: If `probs` are empty, are not in [0, 1] or do not sum to 1 (to 0.01, the
            rounding of bfloat16).

    Example:

    >>> from tfuq.predictive import entropy
    >>> print(entropy([[0.5, 0.5], [1.0, 0.0]]).round(3))
    [0.693 0.   ]

    See also: `tfuq.predictive.predictive_entropy`, `tfuq.predictive.expected_entropy`.
    """
    probs = _checked("probs", probs, 1, multi_label)
    return np.asarray(home.entropy(probs, is_binary(probs.shape, multi_label)))


def predictive_entropy(stack: ArrayLike, multi_label: bool = False) -> np.ndarray:
    """H[E_w p(y | x, w)] in nats: the total uncertainty of a stack of predictions.

    Args:
        stack: Probabilities `(samples, batch, ..., classes)`.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        Array `(batch, ...)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import predictive_entropy
    >>> print(predictive_entropy(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.693]

    See also: `tfuq.predictive.decompose`, `tfuq.predictive.mutual_information`.
    """
    return entropy(_checked("stack", stack, 2, multi_label).mean(0), multi_label)


def expected_entropy(stack: ArrayLike, multi_label: bool = False) -> np.ndarray:
    """E_w H[p(y | x, w)] in nats: the aleatoric part.

    Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import expected_entropy
    >>> print(expected_entropy(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.325]

    See also: `tfuq.predictive.decompose`, `tfuq.predictive.mutual_information`.
    """
    return entropy(_checked("stack", stack, 2, multi_label), multi_label).mean(0)


def mutual_information(stack: ArrayLike, multi_label: bool = False) -> np.ndarray:
    """I[y, w | x] = H[E_w p(y | x, w)] - E_w H[p(y | x, w)] in nats: the epistemic part.

    (BALD, Houlsby et al. 2011.) Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import mutual_information
    >>> print(mutual_information(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.368]

    See also: `tfuq.predictive.decompose`, `tfuq.predictive.predictive_entropy`.
    """
    difference = predictive_entropy(stack, multi_label) - expected_entropy(stack, multi_label)
    return np.maximum(difference, 0)


def variation_ratio(stack: ArrayLike, multi_label: bool = False) -> np.ndarray:
    """1 - (votes of the most frequent label) / samples (Freeman 1965).

    Each sample votes for its most probable class. Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import variation_ratio
    >>> print(variation_ratio(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.5]

    See also: `tfuq.predictive.decompose`, `tfuq.predictive.mutual_information`.
    """
    stack = _checked("stack", stack, 2, multi_label)
    if is_binary(stack.shape, multi_label):
        share = (stack > 0.5).mean(0)
        return 1 - np.maximum(share, 1 - share)
    votes = np.argmax(stack, -1)[..., None] == np.arange(stack.shape[-1])
    return 1 - votes.mean(0).max(-1)


def decompose(stack: ArrayLike, multi_label: bool = False) -> Uncertainty:
    """Splits the uncertainty of a stack of predictions into its aleatoric and epistemic parts.

    Args:
        stack: Probabilities `(samples, batch, ..., classes)`.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        `Uncertainty`.

    Raises:
        ValueError: If `stack` is empty or has fewer than two axes, or if its values are outside [0,
            1] or do not sum to 1 (to 0.01, the rounding of bfloat16).

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import decompose
    >>> stack = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]])
    >>> parts = decompose(stack)
    >>> print(parts.predictive_entropy.round(3), parts.mutual_information.round(3))
    [0.693 0.693] [0.368 0.   ]

    See also: `tfuq.predictive.predict_uncertainty`, `tfuq.predictive.sample_predictions`,
    `tfuq.ensembles.DeepEnsemble`.
    """
    stack = _checked("stack", stack, 2, multi_label)
    if is_binary(stack.shape, multi_label):
        votes = (stack > 0.5).mean(0)
    else:
        votes = (np.argmax(stack, -1)[..., None] == np.arange(stack.shape[-1])).mean(0)
    sums = Sums(stack.mean(0), entropy(stack, multi_label).mean(0), votes, stack.var(0))
    return uncertainty_of(sums, multi_label)


class Sums(NamedTuple):
    """Means over the samples: probabilities, entropies, votes, squared deviations."""

    probs: object
    entropy: object
    votes: object
    variance: object


def decompose_known(stack, multi_label):
    """As `decompose`, but that what is not finite is unknown: NaN, with the label -1."""
    binary = is_binary(stack.shape, multi_label)
    known = np.isfinite(stack).all(axis=0)
    known = known if binary else known.all(axis=-1)
    filled = _filled(known, stack, binary)
    return _only(known, decompose(filled, multi_label))


def _only(known, uncertainty):
    """`Uncertainty` of the entries that are `known`; of the others NaN, with the label -1."""

    def told(values, nothing=np.nan):
        mask = known if values.ndim == known.ndim else known[..., None]
        return np.where(mask, values, nothing)

    found = {name: told(values) for name, values in uncertainty._asdict().items()}
    found["label"] = told(uncertainty.label, -1)
    return Uncertainty(**found).told(uncertainty.multi_label, uncertainty.note)


def uncertainty_of(sums, multi_label):
    """`Uncertainty` from `Sums`; what is not finite is unknown: NaN, with the label -1."""
    binary = is_binary(sums[0].shape, multi_label)
    known = np.isfinite(sums[0]) if binary else np.isfinite(sums[0]).all(axis=-1)
    filled = _filled(known, sums[0], binary)
    return _only(known, _measured((filled, *sums[1:]), multi_label))


def _filled(known, probs, binary):
    """`probs`, with even ones where they are not `known`."""
    even = 0.5 if binary else 1 / probs.shape[-1]
    return np.where(known if binary else known[..., None], probs, even)


def _measured(sums, multi_label):
    probs, expected, votes, variance = (np.asarray(s, "float64") for s in sums)
    total = entropy(probs, multi_label)
    if is_binary(probs.shape, multi_label):
        label, confidence = (probs > 0.5).astype("int64"), np.maximum(probs, 1 - probs)
        frequent = np.maximum(votes, 1 - votes)
    else:
        label, confidence, frequent = np.argmax(probs, -1), probs.max(-1), votes.max(-1)
    return Uncertainty(
        probs=probs,
        label=label,
        confidence=confidence,
        predictive_entropy=total,
        expected_entropy=expected,
        mutual_information=np.maximum(total - expected, 0),
        variation_ratio=1 - frequent,
        std=np.sqrt(np.maximum(variance, 0)),
    ).told(multi_label)


def _checked(name, probs, min_axes, multi_label):
    """The argument `name` as probabilities in float64, or a ValueError."""
    probs = to_float64(name, probs)
    if probs.ndim < min_axes or probs.size == 0:
        axes = "(samples, batch, ..., classes)" if min_axes == 2 else "(..., classes)"
        raise ValueError(
            f"Argument `{name}` must have shape {axes} and not be empty. "
            f"Received: {name} of shape {probs.shape}"
        )
    home.check_probabilities(name, probs, is_binary(probs.shape, multi_label), ("multi_label",))
    return np.clip(probs, 0.0, 1.0)


def concatenated(rows):
    """Column by column, the arrays of all batches as one; None stays None."""
    columns = zip(*rows, strict=True)
    return [None if part[0] is None else np.concatenate(part) for part in columns]
