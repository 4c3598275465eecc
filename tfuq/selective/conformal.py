"""Conformal prediction sets: they hold the true label as often as was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

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
)
from tfuq._models.predicting import predicted
from tfuq._predictions.class_names import agreed_names, checked_names
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.stacks import is_stacked
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.predictive import declared
from tfuq.selective._conformal_fitting import (
    check_options,
    checked_alpha,
    checked_threshold,
    is_tuned,
    split,
    tune,
)
from tfuq.selective._interval_fitting import group_names
from tfuq.selective._label_shift import LabelShift
from tfuq.selective._own_rows import check_own_rows, checked_calibration, split_rows
from tfuq.selective._reading import array_of, checked_classes, flags_of, mean_of
from tfuq.selective._rule_fitting import rank_of
from tfuq.selective._set_evaluation import SetCoverage, SetEvaluation
from tfuq.selective._set_fitting import FittedSets
from tfuq.selective._set_groups import checked_keys, places_of, sets_by_group
from tfuq.selective._set_judging import JudgedSets
from tfuq.selective._sets_in_models import SetsInModels
from tfuq.selective._void import check_untuned, filled, rows_known
from tfuq.selective._weighted_sets import (
    asked_weights,
    check_alone,
    checked_limits,
    checked_weights,
    sets_of_weights,
    thresholds_at,
)
from tfuq.selective.base import Fitted, config_of
from tfuq.selective.conformal_scores import SCORES, prediction_sets, strangeness, uniform_of

__all__ = ["ConformalPredictor", "SetCoverage", "SetEvaluation"]

_PENALTY, _K_REG = 0.1, 2  # of "raps", where nothing is said


@register
class ConformalPredictor(FittedSets, SetsInModels, JudgedSets, Fitted):
    """Conformal prediction: sets of labels that hold the true one with a promised probability.

    `ConformalPredictor.fit` makes one from labelled examples that the model was not trained on. The
    set of a prediction holds all labels whose nonconformity score is at most a threshold:

    ```
    "lac"   1 - p_y                                              (Sadinle et al. 2019)
    "aps"   sum of all p_j > p_y, plus p_y                       (Romano et al. 2020)
    "raps"  the same + penalty max(0, rank of y - k_reg)         (Angelopoulos et al. 2021)
    ```

    A prediction with NaN or infinity gets the set of all labels, and is not accepted.

    Args:
        score: `"lac"` makes the smallest sets; the sets of `"aps"` grow where the model is less
            sure; `"raps"` shortens their long tails of unlikely labels.
        threshold: The largest score in a set, `inf` for all labels: a number; with `keys` one row
            for each group; with `class_conditional` one for each class, `(classes,)`; of
            multi-label predictions one for each label, `(labels,)`, or for its absence and
            presence, `(labels, 2)`.
        class_conditional: Whether each class has its own threshold.
        randomized: For "aps" and "raps": whether only a fraction of p_y counts. The fraction is a
            hash of the prediction, uniform on [0, 1). Sets are smaller, but depend on the
            prediction's last bit.
        penalty: Of "raps", by default 0.1.
        k_reg: Of "raps", labels without penalty, by default 2.
        allow_empty: Whether a set may be empty; otherwise it gets the most likely label. By default
            True for "lac", whose sets are empty if no label is likely, and False for "aps" and
            "raps", whose sets would be empty if one label is nearly certain.
        seed: Of the hash.
        rank: Axes of a single prediction: 2 for `(n, classes)`, 1 for binary `(n,)`, 4 for images
            of pixels. An array with one axis more is a stack.
        from_logits: Whether predictions are logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own. Its set
            is one of {}, {0}, {1} and {0, 1}.
        fitted_to: What the threshold was fitted to, a dict.
        class_names: As in `RejectionRule`.
        calibration: As there.
        keys: Names of the groups, each with its own threshold, or None.
        weight_limits: For each threshold the largest weight of an example that it is for, both
            ascending; or None (`fit(weights=)`).

    Raises:
        ValueError: If an argument is not as described, or does not apply to this score.

    Example:

    >>> from tfuq.selective import ConformalPredictor
    >>> ConformalPredictor("lac", 0.7).predict_set([[0.9, 0.06, 0.04], [0.5, 0.4, 0.1]])
    array([[ True, False, False],
           [ True,  True, False]])

    See also: `tfuq.selective.ConformalRegressor`, `tfuq.selective.CovariateShift`,
    `tfuq.selective.RejectionRule`.
    """

    def __init__(
        self,
        score: str = "lac",
        threshold: Any = 0.9,
        *,
        class_conditional: bool = False,
        randomized: bool = False,
        penalty: float | str | None = None,
        k_reg: int | None = None,
        allow_empty: bool | None = None,
        seed: int = 0,
        rank: int = 2,
        from_logits: bool = False,
        multi_label: bool = False,
        fitted_to: dict[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        calibration: Any = None,
        keys: Sequence[Any] | None = None,
        weight_limits: Any = None,
    ) -> None:
        check_choice("score", score, SCORES)
        check_flags(
            class_conditional=class_conditional,
            randomized=randomized,
            allow_empty=False if allow_empty is None else allow_empty,
            from_logits=from_logits,
            multi_label=multi_label,
        )
        check_integer("seed", seed, 0)
        check_integer("rank", rank, 1)
        check_options(score, randomized, penalty, k_reg)
        own = {"keys": keys, "class_conditional": class_conditional, "multi_label": multi_label}
        axes = sum(value is not None and value is not False for value in own.values())
        self.threshold = checked_threshold(threshold, axes + (weight_limits is not None))
        self.weight_limits = checked_limits(weight_limits, self.threshold, **own)
        self.keys = checked_keys(keys, self.threshold)
        self.score = score
        self.class_conditional = class_conditional
        self.randomized = randomized
        self.penalty = _PENALTY if penalty is None and score == "raps" else penalty
        self.k_reg = _K_REG if k_reg is None and score == "raps" else k_reg
        self.allow_empty = bool(score == "lac" if allow_empty is None else allow_empty)
        self.seed = seed
        self.rank = rank
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.fitted_to = checked_classes(dict(fitted_to or {}))
        self.class_names = checked_names(class_names)
        self.calibration = checked_calibration(calibration, rank, from_logits, multi_label)

    def get_config(self) -> dict[str, Any]:
        names = ("score", "threshold", "class_conditional", "randomized", "penalty", "k_reg")
        names += ("allow_empty", "seed", "rank", "from_logits", "multi_label", "fitted_to")
        return config_of(self, names, ("class_names", "calibration", "keys", "weight_limits"))

    @property
    def by(self) -> str | None:
        """`"group"` where each group has thresholds of its own, else None."""
        return None if self.keys is None else "group"

    # --- Fitting ------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        score: str = "lac",
        alpha: float | None = None,
        *,
        target_coverage: float | None = None,
        class_conditional: bool = False,
        randomized: bool = False,
        penalty: float | str | None = None,
        k_reg: int | str | None = None,
        tuning_share: float = 0.2,
        allow_empty: bool | None = None,
        seed: int = 0,
        from_logits: bool = False,
        multi_label: bool = False,
        class_names: Sequence[str] | None = None,
        calibration: Any = None,
        calibration_share: float = 0.5,
        groups: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_class: int | str | None = None,
    ) -> Self:
        """The predictor whose sets miss the true label with a probability of at most `alpha`.

        For n examples and a new one that are exchangeable (independent draws, say), whatever the
        model and the distribution:

        ```
        1 - alpha <= P(true label in set) <= 1 - alpha + 1 / (n + 1)
        threshold = score of rank ceil((n + 1) (1 - alpha)) among the n true labels
        ```

        The upper bound needs scores without ties, and sets that may be empty. The probability is
        over the calibration examples too: the coverage that one such set of examples leads to
        is Beta(k, n + 1 - k), k the rank. With `class_conditional` the lower bound holds for the
        examples of each class by themselves.

        What is promised of multi-label predictions is the same for each label by itself; with
        `class_conditional`, for its presence and its absence each. Entries of an image are not
        exchangeable, images are: of per-pixel predictions n counts images, and the expected
        fraction of a new image's pixels whose set misses their class is at most `alpha` (conformal
        risk control), with `class_conditional` the fraction of its pixels of that class, if it
        has any.

        Args:
            probs: Predictions that the model has not been trained on: `(n, ..., classes)`; binary
                `(n,)` or `(n, ..., 1)`; multi-label `(n, ..., labels)`; or a stack of them,
                `(samples, n, ..., classes)`, whose mean is the prediction.
            labels: Labels, sparse `(n, ...)` or one-hot; or names, of `class_names`.
            score: As in the constructor.
            alpha: Fraction in (0, 1) to miss, by default 0.1.
            target_coverage: 1 - `alpha`, instead of it.
            class_conditional: As in the constructor. A class with too few examples, or none, is in
                every set, and a warning says so.
            randomized: As in the constructor.
            penalty: As in the constructor, or `"tuned"`: that of 0.001, 0.01, 0.1, 0.2, 0.5 which
                gives the smallest sets.
            k_reg: As in the constructor, or `"tuned"`: the rank that a true label passes with a
                probability of `alpha`.
            tuning_share: Fraction of the examples, drawn at random, that is set aside to tune and
                does not calibrate; only if something is tuned.
            allow_empty: As in the constructor.
            seed: Of the examples to tune and to calibrate with, and of the hash.
            from_logits: Whether `probs` are logits.
            multi_label: Whether each entry of `probs` is a binary prediction of its own.
            class_names: As in the constructor.
            calibration, calibration_share: As in `RejectionRule.fit`; a calibration that is fitted
                elsewhere needs other rows than these.
            groups: The group of each example `(n,)`, texts or numbers, such as the hospital: the
                promise holds in each by itself (Mondrian: Vovk et al. 2003), and `predict_set`
                needs the groups of new examples. A group of fewer examples than are needed gets
                sets of all labels, and a warning says so.
            weights: For data from elsewhere, of single decisions: how many times as frequent the
                like of each example is there, `(n,)` (`CovariateShift.weights`): `predict_set` then
                needs those of new examples. Or what `black_box_shift_estimation` found, if only the
                frequencies of the classes changed: a threshold for each class. The promise is of
                those data, if the weights are right: estimated ones are nearly.
            sample_weight, ignore_class: As in `RejectionRule.fit`: what counts nowhere.

        Returns:
            The predictor; `fitted_to` says what it was fitted to.

        Raises:
            ValueError: If there are fewer than ceil(1 / alpha) - 1 examples (of each class, with
                `class_conditional`; in any group): it tells that number. If an argument is out of
                its range or not for this score; if arrays are empty or do not fit together, hold
                NaN or labels that are no class, or are rows that a calibration was fitted to.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import ConformalPredictor
        >>> rng = np.random.default_rng(0)
        >>> probs = rng.dirichlet(np.ones(3), size=400)
        >>> labels = (rng.random((400, 1)) > probs.cumsum(axis=1)).sum(axis=1)
        >>> sets = ConformalPredictor.fit(probs[:200], labels[:200], alpha=0.1)
        >>> bool(0.85 < sets.coverage(probs[200:], labels[200:]).coverage < 0.95)
        True

        References:
            - Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers", 2019.
            - Romano, Sesia and Candes, "Classification with valid and adaptive coverage", 2020.
            - Angelopoulos et al., "Uncertainty sets for image classifiers using conformal
              prediction", 2021.
            - Angelopoulos et al., "Conformal risk control", 2024.
            - Tibshirani et al., "Conformal prediction under covariate shift", 2019.
            - Podkopaev and Ramdas, "Distribution-free uncertainty quantification for classification
              under label shift", 2021.
        """
        alpha = checked_alpha(alpha, target_coverage)
        tuned = [name for name, x in (("penalty", penalty), ("k_reg", k_reg)) if is_tuned(x)]
        options = {"class_conditional": class_conditional, "randomized": randomized}
        options |= {"allow_empty": allow_empty, "seed": seed, "class_names": class_names}
        options |= flags_of(probs, from_logits, multi_label)
        draft = cls(
            score,
            np.full((1,) * (bool(class_conditional) + bool(multi_label)), np.inf),
            penalty=None if "penalty" in tuned else penalty,
            k_reg=None if "k_reg" in tuned else k_reg,
            rank=rank_of(array_of(probs), labels, options["multi_label"], is_stacked(probs)),
            **options,
        )
        if tuned and score != "raps":
            check_options(score, randomized, penalty, k_reg)
        check_alone(draft, weights, groups)
        has_each = weights is not None and not isinstance(weights, LabelShift)
        beside = weights if has_each else groups
        probs, labels, _, known = filled(draft, probs, labels, None, sample_weight, ignore_class)
        if calibration is not None:
            given = {"calibration": calibration, "share": calibration_share, "seed": seed}
            parts = split_rows(draft, probs, labels, beside, known, **given)
            fitted, probs, labels, beside, known = parts
            draft = cls(**{**draft.get_config(), "calibration": fitted})
        given, (probs, labels) = probs, draft._read(probs, labels)
        check_own_rows(given, probs, labels)
        rows, tuning = rows_known(known, len(probs)), []
        if tuned:
            check_untuned(known, tuned)
            tuning, rows = (rows[part] for part in split(len(rows), tuning_share, seed))
            tune(draft, probs[tuning], labels[tuning], alpha, tuned)
        names = None if groups is None else group_names(beside, len(probs))[rows]
        weights = checked_weights(beside, labels.shape)[rows] if has_each else weights
        beside = len(tuning), names, weights, None if known is None else known[rows]
        return draft._calibrated(probs[rows], labels[rows], alpha, *beside)

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
    ) -> Self:
        """As `fit`, of the predictions that a model makes for `data`, in one pass over it.

        Args:
            model: A Keras model.
            data: `(x, y)` arrays, a `tf.data.Dataset` of such pairs, or a `PyDataset`; without
                sample weights, of which nothing could be promised.
            output: Which output, if there are several: an index, a key or a function.
            batch_size: Examples in a batch of arrays.
            verbose: As in Keras' `predict`.
            **options: Arguments of `fit`. `from_logits` and `multi_label` are by default what the
                last layer declares, else what the compiled loss says.

        Returns:
            The predictor.

        Raises:
            ValueError: As `fit`; if the data are of another kind, have no labels or have weights.

        Example:

        ```python
        import keras, numpy as np
        from tfuq.selective import ConformalPredictor

        model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
        x = np.random.default_rng(0).normal(size=(100, 3))
        sets = ConformalPredictor.fit_model(model, (x, x.argmax(-1)), alpha=0.05)
        ```
        """
        known = {"`class_names`": options.get("class_names"), "model": declared(model).class_names}
        options["class_names"] = agreed_names(known)
        found = predicted(model, data, output, batch_size, verbose, given=options)
        return cls.fit(found.probs, found.labels, **{**found.flags(), **options})

    # --- Use ----------------------------------------------------------------------------------

    def _mean(self, probs, stacked=None):
        return mean_of(self, probs, stacked)

    def _scores(self, probs):
        """Scores of all classes, as an array."""
        share = uniform_of(probs, self.seed) if self.randomized else None
        probs = ops.convert_to_tensor(probs)
        return ops.convert_to_numpy(strangeness(probs, self.score, self.penalty, self.k_reg, share))

    def _set(self, probs, scores, place=None):
        """Sets, a bool for each class, of mean probabilities and scores, as tensors."""
        limits = self.threshold if place is None else self.threshold[place]
        flags = (self.class_conditional, self.multi_label, self.allow_empty)
        return prediction_sets(probs, scores, limits, *flags)

    def _sets(self, mean, groups=None, unknown_group="all", weights=None):
        scores = self._scores(mean)
        places = places_of(self.keys, groups, len(mean), unknown_group)
        weights = asked_weights(self.weight_limits, weights, mean.shape[:-1])
        if weights is not None:
            limits = thresholds_at(self.threshold, self.weight_limits, weights)
            return sets_of_weights(mean, scores, limits, self.allow_empty)

        def sets_of(rows, place):
            given = ops.convert_to_tensor(mean[rows]), scores[rows]
            return ops.convert_to_numpy(self._set(*given, place))

        if places is None:
            return sets_of(slice(None), None)
        return sets_by_group(sets_of, places, scores)

    def predict_set(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
        stacked: bool | None = None,
        weights: ArrayLike | None = None,
    ) -> np.ndarray:
        """Which labels are in each set, bool `(n, ..., classes)`.

        Binary predictions have two classes; the last axes of multi-label ones are `(labels, 2)`.

        Args:
            probs: Predictions or a stack of them, of the kind that the predictor was fitted to, or
                what `tfuq.predictive.predict_uncertainty` gave.
            groups: The group of each example `(n,)`, if it was fitted to groups.
            unknown_group: Of a group that fitting never saw: `"error"`, or `"all"` for sets of all
                labels.
            stacked: Whether they are a stack, as in `RejectionRule.score_of`.
            weights: The weight of each example `(n,)`, if it was fitted to such.

        Raises:
            ValueError: If shapes or classes do not fit, or `probs` hold no probabilities; if groups
                or weights are missing, not expected, or one is unknown.
        """
        return self._sets(self._mean(probs, stacked), groups, unknown_group, weights)
