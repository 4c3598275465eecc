"""Rejection rules for numbers: a threshold of a width, and what was promised when it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Output,
    Self,
    Tensor,
    check_choice,
    check_flags,
    check_integer,
    is_finite,
    register,
    shown,
)
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family
from tfuq._predictions.numbers import RegressionUncertainty, mixture_quantile, moments, warn_of_unit
from tfuq._predictions.scores import GIVEN
from tfuq.selective._declared_thresholds import check_against_scores, declared_thresholds
from tfuq.selective._guarantees import METHODS
from tfuq.selective._losses import Loss, Promise, known_by
from tfuq.selective._monitored_cases import cases_of_numbers
from tfuq.selective._number_reading import (
    check_tolerance,
    check_varies,
    read_numbers,
    scores_of_numbers,
    set_aside,
)
from tfuq.selective._own_rows import check_own_scores
from tfuq.selective._reading import check_for_models, check_given, name_and_given
from tfuq.selective._repeated_rows import warn_of_repeated
from tfuq.selective._rule_evaluation import Evaluation, description, evaluation_of
from tfuq.selective._rule_fitting import (
    Goal,
    check_targets,
    checked_report,
    fit_part,
    parts_of,
    report_of,
)
from tfuq.selective._rule_in_models import appended, pair_of
from tfuq.selective._rule_thresholds import of_groups, passes
from tfuq.selective.base import Fitted, config_of, numbers
from tfuq.selective.detector_scores import given_scores
from tfuq.selective.monitor import Watched
from tfuq.selective.own_loss import own_loss_of_numbers

SCORES = ("std", "interval_width", "aleatoric_std", "epistemic_std")
KNOWN = (*SCORES, GIVEN)


@register
class RegressionRule(Watched, Fitted):
    """Rejection rule for numbers: accepts a prediction if its distribution is narrow enough.

    `RejectionRule.fit` makes one from the result of `predict_uncertainty` for a regression; with a
    known threshold, call the constructor. A prediction with NaN or infinity is never accepted.

    Args:
        score: `"std"`, the standard deviation; `"interval_width"`, of the central interval of
            `level`; `"aleatoric_std"` or `"epistemic_std"`, one part of it. In the unit of the
            numbers. Or `"given"`, which comes beside the predictions, larger for the less certain.
        threshold: The rule accepts a score of at most this, compared in float32. With `by="group"`
            one for each of `keys`.
        level: Probability of the intervals that `transform` gives and whose width is a score.
        by: None for one threshold, or `"group"` for one for each group of examples.
        keys: The names of the groups, in the order of `threshold`.
        family: The family of the predictions, a name or a dict.
        units: How many numbers there are in the last axis.
        rank: Axes of a single prediction: 2 for `(n, units)`, 4 for images of numbers.
        tolerance: How far off an answer was called wrong when the rule was fitted, or None.
        fitted_to: What the rule was fitted to, a dict.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import RegressionUncertainty
    >>> from tfuq.selective import RegressionRule
    >>> found = RegressionUncertainty(np.array([[[0.0, 1.0], [2.0, 0.1]]]), "normal")
    >>> print(RegressionRule("std", 0.5).accept(found).ravel())
    [False  True]

    See also: `tfuq.selective.RejectionRule`, `tfuq.selective.ConformalRegressor`,
    `tfuq.predictive.RegressionUncertainty`.
    """

    grows_with_trust = False
    multi_label = False
    class_names = None
    _cases = cases_of_numbers

    def __init__(
        self,
        score: Any = "std",
        threshold: Any = 1.0,
        *,
        level: float = 0.9,
        by: str | None = None,
        keys: Sequence[Any] | None = None,
        family: str | Mapping[str, Any] | Family = "normal",
        units: int = 1,
        rank: int = 2,
        tolerance: float | ArrayLike | None = None,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        check_choice("score", score, KNOWN)
        check_choice("by", by, (None, "group"))
        check_integer("units", units, 1)
        check_integer("rank", rank, 2)
        if not is_finite(level) or not 0 < level < 1:
            raise ValueError(f"Argument `level` must be in (0, 1). Received: level={shown(level)}")
        if tolerance is not None:
            check_tolerance(tolerance)
        found = numbers("threshold", threshold)
        if found.shape != (() if by is None else (len(keys or ()),)) or found.size == 0:
            raise ValueError(
                "Argument `threshold` must be a number or, with `by`, one for each of `keys`. "
                f"Received: threshold={shown(threshold)} with by={shown(by)}, keys={shown(keys)}"
            )
        keys = None if by is None else [str(key) for key in keys]
        if len(set(keys or ())) < len(keys or ()):
            raise ValueError(f"Argument `keys` must not repeat. Received: keys={shown(keys)}")
        self.score = score
        self.threshold = float(found) if by is None else found
        self.level = float(level)
        self.by, self.keys = by, keys
        self.family = family_named(family)
        self.units, self.rank = units, rank
        self.tolerance = tolerance
        self.fitted_to = checked_report(fitted_to, by)

    def get_config(self) -> dict[str, Any]:
        names = ("score", "threshold", "level", "by", "keys", "units", "rank", "tolerance")
        config = config_of(self, (*names, "fitted_to"))
        return {**config, "family": self.family.get_config()}

    # --- Fitting ------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        found: ArrayLike | RegressionUncertainty,
        y: ArrayLike,
        score: Any = "std",
        target_risk: float | None = None,
        confidence: float = 0.95,
        *,
        tolerance: float | ArrayLike | None = None,
        loss: Any = "error",
        level: float = 0.9,
        target_coverage: float | None = None,
        costs: Mapping[str, Any] | None = None,
        method: str = "auto",
        thresholds: Sequence[float] | None = None,
        by: str | None = None,
        groups: ArrayLike | None = None,
        simultaneous: bool = False,
        seed: int = 0,
    ) -> Self:
        """The rule that accepts the most while it keeps what is asked for; one of three is given.

        The promises are those of `RejectionRule.fit`, of the loss of numbers. An answer is wrong,
        by `loss="error"`, where it is further than `tolerance` from y. Where an example has many
        numbers (`units`, pixels), examples are what is drawn, and a fifth of them, at random, gives
        the thresholds that are tested on the others.

        Args:
            found: The result of `predict_uncertainty` for examples that the model was not trained
                on.
            y: Numbers, `(n, ..., units)`, or `(n, ...)` of one.
            score: As in the constructor. Or a score of its own for each example, `(n,)`, larger
                where stranger: it is given to `accept` again, and the rule cannot be part of a
                model. Of a detector of the model `RejectionRule.fit_model(model, data,
                score=detector)` makes a rule that can.
            target_risk, confidence, target_coverage, costs, method, thresholds: As in
                `RejectionRule.fit`; with thresholds no examples are set aside for them.
            tolerance: Number above 0, in the unit of y; required for `loss="error"`.
            loss: `"error"`, or a function `loss(mean, y)` of arrays `(entries,)` that returns
                numbers in [0, 1].
            level: As in the constructor.
            by, groups, simultaneous: As in `RejectionRule.fit`; `by` is None or `"group"`.
            seed: Of the draw of examples that give thresholds.

        Returns:
            The rule.

        Raises:
            UnattainableRisk: If no threshold keeps the target.
            ValueError: If an argument is out of its range, y has another shape or holds NaN, or
                the score is the same for all, as the epistemic part of one network.

        Example:

        >>> import numpy as np
        >>> from tfuq.predictive import RegressionUncertainty
        >>> from tfuq.selective import RejectionRule
        >>> rng = np.random.default_rng(0)
        >>> scale = rng.uniform(0.1, 3, size=1000)
        >>> found = RegressionUncertainty(np.stack([0 * scale, scale], -1)[None], "normal")
        >>> rule = RejectionRule.fit(found, scale * rng.normal(size=1000), tolerance=1.0,
        ...                          target_risk=0.1)
        >>> bool(0.2 < rule.fitted_to["coverage"] < 0.3)
        True
        """
        wanted = check_targets(target_risk, target_coverage, costs, confidence)
        check_choice("method", method, tuple(METHODS))
        check_choice("by", by, (None, "group"))
        check_flags(simultaneous=simultaneous)
        thresholds = declared_thresholds(thresholds, wanted, method, False)
        _check_found(found)
        kind = {"family": found.family, "units": found.units, "rank": found.params.ndim - 1}
        name, given = name_and_given(score, "std")
        rule = cls(name, 0.0, level=level, tolerance=tolerance, **kind)
        read = read_numbers(rule, found, y, loss, given)
        check_varies(read.score, name)
        check_own_scores(given)
        warn_of_repeated(read.score, y)
        check_against_scores(thresholds, read.score, False)
        warn_of_unit(found, y)
        fixed = None
        if wanted == "risk" and thresholds is None and len(read.score) > read.images:
            fixed, read, groups = set_aside(read, groups, seed)
        parts = {None: None} if by is None and groups is None else parts_of(read, by, groups)
        delta = (1 - confidence) / (len(parts) if simultaneous else 1)
        asked = target_risk, target_coverage, costs, confidence
        goal = Goal(wanted, *asked, delta, method, thresholds)
        fits = {key: fit_part(rule, read, rows, goal, by, fixed) for key, rows in parts.items()}
        kind = Loss("function", value=loss) if callable(loss) else Loss("error")
        promises = [Promise(kind, target_risk)]
        report = {**report_of(fits, read, goal, kind.said()), "draws": found.num_samples}
        report |= {} if tolerance is None else {"tolerance": float(tolerance)}
        if by is None:
            report |= {name: fits[None].sums[name] for name in ("risk", "risk_bound")}
            return known_by(rule._with(fits[None].threshold, report), promises)
        report["simultaneous"] = bool(simultaneous)
        report["parts"] = {str(key): part.sums for key, part in fits.items()}
        thresholds = [part.threshold for part in fits.values()]
        return known_by(rule._with(thresholds, report, by=by, keys=list(fits)), promises)

    def _with(self, threshold, report, **parts):
        config = {**self.get_config(), "threshold": threshold, "fitted_to": report, **parts}
        return type(self)(**config)

    # --- Use ----------------------------------------------------------------------------------

    def score_of(self, found: ArrayLike | RegressionUncertainty, score: Any = None) -> np.ndarray:
        """The score of each number, `(n, ..., units)`, float32, in its unit; NaN for NaN.

        Args:
            found: The result of `predict_uncertainty`, of the family that the rule was fitted to.
            score: As for `accept`.
        """
        self.check_kind(found)
        check_given(self.score, score)
        if self.score == GIVEN:
            return scores_of_numbers(score, found.shape)
        if self.score != "interval_width":
            return getattr(found, self.score).astype("float32")
        lower, upper = found.interval(self.level)
        return (upper - lower).astype("float32")

    def check_kind(self, found: ArrayLike | RegressionUncertainty) -> None:
        """Raises ValueError unless predictions are of the kind that it was fitted to."""
        _check_found(found)
        kind = (found.family, found.units, found.params.ndim - 1)
        if kind != (self.family, self.units, self.rank):
            raise ValueError(
                f"Argument `found` must be of {self.units} numbers of the family "
                f"{shown(self.family)} with {self.rank} axes, as those it was fitted to. Received: "
                f"{kind[1]} numbers of {shown(kind[0])} with {kind[2]} axes"
            )
        self._check_draws("found", found.num_samples)

    def _check_draws(self, name, draws):
        fitted = self.fitted_to.get("draws", draws)
        if (fitted > 1) != (draws > 1):
            raise ValueError(
                f"Argument `{name}` must be of several draws or of one, as what it was fitted to "
                f"({fitted}): one network knows less of its uncertainty. Received: {draws}"
            )

    def accept(
        self,
        found: ArrayLike | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
        score: Any = None,
    ) -> np.ndarray:
        """Which numbers are accepted, bool `(n, ..., units)`.

        Args:
            found: The result of `predict_uncertainty`, of the family that the rule was fitted to.
            groups: With `by="group"`: the group of each example, `(n,)`.
            unknown_group: What to do with a group that fitting never saw: `"error"` or `"reject"`.
            score: For a rule that was fitted to an array: that of these predictions, `(n,)`.

        Raises:
            ValueError: If predictions are of another kind, groups are missing, or one is unknown.
        """
        check_choice("unknown_group", unknown_group, ("error", "reject"))
        score = self.score_of(found, score)
        known = np.isfinite(found.mean)
        if self.by is None:
            return passes(self, score, self.threshold) & known
        thresholds = of_groups(self, groups, len(score), unknown_group)
        return passes(self, score, thresholds.reshape(-1, *[1] * (score.ndim - 1))) & known

    def evaluate(
        self,
        found: ArrayLike | RegressionUncertainty,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        loss: Any = None,
        score: Any = None,
    ) -> Evaluation:
        """What is accepted of labelled data, and how much of that is wrong: an `Evaluation`.

        Args:
            found: The result of `predict_uncertainty`.
            y: Numbers.
            groups: With `by="group"`: the group of each example; unknown groups are rejected.
            loss: As in `fit`; by default what the rule was fitted to.
            score: As for `accept`.

        Raises:
            ValueError: If arrays do not fit together or hold NaN; if no loss is given and that of
                the fit is a function that its file does not tell.
        """
        read = read_numbers(self, found, y, own_loss_of_numbers(self, loss), score)
        accepted = self.accept(found, groups, unknown_group="reject", score=score).ravel()
        return evaluation_of(read, accepted)

    def transform(self, params: Tensor) -> dict[str, Tensor]:
        """Tensors of a tensor of parameters, or of a stack of them: `"mean"`, `"std"`, `"score"`,
        `"accept"` and, where the family says a distribution, the ends `"lower"` and `"upper"` of
        the interval of `level`; each `(n, ..., units)`. A rule of a detector's score takes a pair
        of parameters and scores `(n,)`.
        """
        check_for_models(self)
        params, given = pair_of(self, params)
        params = tf.cast(params, "float32")
        if params.shape.rank not in (self.rank, self.rank + 1):
            raise ValueError(
                f"Argument `params` must have {self.rank} axes, or {self.rank + 1} as a stack. "
                f"Received: params of shape {tuple(params.shape)}"
            )
        stack = params if params.shape.rank > self.rank else params[None]
        self._check_draws("params", stack.shape[0] or 2)
        mean, aleatoric, epistemic = moments(self.family, stack)
        found = {"mean": mean, "std": tf.sqrt(aleatoric + epistemic)}
        if self.family.has_noise:
            tail = (1 - self.level) / 2
            for name, level in (("lower", tail), ("upper", 1 - tail)):
                found[name] = mixture_quantile(self.family, stack, level)
        scores = {"aleatoric_std": tf.sqrt(aleatoric), "epistemic_std": tf.sqrt(epistemic)}
        if self.score == "interval_width":
            scores["interval_width"] = found["upper"] - found["lower"]
        score = given_scores(given, mean) if given is not None else None
        score = {**scores, "std": found["std"], GIVEN: score}[self.score]
        is_known = tf.math.is_finite(mean)
        accept = (score <= np.float32(self.threshold)) & is_known
        return {**found, "score": score, "accept": accept}

    def append_to(
        self, model: keras.Model, output: Output | None = None, *, detector: Any = None
    ) -> keras.Model:
        """A functional model of the same inputs whose outputs are those of `transform`.

        Args:
            model: A functional or `Sequential` model that ends in a head of this family, or a
                subclassed one called in such; weights are shared.
            output: Which of several outputs: an index, a key or a function.
            detector: The detector of `model` whose score the rule was fitted to, if it was: what it
                has fitted becomes part of the model.

        Example:

        ```python
        import keras
        import tfuq

        model = keras.Sequential([keras.Input((8,)), tfuq.layers.NormalDense(1)])
        whole = tfuq.selective.RegressionRule("std", 0.5).append_to(model)
        print(sorted(whole.output))  # ['accept', 'lower', 'mean', 'score', 'std', 'upper']
        ```
        """
        return appended(self, model, output, detector)

    def describe(self) -> str:
        """The rule and its promise, in a sentence for the person who relies on it."""
        return description(self)


def _check_found(found):
    if not isinstance(found, RegressionUncertainty):
        raise ValueError(
            "Argument `found` must be what `tfuq.predictive.predict_uncertainty` gave for a "
            f"regression. Received: found={shown(found)}"
        )
