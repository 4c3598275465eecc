"""Conformal intervals of a series, whose level adapts to how often they were wrong."""

from __future__ import annotations

import bisect
import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfuq._arguments import (
    ArrayLike,
    check_choice,
    check_integer,
    check_positive,
    is_finite,
    register,
    shown,
)
from tfuq._math.intervals import widened
from tfuq._predictions.numbers import Interval, RegressionUncertainty
from tfuq.selective._conformal_fitting import checked_alpha
from tfuq.selective._interval_sources import Source, labels_of
from tfuq.selective.base import Fitted, config_of, numbers

__all__ = ["AdaptiveConformal"]

EPSILON = np.finfo("float64").eps


@register
class AdaptiveConformal(Fitted):
    """Intervals for a series, one step ahead, with the coverage you ask for in the long run.

    The series may drift: it need not be exchangeable. After each step the level of the next
    interval falls if the last interval missed, and rises if it did not (adaptive conformal
    inference, Gibbs and Candes 2021):

    ```
    level_{t+1} = level_t + step_size (alpha - [y_t outside its interval])
    t = score of rank ceil((n + 1) (1 - level_t)) among the last n = `window` scores
    ```

    Whatever the series and the model, after T steps

    ```
    |share of misses - alpha| <= (max(alpha, 1 - alpha) + step_size) / (step_size T)
    ```

    (proposition 4.1 of the paper; the lower side if labels do not equal predictions). A level of at
    most 0 gives (-inf, inf), a level of 1 or more a point. There is no promise for a single step.
    The state is saved, so a loaded object continues where it was.

    Args:
        alpha: Fraction in (0, 1) to miss.
        step_size: How fast the level adapts: 0.005 is the paper's; 0 is conformal prediction with a
            moving window.
        window: How many of the last scores are kept.
        method: `"split"`, whose score is |y - mean|, or `"normalized"`, |y - mean| / std.
        level, scores, steps, misses, pending: The state: the level of the next interval, the last
            scores, how many labels came, how many of them were missed, and the prediction
            `[mean, scale, lower, upper]` whose label has not come.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import AdaptiveConformal
    >>> rng = np.random.default_rng(0)
    >>> sets = AdaptiveConformal(alpha=0.1, step_size=0.01)
    >>> for t in range(2000):
    ...     mean = np.sin(t / 50)
    ...     lower, upper = sets.interval(mean)
    ...     sets.update(mean + (1 + t / 1000) * rng.normal())  # a scale that drifts
    >>> bool(abs(sets.miscoverage - 0.1) < 0.02)
    True

    References:
        - Gibbs and Candes, "Adaptive conformal inference under distribution shift", 2021.

    See also: `tfuq.selective.ConformalRegressor`.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        step_size: float = 0.005,
        window: int = 1000,
        *,
        method: str = "split",
        level: float | None = None,
        scores: Sequence[float] = (),
        steps: int = 0,
        misses: int = 0,
        pending: Any = None,
    ) -> None:
        self.alpha = checked_alpha(alpha, None)
        if step_size != 0:
            check_positive("step_size", step_size)
        check_integer("window", window, 1)
        check_choice("method", method, ("split", "normalized"))
        check_integer("steps", steps, 0)
        check_integer("misses", misses, 0)
        self.step_size = float(step_size)
        self.window = window
        self.method = method
        self.level = self.alpha if level is None else float(numbers("level", level))
        self._recent = collections.deque(numbers("scores", scores).ravel().tolist()[-window:])
        self._sorted = sorted(self._recent)
        self.steps = steps
        self.misses = misses
        self.pending = None if pending is None else _checked_pending(pending)

    @property
    def scores(self) -> list[float]:
        """The last scores, a list, the oldest first."""
        return list(self._recent)

    def get_config(self) -> dict[str, Any]:
        names = ("alpha", "step_size", "window", "method", "level", "scores", "steps", "misses")
        return config_of(self, (*names, "pending"))

    @property
    def miscoverage(self) -> float:
        """Share of the labels so far that their intervals missed; NaN before the first."""
        return self.misses / self.steps if self.steps else math.nan

    @property
    def bound(self) -> float:
        """How far `miscoverage` is from `alpha` at most, after so many steps; inf before them."""
        if not self.steps or not self.step_size:
            return math.inf
        reach = max(self.alpha, 1 - self.alpha) + self.step_size
        return reach / (self.step_size * self.steps)

    def interval(self, found: ArrayLike | RegressionUncertainty) -> Interval:
        """The interval of the next number, whose label `update` then tells.

        Args:
            found: The predicted mean, a number; or one row of what
                `tfuq.predictive.predict_uncertainty` gave, which "normalized" needs. What is not
                finite has the interval (-inf, inf), and teaches nothing.

        Returns:
            Named tuple `(lower, upper)` of floats.

        Raises:
            ValueError: If `found` is more than one number, or if the label of the last one has not
                been told: `update(nan)` says that it never will be.
        """
        if self.pending is not None:
            raise ValueError(
                "Call `update` with the label of the last interval before you ask for the next "
                "one, or update(nan) if it has none. Received: interval() twice"
            )
        mean, scale = _read_one(found, self.method)
        lower, upper = self._ends(mean, scale)
        self.pending = [mean, scale, lower, upper]
        return Interval(lower, upper)

    def _ends(self, mean, scale):
        limit = self._threshold()
        with np.errstate(invalid="ignore"):
            ends = widened(np.array([mean, mean, scale]), limit, limit, EPSILON)
        return tuple(float(end) for end in ends)

    def _threshold(self):
        """The score of the rank that the level asks for; inf if there are too few."""
        if self.level >= 1:
            return 0.0
        rank = math.ceil((len(self._sorted) + 1) * (1 - self.level) - 1e-9)
        return self._sorted[max(rank, 1) - 1] if rank <= len(self._sorted) else math.inf

    def update(self, y: float | ArrayLike) -> None:
        """Tells the label of the last interval.

        Args:
            y: The true number; NaN if it never came, which changes nothing.

        Raises:
            ValueError: If no interval was asked for since the last label, or `y` is no number.
        """
        if self.pending is None:
            raise ValueError(
                "Call `interval` before each `update`, which takes the label of that prediction. "
                f"Received: y={shown(y)} without one"
            )
        y = _number("y", y)
        self._learn(y, *self.pending)
        self.pending = None

    def _learn(self, y, mean, scale, lower, upper):
        if not np.isfinite([y, mean, scale]).all():
            return
        missed = not lower <= y <= upper
        self.steps += 1
        self.misses += missed
        self.level += self.step_size * (self.alpha - missed)
        error = abs(y - mean)
        self._keep(0.0 if error == 0 else error / scale if scale else math.inf)

    def _keep(self, score):
        if len(self._recent) == self.window:
            oldest = self._recent.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]
        self._recent.append(score)
        bisect.insort(self._sorted, score)

    def run(self, found: ArrayLike | RegressionUncertainty, y: float | ArrayLike) -> Interval:
        """Intervals of a whole series, each from what came before it; the state goes along.

        Args:
            found: Predictions in the order of time: means `(n,)` or `(n, 1)`, or the
                result of `predict_uncertainty`.
            y: Labels `(n,)` or `(n, 1)`; NaN where there is none.

        Returns:
            Named tuple `(lower, upper)` of arrays `(n, 1)`.

        Raises:
            ValueError: If shapes do not fit, if there is more than one number in each step, or the
                label of an interval has not been told.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import AdaptiveConformal
        >>> noise = np.random.default_rng(0).normal(size=500)
        >>> lower, upper = AdaptiveConformal(alpha=0.2).run(np.zeros(500), noise)
        >>> bool(np.isinf(upper[0]).all() and np.isfinite(upper[-1]).all())
        True
        """
        if self.pending is not None:
            raise ValueError(
                "Call `update` with the label of the last interval before `run`. Received: an "
                "interval without one"
            )
        source = Source(_means(found, self.method), self.method)
        _check_one(source.shape)
        y = labels_of(y, source.shape).astype("float64")[:, 0]
        mean, _, scale = source.ends(slice(None))
        scales = np.broadcast_to(np.asarray(scale), mean.shape)
        ends = np.empty((2, len(y)))
        for step, (m, s, label) in enumerate(
            zip(mean[:, 0].tolist(), scales[:, 0].tolist(), y.tolist(), strict=True)
        ):
            lower, upper = self._ends(m, s)
            ends[:, step] = lower, upper
            self._learn(label, m, s, lower, upper)
        return Interval(*ends[..., None])


def _means(found, method):
    """`found`; a list of means as an array."""
    is_list = isinstance(found, (list, tuple)) and method == "split"
    return np.asarray(found) if is_list else found


def _read_one(found, method):
    """Mean and scale of one prediction."""
    if isinstance(found, RegressionUncertainty):
        source = Source(found, method)
        _check_one(source.shape)
        if len(source) != 1:
            raise ValueError(
                "Argument `found` must be one row, such as found[t:t + 1]; `run` takes a series. "
                f"Received: {len(source)} rows"
            )
        mean, _, scale = (float(np.ravel(part)[0]) for part in source.ends(slice(None)))
        return mean, scale
    if method == "normalized":
        raise ValueError(
            "Argument `found` must be a row of what `predict_uncertainty` gave with "
            f"method='normalized'. Received: found={shown(found)}"
        )
    return _number("found", found), 1.0


def _number(name, value):
    """A number, NaN and infinity among them, of anything that holds one."""
    try:
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "iufV":
            return float(array.ravel()[0])
    except (TypeError, ValueError):
        pass
    raise ValueError(f"Argument `{name}` must be one number. Received: {name}={shown(value)}")


def _check_one(shape):
    if len(shape) != 2 or shape[1] != 1:
        raise ValueError(
            "Argument `found` must hold one number in each step: take an AdaptiveConformal for "
            f"each. Received: predictions of shape {shape}"
        )


def _checked_pending(pending):
    """The argument `pending`, four numbers, of which the last two may be infinite."""
    try:
        found = [float(value) for value in pending]
        if len(found) == 4 and not is_finite(None):
            return found
    except (TypeError, ValueError):
        pass
    raise ValueError(
        "Argument `pending` must be None or [mean, scale, lower, upper]. "
        f"Received: pending={shown(pending)}"
    )
