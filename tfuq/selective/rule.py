"""Rejection rules: a threshold of a score, and what was promised when it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    check_choice,
    check_flags,
    check_integer,
    register,
    shown,
)
from tfuq._files.reading import unsealed
from tfuq._models.numbers import declared_family
from tfuq._models.predicting import predicted
from tfuq._predictions.class_names import agreed_names, checked_names
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.scores import CONFIDENCES, OF_STACKS
from tfuq._predictions.stacks import is_stacked
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.predictive import declared
from tfuq.selective._guarantees import METHODS
from tfuq.selective._joint_fitting import check_together
from tfuq.selective._losses import is_chosen, is_several, promises_of
from tfuq.selective._monitored_cases import cases_of_classes
from tfuq.selective._number_fitting import check_left_out, fit_of_numbers
from tfuq.selective._own_rows import checked_calibration, split_rows
from tfuq.selective._reading import (
    array_of,
    flags_of,
    name_and_given,
    rule_score,
    scored,
    warn_of_smoothing,
)
from tfuq.selective._rule_evaluation import Evaluation
from tfuq.selective._rule_fitting import (
    Goal,
    UnattainableRisk,
    check_targets,
    checked_report,
    rank_of,
)
from tfuq.selective._rule_in_models import InModels
from tfuq.selective._rule_judging import JudgedRules
from tfuq.selective._rule_parts import FittedByParts
from tfuq.selective._rule_thresholds import (
    check_by,
    checked_thresholds,
    of_classes,
    of_groups,
    of_labels,
    passes,
)
from tfuq.selective._void import filled
from tfuq.selective.base import Fitted, config_of
from tfuq.selective.detector_scores import (
    check_is_in_order,
    is_detector,
    predicted_and_scored,
    with_mark,
)
from tfuq.selective.monitor import Watched
from tfuq.selective.regression_rule import RegressionRule

__all__ = ["Evaluation", "RejectionRule", "UnattainableRisk"]


@register
class RejectionRule(FittedByParts, InModels, JudgedRules, Watched, Fitted):
    """Rejection rule: accepts a prediction if its score passes a threshold.

    `RejectionRule.fit` makes one from labelled predictions; with a known threshold, call the
    constructor. Equal scores are accepted or rejected together. A prediction with NaN or infinity
    is never accepted.

    Args:
        score: `"confidence"`, the largest probability; `"margin"`, its distance from the second;
            `"predictive_entropy"` of the mean prediction in nats (formerly `"entropy"`, still
            accepted); for stacks of predictions only, `"expected_entropy"`, `"mutual_information"`
            in nats and `"variation_ratio"`; for three classes or more `"pnorm"` (`pnorm_score` with
            p = 2) or, for another p, `"pnorm(3)"` (`choose_p`); `"given"`: you pass the scores
            beside the predictions.
        threshold: The rule accepts a confidence or margin of at least this, or an uncertainty of at
            most this, compared in float32. With `by`, one for each of `keys`.
        by: None for one threshold; `"class"` for one for each predicted class; `"label"` for one
            for each label, with `multi_label`; `"group"` for one for each group of examples, such
            as a hospital.
        keys: The classes or the names of the groups, in the order of `threshold`.
        rank: Axes of a single prediction: 2 for `(n, classes)`, 1 for binary `(n,)`, 4 for images
            of pixels. An array with one axis more is a stack.
        from_logits: Whether predictions are logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own, with its
            own decision.
        fitted_to: What the rule was fitted to, a dict.
        class_names: Names of the classes, in the order of the last axis. Labels may be names then,
            and predictions of another number of classes are refused.
        calibration: A scaling fitted to other rows, applied to predictions first; not for stacks.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.selective import RejectionRule
    >>> RejectionRule("confidence", 0.7).accept([[0.9, 0.1], [0.4, 0.6]])
    array([ True, False])

    See also: `tfuq.selective.RegressionRule`, `tfuq.predictive.predict_uncertainty`.
    """

    def __init__(
        self,
        score: Any = "confidence",
        threshold: Any = 0.5,
        *,
        by: str | None = None,
        keys: Sequence[Any] | None = None,
        rank: int = 2,
        from_logits: bool = False,
        multi_label: bool = False,
        fitted_to: dict[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        calibration: Any = None,
    ) -> None:
        check_by(by, multi_label)
        check_integer("rank", rank, 1)
        check_flags(from_logits=from_logits, multi_label=multi_label)
        self.score = rule_score(score)
        self.by = by
        self.threshold, self.keys = checked_thresholds(threshold, by, keys)
        self.rank = rank
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.fitted_to = checked_report(fitted_to, by)
        self.class_names = checked_names(class_names)
        self.calibration = checked_calibration(calibration, rank, from_logits, multi_label)
        if self.calibration is not None and self.score in OF_STACKS:
            raise ValueError(
                f"Argument `calibration` must be None for the score {shown(self.score)} of stacks, "
                f"which it averages. Received: a {type(self.calibration).__name__}"
            )

    _cases = cases_of_classes

    @classmethod
    def _from_content(cls, content):
        """What `fit` gave is of numbers where the predictions were."""
        if unsealed(content)["class"] == RegressionRule.__name__:
            return RegressionRule._from_content(content)
        return super()._from_content(content)

    def get_config(self) -> dict[str, Any]:
        names = ("score", "threshold", "by", "keys", "rank", "from_logits", "multi_label")
        return config_of(self, (*names, "fitted_to"), ("class_names", "calibration"))

    @property
    def grows_with_trust(self) -> bool:
        """Whether a larger score is trusted more: of `"confidence"` and `"margin"`."""
        return self.score in CONFIDENCES

    # --- Fitting ------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        score: Any = None,
        target_risk: float | None = None,
        confidence: float = 0.95,
        *,
        target_coverage: float | None = None,
        costs: Mapping[str, Any] | None = None,
        method: str = "auto",
        thresholds: Sequence[float] | None = None,
        loss: Any = "error",
        positive_class: int | str | Sequence[int | str] = 1,
        by: str | None = None,
        groups: ArrayLike | None = None,
        simultaneous: bool = False,
        from_logits: bool = False,
        multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        calibration: Any = None,
        calibration_share: float = 0.5,
        seed: int = 0,
        tolerance: float | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_class: int | str | None = None,
    ) -> Self | RegressionRule:
        """Fits the threshold that accepts most while it keeps one target: risk, coverage or cost.

        `target_risk`: on new data like these, the mean loss of accepted answers exceeds it with a
        probability of at most 1 - `confidence`, for any number of rows and any distribution. The
        tests of thresholds use binomial p-values, or those of Hoeffding and Bentkus for losses
        other than 0 and 1. `method="auto"` combines a chain of tests from strict to lenient with a
        curve that the error counts of a bad threshold seldom fall below, with or without ties;
        `"ltt"` (Learn then Test) tests from eight starts, `"sgr"` (selection with guaranteed risk)
        at 16 ranks. All assume independent examples; for other losses and for images `"auto"` is
        `"ltt"`. If an example has many entries (pixels, labels), the examples are independent, not
        the entries: the promise is for E[loss of accepted entries] / E[accepted entries], tested at
        400 thresholds that do not depend on the data.

        `target_coverage`: the strictest threshold that accepts at least this fraction of the
        examples; equal scores are accepted together. It promises nothing about the risk.

        `costs`: the threshold with the lowest mean cost on these examples (Chow 1970). A promise
        needs rows of its own: fit a calibration of `probs` to other rows, or pass it as
        `calibration`.

        Args:
            probs: Predictions that the model has not been trained on: `(n, ..., classes)`; binary
                `(n,)` or `(n, ..., 1)`; multi-label `(n, ..., labels)`; or a stack of them,
                `(samples, n, ..., classes)`, whose mean is the answer. For a regression the result
                of `predict_uncertainty`: `fit` then returns a `RegressionRule` and takes the
                arguments of `RegressionRule.fit`.
            labels: Labels, sparse `(n, ...)` or one-hot; or names from `class_names`.
            score: As in the constructor; by default `"confidence"`, for a regression `"std"`. Or
                your own scores `(n,)`, larger for stranger examples (such as a detector's
                `score(x)`; `fit_model` is better for that), or a function that computes them from
                mean probabilities. Then `accept` needs the scores again, and the rule cannot be
                part of a model.
            target_risk: Risk in (0, 1) to keep.
            confidence: Probability in (0, 1) that the rule keeps it.
            target_coverage: Fraction in (0, 1].
            costs: Dict of costs: `"error"` of an accepted wrong answer, `"rejection"` of a
                rejection, `"review"` of a person's look at a rejected example, on top. A missing
                key costs 0.
            method: `"auto"`, `"ltt"` or `"sgr"`.
            thresholds: With `target_risk`, the only values of the (calibrated) score that the rule
                may take as threshold, ascending or descending, at most 1000. The test goes from the
                most trusted to the first that fails, with the full error probability at each, and
                for each of several losses; so the most trusted one has to accept enough. Choose
                them before you see these examples: round numbers, quantiles of other rows.
                Thresholds computed from these rows break the promise, which `fit` cannot notice in
                general.
            loss: `"error"`: the answer is not the true class. `"false_negative"`: among accepted
                examples of `positive_class`, the answer is another class; `"recall"`: the same as
                the share that is found, 1 - risk. `"precision"`: among accepted answers
                `positive_class`, the true class is another. Or costs in [0, 1] of each answer,
                `(classes, classes)`, a row for each true class. Or a function `loss(probs, labels)`
                of mean probabilities `(entries, classes)` and labels `(entries,)` that returns
                numbers in [0, 1]. Or several losses with a target each, as a dict or a list of
                pairs: `{"error": .1, "false negatives of melanoma": .05, "precision of 2": .9}`.
                One threshold then keeps all targets together with the confidence: at most that
                risk, and for precision and recall at least that share. "of A or B" counts two
                classes as one, "of A and B" promises for each.
            positive_class: The class of `"false_negative"`, `"recall"` and `"precision"`, a number
                or a name; several count as one class.
            by: None; or `"class"` for a threshold and a promise for each predicted class, `"label"`
                for each label of multi-label predictions, `"group"` for each group.
            groups: For `by="group"`, the group of each example `(n,)`, texts or numbers.
            simultaneous: With `by`: whether the confidence is for all promises together
                (Bonferroni), not for each alone.
            from_logits: Whether `probs` are logits.
            multi_label: Whether each entry of `probs` is a binary prediction of its own.
            calibration: An unfitted scaling, such as `IsotonicCalibration()`: `fit` fits it to some
                of the rows and the rule to the others, calibrated. It becomes part of the rule:
                `accept` and all other methods take raw predictions.
            calibration_share, seed: Fraction of the rows for the calibration, and seed of their
                draw.
            tolerance: For a regression: an answer that is further off than this is wrong.
            sample_weight: A mask or weights of 0 and 1, `(n,)` or with more axes of the labels.
                Entries with 0 are ignored, whatever they hold.
            ignore_class: Entries with this label are ignored, such as void pixels; or None.

        Returns:
            The rule. `rule.fitted_to` describes the data of the fit, and names the classes that the
            labels hold and lack. If no promise is possible for a predicted class or group, the rule
            never accepts it, and a warning says so.

        Raises:
            UnattainableRisk: If no threshold keeps the target. It gives the lowest attainable risk
                with its coverage and, if there are too few examples, the number needed.
            ValueError: If not exactly one target is given, a number is out of its range, arrays are
                empty, do not match, or hold NaN or labels that are no class; if `probs` are the
                calibrated rows that their calibration was fitted to; if no example counts for a
                loss.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import RejectionRule
        >>> p = np.linspace(0.5, 1, 500)
        >>> labels = (np.arange(500) % 10 < 9 * (p > 0.7)).astype(int)
        >>> rule = RejectionRule.fit(np.stack([1 - p, p], -1), labels, target_risk=0.2)
        >>> rule.fitted_to["accepted"], bool(rule.threshold > 0.6)
        (314, True)

        References:
            - Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", 2017.
            - Angelopoulos et al., "Learn then Test", 2021.
            - Chow, "On optimum recognition error and reject tradeoff", 1970.
        """
        if isinstance(probs, RegressionUncertainty):
            said = {"from_logits": from_logits, "multi_label": multi_label}
            said |= {"class_names": class_names, "calibration": calibration}
            said |= {"ignore_class": ignore_class, "sample_weight": sample_weight}
            said |= {"positive_class": positive_class if is_chosen(positive_class) else None}
            check_left_out("a regression", **said)
            goal = {"target_coverage": target_coverage, "costs": costs, "method": method}
            goal |= {"by": by, "groups": groups, "simultaneous": simultaneous, "seed": seed}
            goal |= {"tolerance": tolerance, "loss": loss, "thresholds": thresholds}
            return RegressionRule.fit(probs, labels, score, target_risk, confidence, **goal)
        check_left_out("classes", tolerance=tolerance)
        wanted = check_targets(target_risk, target_coverage, costs, confidence, is_several(loss))
        check_choice("method", method, tuple(METHODS))
        check_flags(simultaneous=simultaneous)
        flags = flags_of(probs, from_logits, multi_label)
        check_by(by, flags["multi_label"])
        rank = rank_of(array_of(probs), labels, flags["multi_label"], is_stacked(probs))
        name, given = name_and_given(score, "confidence")
        rule = cls(name, 0.0, rank=rank, class_names=class_names, **flags)
        asked = sample_weight, ignore_class
        probs, labels, given, known = filled(rule, probs, labels, given, *asked)
        if calibration is not None:
            check_left_out("calibrated rows", score=given)
            options = {"calibration": calibration, "share": calibration_share, "seed": seed}
            parts = split_rows(rule, probs, labels, groups, known, **options)
            fitted, probs, labels, groups, known = parts
            rule = cls(**{**rule.get_config(), "calibration": fitted})
        promises = promises_of(loss, positive_class, target_risk, rule.class_names)
        check_together(method, by, [promise.loss for promise in promises])
        sought = target_risk, target_coverage, costs, confidence, 1 - confidence, method
        goal = Goal(wanted, *sought, thresholds)
        rows = {"probs": probs, "labels": labels, "given": given, "known": known}
        return rule._fit_parts(rows, promises, is_several(loss), goal, by, groups, simultaneous)

    @classmethod
    def fit_model(
        cls,
        model: ModelLike,
        data: Data,
        *,
        output: Output | None = None,
        batch_size: int = 32,
        verbose: int = 0,
        **options: Any,
    ) -> Self | RegressionRule:
        """Predicts `data` with a model in one pass and fits the rule to the predictions, as `fit`.

        Args:
            model: A Keras model.
            data: `(x, y)` arrays, a `tf.data.Dataset` of such pairs, or a `PyDataset`; without
                sample weights, because weighted rows allow no promise.
            output: Which output, if there are several: an index, a key or a function.
            batch_size: Examples in a batch of arrays.
            verbose: As in Keras' `predict`.
            **options: Arguments of `fit`. `from_logits` and `multi_label` are by default what the
                last layer declares, else what the compiled loss says. `score` may be a fitted
                detector of `tfuq.ood`, an `ErrorPredictor` or a `CombinedScore`, fitted on other
                rows than these. `accept` then needs `score=detector.score(x)`, and the rule needs
                the detector wherever it goes: in models by `append_to(model, detector=detector)`,
                in exports and `score_dataset` with `ood=detector`.

        Returns:
            The rule.

        Raises:
            ValueError: As `fit`; if the data are of another kind, have no labels or have weights;
                if a detector is not fitted, or belongs to a model with other weights.

        Example:

        ```python
        import keras, numpy as np
        from tfuq.selective import RejectionRule

        model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        x = np.random.default_rng(0).normal(size=(400, 2))
        rule = RejectionRule.fit_model(model, (x, x.argmax(-1)), target_risk=0.05)
        ```
        """
        if declared_family(model, output) is not None:
            return fit_of_numbers(cls.fit, (model, data, output, batch_size, verbose), options)
        known = {"`class_names`": options.get("class_names"), "model": declared(model).class_names}
        options["class_names"] = agreed_names(known)
        score = options.get("score")
        if is_detector(score):
            given = (output, batch_size, verbose, options)
            found, options["score"] = predicted_and_scored(model, data, score, *given)
            rule = cls.fit(found.probs, found.labels, **{**found.flags(), **options})
            return with_mark(rule, score)
        check_is_in_order(score, data)
        warn_of_smoothing(model, output)
        found = predicted(model, data, output, batch_size, verbose, given=options)
        return cls.fit(found.probs, found.labels, **{**found.flags(), **options})

    # --- Use ----------------------------------------------------------------------------------

    def score_of(
        self, probs: ArrayLike | Uncertainty | RegressionUncertainty, *, stacked: bool | None = None
    ) -> np.ndarray:
        """The score of each prediction, `(n, ...)`, in its direction and unit; NaN for NaN.

        Args:
            probs: Predictions or a stack of them, of the kind that the rule was fitted to, or the
                result of `tfuq.predictive.predict_uncertainty`.
            stacked: Whether `probs` are a stack. By default results of `sample_predictions` and
                ensembles are stacks, and for other arrays the shape decides; for binary `(samples,
                n)` you must say so.
        """
        return scored(self, probs, stacked)[0]

    def accept(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
        stacked: bool | None = None,
        score: Any = None,
    ) -> np.ndarray:
        """Which predictions are accepted, bool `(n, ...)`.

        Args:
            probs: As for `score_of`.
            groups: With `by="group"`: the group of each example, `(n,)`.
            unknown_group: What to do with a group that fitting never saw: `"error"` or `"reject"`.
            stacked: As for `score_of`.
            score: For a rule that was fitted to your own scores: the scores of these predictions.

        Raises:
            ValueError: If shapes or classes do not fit, `probs` are no probabilities (with
                `from_logits`, if they are probabilities), groups are missing, or one is unknown.
        """
        check_choice("unknown_group", unknown_group, ("error", "reject"))
        score, mean = scored(self, probs, stacked, score)
        if self.by is None:
            return passes(self, score, self.threshold)
        if self.by == "class":
            return passes(self, score, of_classes(self, mean.shape[-1])[mean.argmax(axis=-1)])
        if self.by == "label":
            return passes(self, score, of_labels(self, score.shape[-1]))
        thresholds = of_groups(self, groups, len(score), unknown_group)
        return passes(self, score, thresholds.reshape(-1, *[1] * (score.ndim - 1)))
