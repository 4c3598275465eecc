"""Pictures of the cost and gain of rejection, and of the guarantee of a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, check_integer, shown
from tfuq._math.bounds import clopper_pearson_interval
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.scores import GIVEN
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.plots._axes import RED, Axes, add_legend_above, axes_of, line_style
from tfuq.selective import risk_coverage_curve
from tfuq.selective.own_loss import losses_of, own_loss, risk_in_words
from tfuq.selective.rule import RejectionRule

CONFIDENCE = 0.95  # of the band around a curve
MARKED = 10  # markers along a curve
FIRST = 0.02  # coverage from which on all of a curve is seen: before it a risk is of few answers


def risk_coverage(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = None,
    rule: RejectionRule | None = None,
    loss: Any = None,
    from_logits: bool = False,
    multi_label: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws the share of wrong answers among the accepted over the share that is accepted.

    The band around the curve is the Clopper-Pearson interval of each point by itself, at 95 %,
    where losses are 0 or 1. With a rule, a star marks what it accepts of these predictions and a
    dashed line the risk that it promises: a star below the line keeps the promise. The risk is that
    of the loss that the rule was fitted to, and the axis says which.

    Args:
        probs: Predictions or a stack of them, as `tfuq.selective.risk_coverage_curve` takes them;
            or a dict from a model's name to its.
        labels: Labels, sparse or one-hot.
        score: What ranks the predictions, as in `risk_coverage_curve`; by default the score of the
            rule, else `"confidence"`. For a rule of scores that are given, these.
        rule: A `tfuq.selective.RejectionRule`, or None.
        loss: One loss, as in `RejectionRule.fit`; by default what the rule was fitted to, `"error"`
            of several and without a rule.
        from_logits: Whether `probs` hold logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes. Both are fractions.

    Raises:
        ValueError: If `risk_coverage_curve` or the rule refuses the data, there is no model to
            draw, or a rule is given for several models.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> rule = tfuq.selective.RejectionRule("confidence", 0.7)
    >>> ax = tfuq.plots.risk_coverage(probs, [0, 1, 1], rule=rule)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('coverage (fraction accepted)', 'risk (fraction wrong of the accepted)')

    See also: `tfuq.selective.risk_coverage_curve`, `tfuq.plots.rejection_curve`.
    """
    models = probs if isinstance(probs, dict) else {None: probs}
    if not models or (rule is not None and len(models) > 1):
        raise ValueError(
            "Argument `probs` must hold at least one model, and with a rule exactly one. "
            f"Received: probs of {list(models)} with rule={shown(rule)}"
        )
    if rule is not None and not callable(getattr(rule, "evaluate", None)):
        raise ValueError(
            f"Argument `rule` must be None or a RejectionRule. Received: rule={shown(rule)}"
        )
    given = getattr(rule, "score", None) == GIVEN
    if given and (score is None or isinstance(score, str)):
        raise ValueError(
            "Argument `score` must be the scores of these predictions, (n,), for a rule that was "
            f"fitted to scores. Received: score={shown(score)}"
        )
    score = getattr(rule, "score", "confidence") if score is None else score
    own = own_loss(rule, loss)
    options = {"score": score, "from_logits": from_logits, "multi_label": multi_label}
    curves = {name: _curve_of(values, labels, own, options) for name, values in models.items()}
    found = None
    if rule is not None:
        asked = {"loss": loss, "score": score if given else None}
        found = rule.evaluate(probs, labels, **asked)
    ax = axes_of(ax)
    tops = [
        _draw_curve(ax, *curve, "risk" if name is None else name, i)
        for i, (name, curve) in enumerate(curves.items())
    ]
    if found is not None:
        is_error = isinstance(loss, str) and loss == "error"
        is_own = loss is None or (is_error and rule.fitted_to.get("loss") == "error")
        tops.append(_draw_rule(ax, rule, found, is_own))
    ax.set(xlabel="coverage (fraction accepted)", xlim=(0, 1.01))
    words = risk_in_words(own, getattr(rule, "class_names", None))
    ax.set_ylabel(f"risk ({words})")
    # The band reaches 1 where few are accepted, and a curve may begin there, with one error.
    ax.set_ylim(0, min(1.02, 1.25 * max(*tops, 0.01)))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def _curve_of(probs, labels, loss, options):
    """Coverage and risk `(n,)`, and how many decisions each is of; None for losses in between.

    The risk is the loss up to a point over what of it belongs to the risk, each per example.
    """

    def part(index):
        def values(probs, labels):
            losses, counts = losses_of(loss, probs, labels)
            return (losses * counts, counts.astype("float64"))[index]

        return risk_coverage_curve(probs, labels, loss=values, **options)

    curve = part(0)
    counted = part(1).generalized_risk if loss.classes else curve.coverage
    risk = np.divide(curve.generalized_risk, counted, np.zeros_like(counted), where=counted > 0)
    return curve.coverage, risk, counted * len(counted) if loss.is_zero_one else None


