"""Conformal intervals of numbers: they hold the true number as often as was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    Tensor,
    check_choice,
    check_flags,
    check_integer,
    register,
    shown,
    to_float64,
)
from tfuq._math.intervals import widened
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family
from tfuq._predictions.numbers import Interval, RegressionUncertainty, warn_of_unit
from tfuq.layers import PostProcessing
from tfuq.predictive.draws import uncertainty_with_labels
from tfuq.predictive.sampler import NUM_SAMPLES
from tfuq.selective._conformal_fitting import checked_alpha
from tfuq.selective._interval_evaluation import IntervalEvaluation, described
from tfuq.selective._interval_fitting import (
    check_counts,
    check_scores,
    check_unweighted,
    group_names,
    limits_by_group,
    limits_of,
    read_scores,
    thresholds,
)
from tfuq.selective._interval_graphs import check_model_family, interval_tensors
from tfuq.selective._interval_judging import JudgedIntervals
from tfuq.selective._interval_sources import (
    METHODS,
    Source,
    check_kind,
    checked_levels,
    labels_of,
    levels_of,
)
from tfuq.selective._repeated_rows import warn_of_repeated
from tfuq.selective.base import Fitted, config_of, numbers, with_outputs

__all__ = ["ConformalRegressor", "IntervalEvaluation"]


@register
class ConformalRegressor(JudgedIntervals, Fitted):
    """Conformal intervals: they hold the true number with a promised probability.

    `ConformalRegressor.fit` makes one from labelled examples that the model was not trained on.

    ```
    "split"       [mean - t, mean + t]                  one width for all  (Lei et al. 2018)
    "normalized"  [mean - t std, mean + t std]          wider where the model is less sure
    "cqr"         [q(alpha / 2) - t, q(1 - alpha / 2) + t]              (Romano et al. 2019)
    ```

    If a prediction is NaN or infinite, its interval is (-inf, inf).

    Args:
        method: `"split"`, `"normalized"` or `"cqr"`.
        threshold: t, `(units,)`, or a number for one unit; with `asymmetric` `(units, 2)`, below
            and above; with `keys` one axis more, the first.
        levels: Of "cqr", the levels of both quantiles; None of arrays.
        asymmetric: Whether each side has its own threshold.
        keys: Names of the groups, each with its own threshold, or None.
        family: Configuration of the family of the predictions, None of arrays.
        rank: Axes of the predictions, `(n, ..., units)`.
        fitted_to: What the threshold was fitted to, a dict.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.selective import ConformalRegressor
    >>> lower, upper = ConformalRegressor("split", 1.5).interval([0.0, 10.0])
    >>> lower.round(6).tolist(), upper.round(6).tolist()
    ([[-1.5], [8.5]], [[1.5], [11.5]])

    See also: `tfuq.selective.ConformalPredictor`, `tfuq.selective.AdaptiveConformal`,
    `tfuq.layers.QuantileDense`.
    """

    def __init__(
        self,
        method: str = "split",
        threshold: Any = 1.0,
        *,
        levels: Sequence[float] | None = None,
        asymmetric: bool = False,
        keys: Sequence[Any] | None = None,
        family: str | Mapping[str, Any] | Family | None = None,
        rank: int = 2,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        check_flags(asymmetric=asymmetric)
        check_integer("rank", rank, 2)
        self.method = method
        self.threshold = numbers("threshold", threshold)
        self.levels = checked_levels(levels, method)
        self.asymmetric = bool(asymmetric)
        self.keys = None if keys is None else [str(key) for key in keys]
        self.family = None if family is None else family_named(family).get_config()
        self.rank = rank
        self.fitted_to = dict(fitted_to or {})
        self._limits = limits_of(self.threshold, self.keys, self.asymmetric)

    @property
    def units(self) -> int:
        """How many numbers there are in the last axis."""
        return self._limits.shape[1]

    def get_config(self) -> dict[str, Any]:
        names = ("method", "threshold", "levels", "asymmetric", "keys", "family", "rank")
        return config_of(self, (*names, "fitted_to"))

    # --- Fitting ------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        found: ArrayLike | RegressionUncertainty,
        y: ArrayLike,
        alpha: float | None = None,
        method: str = "split",
        *,
        target_coverage: float | None = None,
        groups: ArrayLike | None = None,
        asymmetric: bool = False,
    ) -> Self:
        """The regressor whose intervals miss the true number with a probability of at most `alpha`.

        For n examples and a new one that are exchangeable (independent draws, say), whatever the
        model and the distribution:

        ```
        1 - alpha <= P(y in interval) <= 1 - alpha + 1 / (n + 1)     (the latter without ties)
        t = score of rank ceil((n + 1) (1 - alpha)) among the n labels
        ```

        The probability is over the calibration examples too: the coverage that one such set of
        examples leads to is Beta(k, n + 1 - k), k the rank. It is promised of each of the `units`
        by itself, with `groups` in each group by itself; not for each input x.

        Pixels or steps of an example are not exchangeable, examples are: of predictions
        `(n, ..., units)` with more axes n counts examples, and the expected fraction of a new
        example's entries that intervals miss is at most `alpha` (conformal risk control).

        Args:
            found: What `tfuq.predictive.predict_uncertainty` gave for examples that the model has
                not been trained on. Or arrays `(n, ..., units)`, `(n,)` for one unit: of "split"
                means, of "normalized" `(mean, std)`, of "cqr" `(lower, upper)` quantiles.
            y: Labels `(n, ..., units)`; the last axis may be missing if there is one unit.
            alpha: Fraction in (0, 1) to miss, by default 0.1.
            method: As in the constructor. Of "cqr" a head of quantiles, `QuantileDense`, needs no
                levels alpha / 2 and 1 - alpha / 2: its outermost ones serve if it has none so far
                out.
            target_coverage: 1 - `alpha`, instead of it.
            groups: The group of each example `(n,)`, texts or numbers, such as the device: each has
                a threshold of its own (Mondrian).
            asymmetric: Whether the two sides have thresholds of their own, each of which misses
                `alpha / 2`: for errors that are skewed, or a mean that is biased.

        Returns:
            The regressor; `fitted_to` says what it was fitted to.

        Raises:
            ValueError: If there are fewer than ceil(1 / alpha) - 1 examples, of each group if there
                are groups, twice as many with `asymmetric`: it tells that number. If arrays do not
                fit together or hold NaN; if the predictions are those of a classifier, or say no
                scale that the method needs.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import ConformalRegressor
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=2000)
        >>> y = x + 0.5 * rng.normal(size=2000)
        >>> sets = ConformalRegressor.fit(x[:1000], y[:1000], alpha=0.1)
        >>> bool(0.87 < sets.coverage(x[1000:], y[1000:]).coverage < 0.93)
        True

        References:
            - Lei et al., "Distribution-free predictive inference for regression", 2018.
            - Romano, Patterson and Candes, "Conformalized quantile regression", 2019.
            - Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005 (Mondrian).
            - Angelopoulos et al., "Conformal risk control", 2024.
        """
        alpha = checked_alpha(alpha, target_coverage)
        check_choice("method", method, METHODS)
        check_flags(asymmetric=asymmetric)
        levels = levels_of(found, method, alpha)
        source = Source(found, method, levels)
        y = labels_of(y, source.shape)
        names = None if groups is None else group_names(groups, len(source))
        keys, counts = (None, None) if names is None else np.unique(names, return_counts=True)
        counted = {None: len(source)}
        if names is not None:
            counted = dict(zip(keys.tolist(), counts.tolist(), strict=True))
        check_counts(counted, alpha, 1 + asymmetric)
        scores, total = read_scores(source, y, asymmetric)
        check_scores(scores, method)
        warn_of_repeated(scores[0], y)
        if source.is_uncertainty:
            warn_of_unit(found, y)
        parts = [None] if names is None else [names == key for key in keys]
        limits = np.stack([thresholds(scores, rows, alpha) for rows in parts])
        limits = limits if asymmetric else limits[..., 0]
        report = {"alpha": alpha, "examples": len(source), "rows": f"{total:016x}"}
        report |= {} if source.draws is None else {"draws": source.draws}
        report |= {} if names is None else {"examples_of_group": counted}
        return cls(
            method,
            limits[0] if names is None else limits,
            levels=levels,
            asymmetric=asymmetric,
            keys=None if names is None else keys.tolist(),
            family=source.family,
            rank=len(source.shape),
            fitted_to=report,
        )

    @classmethod
    def fit_model(
        cls,
        model: ModelLike,
        data: Data,
        *,
        num_samples: int = NUM_SAMPLES,
        output: Output | None = None,
        batch_size: int = 32,
        family: str | Mapping[str, Any] | Family | None = None,
        seed: int = 0,
        verbose: int = 0,
        **options: Any,
    ) -> Self:
        """As `fit`, of the predictions that a model makes for `data`, in one pass over it.

        Args:
            model: A Keras model of numbers.
            data: `(x, y)` arrays, a `tf.data.Dataset` of such pairs, or a `PyDataset`; without
                sample weights, of which nothing could be promised.
            num_samples: Draws of a model with random layers.
            output, batch_size, family, seed, verbose: As in `predict_uncertainty`.
            **options: Arguments of `fit`.

        Returns:
            The regressor.

        Raises:
            ValueError: As `fit`; if the model is a classifier; if the data have no labels or have
                weights.

        Example:

        ```python
        import keras, numpy as np
        from tfuq.layers import NormalDense
        from tfuq.selective import ConformalRegressor

        model = keras.Sequential([keras.Input((3,)), NormalDense(1)])
        x = np.random.default_rng(0).normal(size=(100, 3))
        sets = ConformalRegressor.fit_model(model, (x, x[:, 0]), method="normalized")
        ```
        """
        found, y, weight = uncertainty_with_labels(
            model,
            data,
            num_samples,
            batch_size,
            output=output,
            seed=seed,
            verbose=verbose,
            takes_numbers=True,
            family=family,
        )
        check_unweighted(y, weight)
        return cls.fit(found, y, **options)

    # --- Use ----------------------------------------------------------------------------------

    def interval(
        self,
        found: ArrayLike | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
    ) -> Interval:
        """The interval of each number.

        Args:
            found: Predictions of the kind that it was fitted to.
            groups: The group of each example `(n,)`, if it was fitted to groups.
            unknown_group: Of a group that fitting never saw: `"error"`, or `"unbounded"` for
                intervals (-inf, inf).

        Returns:
            Named tuple `(lower, upper)` of arrays `(n, ..., units)`.

        Raises:
            ValueError: If the predictions are of another kind, family or number of units, if groups
                are missing or one is unknown.
        """
        source = self._source(found)
        limits = limits_by_group(self.keys, self._limits, groups, len(source), unknown_group)
        lower, upper = np.empty(source.shape), np.empty(source.shape)
        for rows in source.blocks():
            ends = source.ends(rows)
            part = limits if len(limits) == 1 else limits[rows]
            part = part.reshape(len(part), *[1] * (len(source.shape) - 2), *part.shape[1:])
            below, above = part[..., 0], part[..., 1]
            with np.errstate(invalid="ignore"):  # of rows that are unknown
                found = widened(ends, below, above, np.finfo("float64").eps)
                lower[rows], upper[rows] = found
        return Interval(lower, upper)

    def _source(self, found):
        source = Source(found, self.method, self.levels)
        check_kind(source, self, self.units)
        return source

    def accept(
        self,
        found: ArrayLike | RegressionUncertainty,
        max_width: float | ArrayLike,
        groups: ArrayLike | None = None,
    ) -> np.ndarray:
        """Which numbers have an interval of at most `max_width`, bool `(n, ..., units)`.

        What is not known, and what is of an unknown group, is not accepted. Among the accepted the
        intervals need not hold as often as promised of all: for that, fit a rejection rule.

        Args:
            found, groups: As in `interval`.
            max_width: Width in the unit of the label, a number or one for each unit.

        Raises:
            ValueError: As `interval`; if `max_width` is no number above 0.
        """
        widths = to_float64("max_width", max_width)
        if not (widths > 0).all() or widths.shape not in ((), (self.units,)):
            raise ValueError(
                "Argument `max_width` must be a number above 0, or one for each unit. "
                f"Received: max_width={shown(max_width)}"
            )
        lower, upper = self.interval(found, groups, unknown_group="unbounded")
        return (upper - lower <= widths) & np.isfinite(upper - lower)

    def describe(self) -> str:
        """The promise, in a sentence for the person who relies on it."""
        return described(self, self._limits)

    # --- In models ----------------------------------------------------------------------------

    def transform(self, predictions: Tensor) -> dict[str, Tensor]:
        """Tensors `"mean"`, `"std"`, `"lower"` and `"upper"` for tensors of predictions.

        Args:
            predictions: Parameters `(batch, ..., units * size)` of the family that it was fitted
                to, of a fit to means these; or a stack of them, `(samples, batch, ...)`, if it was
                fitted to several draws.

        Returns:
            A dict of tensors `(batch, ..., units)`, float32.

        Raises:
            ValueError: If it was fitted to groups, which a model does not know, or to a pair of
                arrays; if predictions are no stack and should be one, or the other way round.
        """
        return interval_tensors(self, self._limits, predictions)

    def append_to(self, model: keras.Model, output: Output | None = None) -> keras.Model:
        """A functional model of the same inputs whose outputs are those of `transform`.

        Args:
            model, output: As in `RejectionRule.append_to`.

        Raises:
            ValueError: As `transform`; if the model does not know its inputs.

        Example:

        ```python
        import keras
        from tfuq.layers import NormalDense
        from tfuq.selective import ConformalRegressor

        model = keras.Sequential([keras.Input((8,)), NormalDense(1)])
        whole = ConformalRegressor("normalized", 1.7, family="normal").append_to(model)
        print(sorted(whole.output))  # ['lower', 'mean', 'std', 'upper']
        ```
        """
        check_model_family(self, model, output)
        return with_outputs(model, PostProcessing(self, name="conformal"), output)
