"""Choice of a score: which ranks errors best, with intervals, and a score of logits to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, check_fraction, check_integer, is_finite, shown, to_float64
from tfuq._predictions.labelled import labelled_predictions
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.scores import RANKINGS, pnorm, pnorm_name, score_name
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.ood.sirc import sirc
from tfuq.selective._row_hashes import labelled_hashes, remember_scores, sketch
from tfuq.selective.curves import augrc

__all__ = ["ScoreComparison", "ScoreRow", "best_score", "choose_p", "pnorm_score", "sirc_score"]

PLAIN = ("confidence", "margin", "predictive_entropy")
OF_STACK = ("expected_entropy", "mutual_information", "variation_ratio")
_AT_ONCE = 2**22  # resampled weights


class ScoreRow(NamedTuple):
    """How well a score ranks errors, and how far behind the best it is.

    Example:

    >>> from tfuq.selective import best_score
    >>> probs, labels = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], [0, 1, 1, 0]
    >>> row = best_score(probs, labels, resamples=50).rows[0]
    >>> row.lower <= row.augrc <= row.upper, row.behind
    (True, 0.0)

    See also: `tfuq.selective.best_score`.
    """

    name: str
    augrc: float
    """Area under the generalized risk-coverage curve; less is better."""
    lower: float
    """Lower end of its bootstrap interval."""
    upper: float
    behind: float
    """Its area less that of the best score."""
    behind_lower: float
    """Lower end of the interval of that difference, on the same resampled rows."""
    behind_upper: float

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference from the best score leaves 0 out."""
        return self.behind_lower > 0


class ScoreComparison(NamedTuple):
    """Scores in the order of how well they rank errors.

    Example:

    >>> from tfuq.selective import best_score
    >>> probs, labels = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], [0, 1, 1, 0]
    >>> found = best_score(probs, labels, resamples=50)
    >>> found.best == found.rows[0].name
    True

    See also: `tfuq.selective.best_score`.
    """

    best: str
    rows: tuple
    """A `ScoreRow` for each, the best first."""
    examples: int
    errors: int

    def to_markdown(self) -> str:
        """A table of the scores."""
        lines = ["| score | AUGRC | interval | behind the best | differs |"]
        lines.append("| --- | --: | --- | --- | --- |")
        for row in self.rows:
            behind = f"{row.behind:.4f} ({row.behind_lower:.4f} to {row.behind_upper:.4f})"
            said = "" if row.name == self.best else "yes" if row.differs else "no"
            ends = f"{row.lower:.4f} to {row.upper:.4f}"
            behind = "" if row.name == self.best else behind
            lines.append(f"| {row.name} | {row.augrc:.4f} | {ends} | {behind} | {said} |")
        return "\n".join(lines)


def best_score(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    scores: Any = None,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> ScoreComparison:
    """Ranks scores by how well they find errors (AUGRC on held-out rows), with intervals.

    Fit the rule to other rows than those that chose its score, or it promises nothing. In the same
    process, a rule for the best score refuses these rows. For `"confidence"`, the usual choice
    anyway, it only warns.

    Args:
        probs: Predictions or a stack of them, of rows that the model was not trained on.
        labels: Labels, sparse or one-hot.
        scores: Names, or a dict of names or of arrays that grow with uncertainty (such as a
            detector's `score(x)`). By default all names that the predictions allow.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.
        confidence: Of the intervals, by resampling rows, the same for all scores.
        resamples: How often.
        seed: Of the resampling.

    Returns:
        A `ScoreComparison`.

    Raises:
        ValueError: As `augrc`; if no answer or every answer is wrong, so that there is nothing to
            rank.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import best_score
    >>> rng = np.random.default_rng(0)
    >>> probs, strange = rng.dirichlet(np.ones(3), size=500), rng.random(500)
    >>> labels = np.where(rng.random(500) < strange, 0, probs.argmax(-1))
    >>> best_score(probs, labels, {"ours": strange, "confidence": "confidence"}).best
    'ours'

    References:
        - Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification
          Systems", NeurIPS 2024.

    See also: `tfuq.selective.ScoreComparison`, `tfuq.selective.CombinedScore`,
    `tfuq.selective.RejectionRule`.
    """
    check_fraction("confidence", confidence)
    check_integer("resamples", resamples, 10)
    labelled = labelled_predictions(
        probs, labels, None, from_logits=from_logits, multi_label=multi_label
    )
    scores = _named(scores, labelled.stack is not None)
    wrong = np.asarray(labelled.error, "float64") > 0
    _check_ranks(wrong)
    rows = labelled.shape[0]
    rng = np.random.default_rng(seed)
    weights = [np.ones(rows), *rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples)]
    used = np.ones(len(wrong), bool)
    levels = {name: labelled.doubt(score).levels(used)[0] for name, score in scores.items()}
    areas = {name: _areas(level, wrong, np.array(weights), rows) for name, level in levels.items()}
    order = sorted(areas, key=lambda name: areas[name][0])
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    found = []
    for name in order:
        behind = areas[name] - areas[order[0]]
        near, far = np.quantile(areas[name][1:], ends), np.quantile(behind[1:], ends)
        numbers = (areas[name][0], *near, behind[0], *far)
        found.append(ScoreRow(name, *(float(number) for number in numbers)))
    best = scores[order[0]]
    best = score_name(best, RANKINGS) if isinstance(best, str) else best
    _remember(labelled, best, f"best_score ({order[0]!r} was best)")
    return ScoreComparison(order[0], tuple(found), len(wrong), int(wrong.sum()))