def _draw_curve(ax, coverage, risk, count, label, i):
    style, top = line_style(i), risk[coverage >= FIRST].max()
    if count is not None:
        lower, upper = clopper_pearson_interval(risk * count, count, CONFIDENCE)
        ax.fill_between(coverage, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        top = max(top, upper[-1])
    every = max(1, len(risk) // MARKED)
    ax.plot(coverage, risk, label=label, markevery=every, markersize=4, **style)
    return top


def _draw_rule(ax, rule, found, is_own):
    risk = 0.0 if np.isnan(found.risk) else found.risk
    said = "no risk known" if np.isnan(found.risk) else f"risk {risk:.3f}"
    label = f"the rule: coverage {found.coverage:.2f}, {said}"
    style = {"markersize": 14, "markeredgecolor": "white", "linestyle": "none", "zorder": 5}
    ax.plot(found.coverage, risk, "*", color=RED, label=label, **style)
    target = rule.fitted_to.get("target_risk") if is_own else None  # of what the axis shows
    if target is not None:
        sure = rule.fitted_to["confidence"]
        label = f"promised: at most {target:g} ({100 * sure:g} % sure)"
        ax.axhline(target, color=RED, linestyle="--", label=label)
    return max(risk, target or 0.0)


def detection_histograms(
    scores: Mapping[str, ArrayLike],
    *,
    threshold: float | None = None,
    n_bins: int = 40,
    xlabel: str = "score",
    ax: Axes | None = None,
) -> Axes:
    """Draws how a score is distributed over several sets, such as known and unknown images.

    Args:
        scores: Dict from a set's name to its scores `(n,)`, larger for what is more out of
            distribution; the first set is filled.
        threshold: A number, or the `Threshold` that `threshold_at` of a detector gives; scores
            above it are detected. The legend says which share of each set is.
        n_bins: Number of bins, of equal width over all sets.
        xlabel: Name of the score.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes. Heights are fractions of each set; scores of infinity, of what could not be read,
        count as detected but have no bar.

    Raises:
        ValueError: If there is no set, a set is empty, or holds NaN.

    Example:

    >>> import numpy as np, tfuq
    >>> sets = {"known": np.arange(10.0), "unknown": np.arange(5.0, 15.0)}
    >>> ax = tfuq.plots.detection_histograms(sets, threshold=8.5)
    >>> [text.get_text() for text in ax.get_legend().get_texts()][:2]
    ['known: 10.0 % detected', 'unknown: 60.0 % detected']

    See also: `tfuq.metrics.ood_metrics`, `tfuq.plots.roc_curves`.
    """
    sets = _sets_of(scores)
    check_integer("n_bins", n_bins, 1)
    every = np.concatenate(list(sets.values()))
    finite = every[np.isfinite(every)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, n_bins + 1)
    limit = getattr(threshold, "value", threshold)
    if limit is not None and not isinstance(limit, (int, float, np.number)):
        raise ValueError(
            "Argument `threshold` must be None, a number or what `threshold_at` gives. "
            f"Received: threshold={shown(threshold)}"
        )
    ax = axes_of(ax)
    for i, (name, values) in enumerate(sets.items()):
        shares = np.histogram(values[np.isfinite(values)], edges)[0] / len(values)
        label = name if limit is None else f"{name}: {np.mean(values > limit):.1%} detected"
        style = line_style(i)
        if i == 0:
            ax.stairs(shares, edges, fill=True, color=style["color"], alpha=0.3)
        ax.stairs(
            shares,
            edges,
            label=label.replace("%", " %"),
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=2,
        )
    if limit is not None:
        ax.axvline(limit, color=RED, linestyle="--", linewidth=2, label=f"threshold {limit:.3g}")
    ax.set(xlabel=xlabel, ylabel="fraction of the set")
    ax.grid(alpha=0.3)
    add_legend_above(ax)
    return ax


def _sets_of(scores):
    if not isinstance(scores, dict) or not scores:
        raise ValueError(
            "Argument `scores` must be a dict from names to scores. "
            f"Received: scores={shown(scores)}"
        )
    sets = {name: np.asarray(values, "float64").ravel() for name, values in scores.items()}
    for name, values in sets.items():
        if not values.size or np.any(np.isnan(values)):
            raise ValueError(
                "Argument `scores` must hold numbers, no NaN, for each set. "
                f"Received: {values.size} for {name!r}, {np.isnan(values).sum()} of them NaN"
            )
    return sets
