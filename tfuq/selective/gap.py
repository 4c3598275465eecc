"""Gap between a selective classifier and the oracle, in its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tfuq._arguments import ArrayLike, check_fraction, check_integer, shown, to_float64, told
from tfuq._math.logistic_regression import logistic_regression
from tfuq._predictions.labelled import labelled_predictions
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.probabilities import probabilities
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._void import void_weight

__all__ = ["SelectiveGap", "gap"]

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MOST_CLASSES = 50  # that are told apart where correctness is estimated
PARTS = ("bayes_noise", "approximation", "ranking", "statistical", "shift")


@told
class SelectiveGap(NamedTuple):
    """Gap to the oracle at each coverage, and its parts, which sum to it; arrays `(coverages,)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import gap
    >>> rng = np.random.default_rng(0)
    >>> probs = rng.dirichlet(np.ones(3), size=2000)
    >>> labels = (probs.cumsum(-1) < rng.random((2000, 1))).sum(-1)
    >>> found = gap(probs, labels, votes=probs)  # a model that knows all there is to know
    >>> bool(np.abs(found.ranking).max() < 1e-9), bool(found.bayes_noise.min() > 0.1)
    (True, True)

    See also: `tfuq.selective.gap`.
    """

    coverage: np.ndarray
    """Accepted share."""
    oracle: np.ndarray
    """Accuracy of the oracle, which accepts what is right first."""
    accuracy: np.ndarray
    """Accuracy of what the score accepts."""
    gap: np.ndarray
    """Oracle less accuracy; with `shift` that of the other data."""
    forced: np.ndarray
    """Minus the errors that the oracle has to accept too: below 0 beyond its accuracy, else 0."""
    bayes_noise: np.ndarray
    """Share of labels that the best classifier misses, among the best accepted; NaN without votes,
    when `approximation` holds both."""
    approximation: np.ndarray
    """How much less likely than the best class the predicted one is, among the best accepted."""
    ranking: np.ndarray
    """Accuracy of the best accepted less that of those that the score accepts."""
    ranking_lower: np.ndarray
    """Lower end of its interval."""
    ranking_upper: np.ndarray
    statistical: np.ndarray
    """What the labels of these examples differ by from what was expected of them."""
    statistical_bound: np.ndarray
    """What it exceeds by chance no more often than 1 - confidence (Hoeffding), at one coverage."""
    shift: np.ndarray
    """Accuracy here less that of the other data at the same coverage; NaN without such."""
    votes: bool
    """Whether Bayes noise was known from votes."""
    examples: int

    def to_markdown(self) -> str:
        """A table, in percent of the accepted."""
        names = ["coverage", "oracle", "accuracy", "gap", "forced errors", "Bayes noise"]
        names += ["approximation", "ranking", "statistical", "shift"]
        lines = ["| " + " | ".join(names) + " |", "| " + " | ".join(["--:"] * len(names)) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in self._rows()]
        return "\n".join(lines)

    def _rows(self):
        def said(value):
            return "–" if np.isnan(value) else f"{100 * value:.1f}"

        for k in range(len(self.coverage)):
            plain = (self.coverage, self.oracle, self.accuracy, self.gap, self.forced)
            row = [said(part[k]) for part in (*plain, self.bayes_noise, self.approximation)]
            ends = f"{said(self.ranking_lower[k])} to {said(self.ranking_upper[k])}"
            chance = f"{said(self.statistical[k])} (± {said(self.statistical_bound[k])})"
            yield [*row, f"{said(self.ranking[k])} ({ends})", chance, said(self.shift[k])]

    def sentence(self, coverage: float | Sequence[float] = 0.8) -> str:
        """Which part is the largest at a coverage, for a person."""
        k = int(np.argmin(np.abs(self.coverage - coverage)))
        parts = {name: getattr(self, name)[k] for name in PARTS}
        name = max(parts, key=lambda part: -np.inf if np.isnan(parts[part]) else parts[part])
        advice = {
            "bayes_noise": "noise of the labels, which no model removes",
            "approximation": "errors of the model beyond that noise: a better one removes them"
            if self.votes
            else "errors that no ranking avoids: noise of the labels and of the model, together",
            "ranking": "the ranking: another score, one that sees features, would gain",
            "statistical": "chance: more examples would tell",
            "shift": "the change of the data: fit on such data, or watch it",
        }[name]
        return (
            f"At {100 * self.coverage[k]:.0f} % coverage {100 * self.gap[k]:.1f} points are missing"
            f" to the oracle; the largest part, {100 * parts[name]:.1f}, is {advice}."
        )


def gap(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    scores: Any = "confidence",
    *,
    coverage: float | Sequence[float] = COVERAGES,
    votes: ArrayLike | None = None,
    correctness: ArrayLike | None = None,
    features: ArrayLike | None = None,
    shifted: Sequence[ArrayLike] | None = None,
    confidence: float = 0.95,
    folds: int = 5,
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
) -> SelectiveGap:
    """Gap between a selective classifier and the oracle, and where it comes from.

    Formula: at coverage c, with accuracy a over all examples, the oracle is right in min(1, a / c)
    of the examples that it accepts. A are the examples that the score accepts, B those that the
    probability h of being right would accept, and m is the probability of the likeliest class:

    ```
    gap = forced + bayes_noise + approximation + ranking + statistical (+ shift)
    forced        = min(1, a / c) - 1           errors that the oracle accepts too
    bayes_noise   = mean of 1 - m over B
    approximation = mean of m - h over B
    ranking       = accuracy of B - accuracy of A
    statistical   = mean of h over B - accuracy of B
    shift         = accuracy of A here - accuracy at that coverage of other data
    ```

    This is the bound of Rabanser and Papernot (2025, theorem 1) with the parts measured on the
    data, so that they sum to the gap. A monotone calibration keeps the ranking, and so all parts.
    The source of h decides what the parts mean. With `votes`, h is the share of annotators who
    chose the predicted class. Otherwise it is `correctness`, or a logistic regression on the
    model's outputs (and on `features`), fitted to the other folds for each example. Then `ranking`
    is the gain of that estimate, a lower bound of the best ranking's gain, and noise and
    approximation cannot be separated.

    Args:
        probs: Predictions `(n, classes)`, binary `(n,)`, or a stack of them, of data that the model
            was not trained on.
        labels: Labels, sparse `(n,)` or one-hot.
        scores: Ranking of the predictions: a name as in `risk_coverage_curve`, or an array `(n,)`
            that grows with uncertainty.
        coverage: Shares in (0, 1], one or several.
        votes: Shares, or counts, of annotators for each class, `(n, classes)`.
        correctness: Probabilities `(n,)` of being right, for example from another model, made
            without these labels.
        features: Features `(n, d)` for the estimate, such as those of the penultimate layer.
        shifted: Other data: `(probs, labels)`, or with their scores `(probs, labels, scores)`.
        confidence: Of the interval of the ranking part, by a normal approximation, and of the bound
            of the statistical one.
        folds: Of the estimate.
        seed: Of the folds.
        sample_weight: Weights `(n,)`; what has weight 0 is left out.
        ignore_class: Label of what is left out, or None.
        from_logits: Whether `probs` are logits, of other data as well.

    Returns:
        A `SelectiveGap`.

    Raises:
        ValueError: As `risk_coverage_curve`; if votes or probabilities do not fit, or both are
            given; if there are fewer examples than folds.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import gap
    >>> rng = np.random.default_rng(1)
    >>> probs, strange = rng.dirichlet(np.ones(3), size=2000), rng.random((2000, 1))
    >>> labels = np.where(rng.random(2000) < strange[:, 0], 0, probs.argmax(-1))
    >>> found = gap(probs, labels, coverage=0.5, features=strange)
    >>> bool(found.ranking_lower[0] > 0.1)  # the features know what confidence does not
    True

    References:
        - Rabanser and Papernot, "What Does It Take to Build a Performant Selective Classifier?",
          NeurIPS 2025.

    See also: `tfuq.selective.SelectiveGap`, `tfuq.selective.augrc`.
    """
    check_fraction("confidence", confidence)
    check_integer("folds", folds, 2)
    check_integer("seed", seed, 0)
    coverage = _coverages(coverage)
    sample_weight = void_weight(probs, labels, sample_weight, ignore_class)
    here = labelled_predictions(probs, labels, sample_weight, from_logits=from_logits)
    _check_one_each(here)
    used = here.weight > 0
    weight, right = here.weight[used], 1.0 - here.error[used]
    level = here.doubt(scores).levels(used)[0]
    best, likely = _correctness(here, used, votes, correctness, features, folds, seed)
    share_a = [_accepted(level, weight, c) for c in coverage]
    share_b = [_accepted(_levels(-likely), weight, c) for c in coverage]
    accuracy = np.array([_mean(right, part) for part in share_a])
    of_best = np.array([_mean(right, part) for part in share_b])
    oracle = np.minimum(1.0, np.average(right, weights=weight) / coverage)
    bayes = np.array([np.nan if votes is None else _mean(1 - best, part) for part in share_b])
    hoped = np.array([_mean(likely, part) for part in share_b])
    rest = np.where(np.isnan(bayes), 1 - hoped, 1 - hoped - bayes)
    errors = [_error_of_difference(right, a, b) for a, b in zip(share_a, share_b, strict=True)]
    half = np.array(errors) * stats.norm.ppf((1 + confidence) / 2)
    counts = np.array([part.sum() ** 2 / (part**2).sum() for part in share_b])
    elsewhere = _elsewhere(shifted, scores, coverage, from_logits)
    shift = accuracy - elsewhere
    return SelectiveGap(
        coverage,
        oracle,
        np.where(np.isnan(elsewhere), accuracy, elsewhere),
        oracle - np.where(np.isnan(elsewhere), accuracy, elsewhere),
        oracle - 1.0,
        bayes,
        rest,
        of_best - accuracy,
        of_best - accuracy - half,
        of_best - accuracy + half,
        hoped - of_best,
        np.sqrt(math.log(2 / (1 - confidence)) / (2 * counts)),
        shift,
        votes is not None,
        len(right),
    )


def _coverages(coverage):
    found = np.atleast_1d(to_float64("coverage", coverage))
    if found.ndim > 1 or not found.size or not np.all((found > 0) & (found <= 1)):
        raise ValueError(
            "Argument `coverage` must be shares above 0 and at most 1. "
            f"Received: coverage={shown(coverage)}"
        )
    return found


def _check_one_each(labelled):
    if len(labelled.shape) > 1 and labelled.shape[1:] != (1,):
        raise ValueError(
            "Argument `labels` must be one for each example. "
            f"Received: labels for entries of shape {labelled.shape}"
        )


def _levels(doubt):
    return np.unique(doubt.astype("float32"), return_inverse=True)[1]


def _accepted(level, weight, coverage):
    """The weight with which each example is accepted; of equal scores the same share of each."""
    table = np.bincount(level, weight)
    down_to = np.cumsum(table)
    part = np.clip((coverage * down_to[-1] - down_to + table) / table, 0, 1)
    return weight * part[level]


def _mean(values, weight):
    return float(values @ weight / weight.sum())


def _error_of_difference(right, share_a, share_b):
    """Standard error of the difference of two accuracies of overlapping examples."""
    parts = right * (share_b / share_b.sum() - share_a / share_a.sum())
    count = len(parts)
    return math.sqrt(max(float(parts @ parts) - float(parts.sum()) ** 2 / count, 0.0))


def _elsewhere(shifted, scores, coverage, from_logits):
    """Accuracy of other data at each coverage; NaN if there are none."""
    if shifted is None:
        return np.full(len(coverage), np.nan)
    if not isinstance(shifted, (tuple, list)) or len(shifted) not in (2, 3):
        raise ValueError(
            "Argument `shifted` must be (probs, labels) or (probs, labels, scores). "
            f"Received: shifted={shown(shifted)}"
        )
    if len(shifted) == 2 and not isinstance(scores, str):
        raise ValueError(
            "Argument `shifted` must be (probs, labels, scores) where `scores` is an array. "
            "Received: two parts"
        )
    there = labelled_predictions(*shifted[:2], from_logits=from_logits)
    _check_one_each(there)
    used = there.weight > 0
    level = there.doubt(shifted[2] if len(shifted) == 3 else scores).levels(used)[0]
    right, weight = 1.0 - there.error[used], there.weight[used]
    return np.array([_mean(right, _accepted(level, weight, c)) for c in coverage])


# --- The probability to be right ----------------------------------------------------------------


def _correctness(here, used, votes, correctness, features, folds, seed):
    """Probability of the likeliest class, and of the predicted one, of the examples `used`."""
    if votes is not None and correctness is not None:
        raise ValueError(
            "Argument `correctness` must be None with `votes`, from which it follows. Received: "
            "both"
        )
    probs = np.asarray(here.examples.probs())
    if votes is not None:
        shares = _shares(votes, probs.shape)[used]
        return shares.max(-1), shares[np.arange(len(shares)), probs[used].argmax(-1)]
    if correctness is not None:
        likely = here.spread("correctness", correctness)[used]
        if np.any((likely < 0) | (likely > 1)):
            raise ValueError(
                "Argument `correctness` must hold probabilities in [0, 1]. "
                f"Received: correctness={shown(correctness)}"
            )
        return None, likely
    right = 1.0 - here.error[used]
    return None, _estimated(_columns(probs[used], features, used), right, folds, seed)


def _shares(votes, shape):
    votes = to_float64("votes", votes)
    if votes.shape != shape or not np.all(np.isfinite(votes) & (votes >= 0)):
        raise ValueError(
            f"Argument `votes` must hold finite numbers of at least 0, of shape {shape}. "
            f"Received: votes={shown(votes)}"
        )
    total = votes.sum(-1, keepdims=True)
    if np.any(total == 0):
        raise ValueError(
            "Argument `votes` must hold a vote for each example. "
            f"Received: none for {int((total == 0).sum())}"
        )
    return votes / total


def _columns(probs, features, used):
    """What the estimate sees of each example, of mean 0 and deviation 1."""
    logs = np.log(np.maximum(np.sort(probs, axis=-1)[:, ::-1][:, :3], 1e-7))
    parts = [logs, np.log1p(-np.minimum(probs.max(-1), 1 - 1e-7))[:, None], logs**2]
    if 2 < probs.shape[-1] <= MOST_CLASSES:
        parts.append(np.eye(probs.shape[-1])[probs.argmax(-1)])
    if features is not None:
        given = to_float64("features", features)
        if given.ndim != 2 or len(given) != len(used) or not np.all(np.isfinite(given)):
            raise ValueError(
                f"Argument `features` must hold finite numbers of shape ({len(used)}, d). "
                f"Received: features={shown(features)}"
            )
        parts.append(given[used])
    columns = np.concatenate(parts, axis=-1)
    spread = columns.std(axis=0)
    return (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1)


def _estimated(columns, right, folds, seed):
    """Probability to be right of each example, by a regression on the other folds."""
    if len(right) < folds:
        raise ValueError(
            f"Argument `folds` must be at most the number of examples, {len(right)}. "
            f"Received: folds={folds}"
        )
    fold = np.random.default_rng(seed).permutation(len(right)) % folds
    found = np.empty(len(right))
    for part in range(folds):
        rest, held_out = fold != part, fold == part
        if right[rest].min() == right[rest].max():  # nothing to tell apart
            found[held_out] = right[rest].mean()
            continue
        weights, bias = logistic_regression(columns[rest], right[rest])
        found[held_out] = probabilities(columns[held_out] @ weights + bias, True, True)
    return found
