"""Scores of predicted probabilities: Brier score, negative log-likelihood, and their entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, Tensor, check_choice, check_flags, register, to_float64
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import summed
from tfuq._predictions.probabilities import entropy_terms
from tfuq.metrics._base import PredictionMetric

REDUCTIONS = ("sum", "mean")
BINARY_TERMS = ("both", "positive")


def brier_sums(examples, class_reduction):
    """The weighted sum of squared errors, and that of weights, as `(2,)` in float64."""
    probs, targets, weight = (ops.cast(x, "float64") for x in examples.one_vs_rest())
    scale = probs.shape[-1] if class_reduction == "sum" else 1
    return ops.stack([scale * ops.sum(weight * (probs - targets) ** 2), ops.sum(weight)])


def likelihood_sums(examples):
    """The weighted sum of -log p(true class), and that of weights, as `(2,)` in float64."""
    log_probs = ops.take_along_axis(examples.log_probs(), examples.labels[:, None], axis=-1)
    weight = ops.cast(examples.weight, "float64")
    return ops.stack([-ops.sum(weight * ops.cast(log_probs[:, 0], "float64")), ops.sum(weight)])


def entropy_sums(examples, binary_terms):
    """The weighted sum of entropies, over labels too, and that of weights, as `(2,)` in float64."""
    probs, log_probs = (ops.cast(x, "float64") for x in (examples.probs(), examples.log_probs()))
    terms = entropy_terms(probs, log_probs)
    if examples.columns is not None and binary_terms == "positive":
        terms = terms[:, 1:]
    weight = ops.cast(examples.weight, "float64")
    total = (examples.columns or 1) * ops.sum(weight * ops.sum(terms, axis=-1))
    return ops.stack([total, ops.sum(weight)])


def any_labels(y_pred, multi_label):
    """Labels that fit `y_pred` and are classes: for measures that look at no label."""
    whole = multi_label or len(y_pred.shape) < 2
    return ops.zeros_like(y_pred if whole else ops.sum(y_pred, axis=-1))


def brier_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    class_reduction: str = "sum",
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Brier score: the squared distance between probabilities and what came true.

    Formula:
        "sum":   1 / W sum_i w_i sum_c (p_ic - [c = y_i])^2          in [0, 2]
        "mean":  1 / W sum_i w_i 1/C sum_c (p_ic - [c = y_i])^2      in [0, 1]
    over C classes. The first is Brier's own (1950), the second that of Abboud et al. (section 3.1).
    A binary prediction has one term, (p - y)^2, as in scikit-learn, so that both are the same; two
    soft-max classes have two terms. A multi-label prediction has a term per label.

    Args:
        y_true: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`.
        class_reduction: `"sum"` or `"mean"` over classes, or labels.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float; 0 is perfect.

    Raises:
        ValueError: If `class_reduction` is none of the two; if arrays are empty or do not fit
            together; if they hold NaN, no probabilities, labels that are no class, or negative
            weights.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.brier_score([0, 1], [[0.9, 0.1], [0.4, 0.6]]), 6)
    0.17

    References:
        Brier, Verification of forecasts expressed in terms of probability, 1950.
        Abboud et al., Sparse Bayesian Networks: Efficient Uncertainty Quantification in Medical
        Image Analysis.

    See also: `tfuq.metrics.BrierScore`, `tfuq.metrics.negative_log_likelihood`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_choice("class_reduction", class_reduction, REDUCTIONS)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    data = y_true, y_pred, sample_weight
    total, weight = summed(lambda each: brier_sums(each, class_reduction), *data, **flags)
    return float(total / weight)


def negative_log_likelihood(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Mean negative log-likelihood of the true class, in nats.

    Formula:
        NLL = -1 / W sum_i w_i log p_i(y_i)
    Nothing is clipped: a probability of exactly 0 for what came true costs infinitely much. Where
    probabilities underflow, pass logits. For multi-label predictions the mean is over labels too.

    Args:
        y_true: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in nats, 0 or more, possibly inf.

    Raises:
        ValueError: If arrays are empty or do not fit together; if they hold NaN, no probabilities,
            labels that are no class, or negative weights.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.negative_log_likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]]), 6)
    1.039721

    See also: `tfuq.metrics.NegativeLogLikelihood`, `tfuq.metrics.brier_score`,
    `tfuq.metrics.number_negative_log_likelihood`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    total, weight = summed(likelihood_sums, y_true, y_pred, sample_weight, **flags)
    return float(total / weight)


def entropy_of_expectation(
    y_pred: ArrayLike,
    *,
    binary_terms: str = "both",
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean entropy of predicted probabilities, in nats: the total uncertainty.

    Formula:
        EoE = -1 / W sum_i w_i sum_c p_ic log p_ic     with 0 log 0 = 0
    over C classes, averaged over examples or pixels i. Of a stack of samples, the expectation comes
    first: pass its mean, `stack.mean(axis=0)`. A binary prediction, and each label of a multi-label
    one, has two classes, hence

    ```
    "both":      -p log p - (1 - p) log(1 - p)     its entropy
    "positive":  -p log p                          as Abboud et al. write it (section 3.1)
    ```

    The second is no entropy: it is largest at p = 1 / e and not the same for p and 1 - p. For
    multi-class predictions the two are one. Several labels are summed.

    Args:
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`.
        binary_terms: `"both"` or `"positive"`: what a binary prediction is made of.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.

    Returns:
        A float in nats, from 0 to log(classes), or to labels * log(2).

    Raises:
        ValueError: If `binary_terms` is none of the two; if arrays are empty or do not fit
            together; if they hold NaN, no probabilities or negative weights.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.entropy_of_expectation([[0.5, 0.5], [1.0, 0.0]]), 6)
    0.346574
    >>> round(tfuq.metrics.entropy_of_expectation([0.2], binary_terms="positive"), 6)
    0.321888

    References:
        Abboud et al., Sparse Bayesian Networks: Efficient Uncertainty Quantification in Medical
        Image Analysis.

    See also: `tfuq.metrics.EntropyOfExpectation`, `tfuq.predictive.predictive_entropy`.
    """
    check_choice("binary_terms", binary_terms, BINARY_TERMS)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    check_flags(**flags)
    y_pred = to_float64("y_pred", y_pred)
    labels = np.asarray(any_labels(y_pred, multi_label))
    data = labels, y_pred, sample_weight
    total, weight = summed(lambda each: entropy_sums(each, binary_terms), *data, **flags)
    return float(total / weight)