def _check_ranks(wrong):
    if wrong.all() or not wrong.any():
        raise ValueError(
            "Argument `labels` must make some answers wrong and some right. "
            f"Received: {int(wrong.sum())} of {len(wrong)} wrong"
        )


def _named(scores, is_stack):
    if scores is None:
        scores = PLAIN + (OF_STACK if is_stack else ())
    if not isinstance(scores, dict):
        names = [scores] if isinstance(scores, str) else list(scores)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(
                "Argument `scores` must be names, or a dict of names and arrays. "
                f"Received: scores={shown(scores)}"
            )
        scores = {name: name for name in names}
    if len(scores) < 2:
        raise ValueError(f"Argument `scores` must hold two or more. Received: {list(scores)}")
    return scores


def _areas(level, wrong, weights, rows):
    """AUGRC of each row of `weights`, `(resamples, rows)`, which entries of a row share.

    misranked pairs / n^2 + (errors / n)^2 / 2, a pair being an error and a right answer of which
    the error is trusted more, half of it if both are trusted alike.
    """
    order = np.argsort(level, kind="stable")
    firsts = np.flatnonzero(np.diff(level[order], prepend=-1))
    row, is_wrong = order // (len(level) // rows), wrong[order]
    found = []
    for part in np.array_split(weights, max(1, weights.shape[0] * len(level) // _AT_ONCE)):
        spread = part[:, row]
        errors = np.add.reduceat(spread * is_wrong, firsts, axis=1)
        right = np.add.reduceat(spread * ~is_wrong, firsts, axis=1)
        after = right.sum(axis=1, keepdims=True) - np.cumsum(right, axis=1) + right / 2
        total, failed = spread.sum(axis=1), errors.sum(axis=1)
        found.append((np.sum(errors * after, axis=1) + failed**2 / 2) / total**2)
    return np.concatenate(found)


def choose_p(
    logits: ArrayLike, labels: ArrayLike, powers: Sequence[float] = tuple(range(1, 11))
) -> float:
    """The p of the p-norm score that ranks errors best on held-out rows, by AUGRC.

    Fit a rule with that score, `score=f"pnorm({p})"`, to other rows than these. In the same process
    it refuses the rows that p was chosen on.

    Args:
        logits: Logits `(n, classes)` of rows that the model was not trained on, three classes or
            more.
        labels: Labels, sparse or one-hot.
        powers: Numbers above 0 to choose from; the first of equally good ones wins.

    Returns:
        One of `powers`.

    Raises:
        ValueError: As `pnorm_score`; if `powers` is empty; if no answer or every answer is wrong,
            so that there is nothing to rank.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import RejectionRule, choose_p
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(1000, 5), scale=4)
    >>> labels = np.where(rng.random(1000) < 0.2, 0, logits.argmax(-1))
    >>> p = choose_p(logits[:500], labels[:500])
    >>> options = {"score": f"pnorm({p})", "from_logits": True, "target_coverage": 0.5}
    >>> RejectionRule.fit(logits[500:], labels[500:], **options).fitted_to["coverage"]
    0.5

    References:
        - Cattelan and Silva, "How to Fix a Broken Confidence Estimator", UAI 2024.

    See also: `tfuq.selective.pnorm_score`, `tfuq.selective.best_score`.
    """
    powers = list(np.atleast_1d(np.asarray(powers)).tolist()) if len(powers) else []
    if not powers:
        raise ValueError(f"Argument `powers` must hold numbers. Received: powers={shown(powers)}")
    scores = [pnorm_score(logits, power) for power in powers]
    labelled = labelled_predictions(logits, labels, from_logits=True, names=("logits", "labels"))
    wrong = np.asarray(labelled.error, "float64") > 0
    _check_ranks(wrong)
    areas = [augrc(logits, labels, score=score, from_logits=True) for score in scores]
    best = powers[int(np.argmin(areas))]
    _remember(labelled, pnorm_name(best), f"choose_p (p = {best:g})")
    return best


def _remember(labelled, score, name):
    """Lets rules of `score` know that it was chosen on these rows."""
    probs, true = np.asarray(labelled.examples.probs()), np.asarray(labelled.examples.labels)
    remember_scores(score, name, sketch(labelled_hashes(probs, true)))


def pnorm_score(logits: ArrayLike, p: float = 2) -> np.ndarray:
    """p-norm score: minus the largest centred logit over their p-norm; grows with uncertainty.

    Formula: -max_c z_c / (sum_c |z_c|^p)^(1 / p), z the logits less their mean (Cattelan and Silva
    2023, MaxLogit-pNorm; they choose p of 0 to 10 on validation rows: `choose_p` does). That of p =
    2 is the score `"pnorm"` of a `RejectionRule`, that of p = 3 `"pnorm(3)"`.

    Args:
        logits: `(n, classes)`, three classes or more: of two it is the same for all.
        p: Number above 0.

    Returns:
        Scores `(n,)`; NaN where logits are not finite, 0 where all are equal.

    Raises:
        ValueError: If logits are of another shape, or p is no number above 0.

    Example:

    >>> from tfuq.selective import pnorm_score
    >>> pnorm_score([[4.0, 1.0, 1.0]]).round(4)
    array([-0.8165])

    References:
        - Cattelan and Silva, "How to Fix a Broken Confidence Estimator: Evaluating Post-hoc Methods
          for Selective Classification with Deep Neural Networks", UAI 2024.

    See also: `tfuq.selective.choose_p`, `tfuq.selective.best_score`.
    """
    values = to_float64("logits", logits)
    if values.ndim != 2 or values.shape[1] < 3:
        raise ValueError(
            "Argument `logits` must have the shape (n, classes) with three classes or more. "
            f"Received: logits of shape {values.shape}"
        )
    is_number = isinstance(p, (int, float, np.integer, np.floating)) and not isinstance(p, bool)
    if not is_number or not 0 < p < np.inf:
        raise ValueError(f"Argument `p` must be a number above 0. Received: p={shown(p)}")
    finite = np.isfinite(values).all(axis=1)
    found = ops.convert_to_numpy(
        pnorm(ops.convert_to_tensor(np.where(finite[:, None], values, 0)), p)
    )
    return np.where(finite, found, np.nan)


def sirc_score(confidence: float, detector_score: ArrayLike, a: float, b: float) -> np.ndarray:
    """Confidence combined with a detector's score (SIRC); grows with uncertainty.

    Formula: log(1 - confidence) + log(1 + exp(b (detector_score - a))) (Xia and Bouganis 2022, the
    logarithm of theirs, with a score that grows with strangeness). They take a = mean + 3 standard
    deviations and b = 1 / standard deviation of the detector's in-distribution scores, on rows that
    no rule is fitted to, such as those of training. `tfuq.ood.SIRC` does so, and can be part of a
    model.

    Args:
        confidence: Largest probability of each example, `(n,)`, in [0, 1].
        detector_score: What the `score(x)` of a detector gives, `(n,)`, larger for stranger.
        a: Detector's score from which it counts.
        b: Slope, above 0.

    Returns:
        Scores `(n,)`, float64; inf where the detector's score is, NaN where the confidence is.

    Raises:
        ValueError: If arrays are of other shapes, confidences outside of [0, 1], `a` is no finite
            number, or `b` none above 0.

    Example:

    >>> from tfuq.selective import sirc_score
    >>> sirc_score([0.9, 0.9, 0.5], [1.0, 9.0, 1.0], a=5.0, b=1.0).round(2)
    array([-2.28,  1.72, -0.67])

    References:
        - Xia and Bouganis, "Augmenting Softmax Information for Selective Classification with
          Out-of-Distribution Data", ACCV 2022.

    See also: `tfuq.ood.SIRC`, `tfuq.selective.CombinedScore`.
    """
    confidence = to_float64("confidence", confidence)
    scores = to_float64("detector_score", detector_score)
    if scores.ndim != 1 or confidence.shape != scores.shape or not scores.size:
        raise ValueError(
            "Argument `detector_score` must hold a number for each of the confidences (n,). "
            f"Received: shapes {scores.shape} and {confidence.shape}"
        )
    outside = (confidence < 0) | (confidence > 1)
    if outside.any():
        raise ValueError(
            "Argument `confidence` must hold numbers in [0, 1]. "
            f"Received: {confidence[outside][0]:g} ({outside.sum()} of {len(scores)})"
        )
    if not is_finite(a) or not is_finite(b) or b <= 0:
        raise ValueError(
            "Argument `b` must be a number above 0, and `a` a finite one. "
            f"Received: a={shown(a)}, b={shown(b)}"
        )
    unknown = np.isnan(confidence) | np.isnan(scores)
    with np.errstate(divide="ignore"):  # log 0 is below the least of `sirc`
        log_doubt = np.log1p(-confidence)
    return np.where(unknown, np.nan, np.asarray(sirc(log_doubt, scores, a, b)))