class _WeightedMean(PredictionMetric):
    """Base of the means over examples, from a sum and its weight."""

    _shape = (2,)

    def compute(self, sums: Any) -> Any:
        return sums[0] / sums[1]


@register
class BrierScore(_WeightedMean):
    """Brier score: the squared distance between probabilities and what came true; streaming.

    The formulas are those of the function `brier_score`.

    Args:
        class_reduction: `"sum"` or `"mean"` over classes, or labels. The other arguments are as at
            `__init__`.

    Returns:
        A scalar, 0 is perfect.

    Raises:
        ValueError: If `class_reduction` is none of the two.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.BrierScore(class_reduction="mean")
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.4, 0.6]])
    >>> round(float(metric.result()), 6)
    0.085

    See also: `tfuq.metrics.brier_score`, `tfuq.metrics.NegativeLogLikelihood`.
    """

    name = "brier_score"

    def __init__(
        self,
        class_reduction: str = "sum",
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_choice("class_reduction", class_reduction, REDUCTIONS)
        super().__init__(from_logits, multi_label, name, dtype)
        self.class_reduction = class_reduction

    def measure(self, examples: Any) -> Any:
        return brier_sums(examples, self.class_reduction)

    def get_config(self) -> dict[str, Any]:
        return {"class_reduction": self.class_reduction, **super().get_config()}


@register
class NegativeLogLikelihood(_WeightedMean):
    """Mean negative log-likelihood of the true class, in nats; streaming.

    The formula is that of the function `negative_log_likelihood`: nothing is clipped, so it is inf
    if what came true had a probability of 0. `from_logits=True` avoids the underflow of soft-max.

    Returns:
        A scalar in nats.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.NegativeLogLikelihood()
    >>> metric.update_state([0, 1], [[0.5, 0.5], [0.75, 0.25]])
    >>> round(float(metric.result()), 5)
    1.03972

    See also: `tfuq.metrics.negative_log_likelihood`, `tfuq.metrics.BrierScore`.
    """

    name = "negative_log_likelihood"

    def measure(self, examples: Any) -> Any:
        return likelihood_sums(examples)


@register
class EntropyOfExpectation(_WeightedMean):
    """Mean entropy of predicted probabilities, in nats; streaming.

    The formulas are those of the function `entropy_of_expectation`. Labels are ignored.

    Args:
        binary_terms: `"both"` or `"positive"`: what a binary prediction is made of. The other
            arguments are as at `__init__`.

    Call arguments:
        y_true: Anything: Keras passes labels to every metric. The others are as at `update_state`.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: If `binary_terms` is none of the two.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.EntropyOfExpectation()
    >>> metric.update_state(None, [[0.5, 0.5], [1.0, 0.0]])
    >>> round(float(metric.result()), 6)
    0.346574

    See also: `tfuq.metrics.entropy_of_expectation`, `tfuq.predictive.predictive_entropy`.
    """

    name = "entropy_of_expectation"

    def __init__(
        self,
        binary_terms: str = "both",
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_choice("binary_terms", binary_terms, BINARY_TERMS)
        super().__init__(from_logits, multi_label, name, dtype)
        self.binary_terms = binary_terms

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: ArrayLike | None = None
    ) -> None:
        y_pred = y_pred if hasattr(y_pred, "shape") else ops.convert_to_tensor(y_pred)
        super().update_state(any_labels(y_pred, self.multi_label), y_pred, sample_weight)

    def measure(self, examples: Any) -> Any:
        return entropy_sums(examples, self.binary_terms)

    def get_config(self) -> dict[str, Any]:
        return {"binary_terms": self.binary_terms, **super().get_config()}
