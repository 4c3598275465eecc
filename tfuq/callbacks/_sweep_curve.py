"""Curve of a learning rate range test: rates, smoothed losses, and the rates to try."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from tfuq._arguments import check_fraction, check_integer, check_positive, shown, told

MIN_STEPS = 5  # fewer losses say nothing
HALF_DECADE = math.sqrt(10.0)


def exponential_sweep(step, start, stop, num_steps):
    """Learning rate of `step`, from 0: rate = start * (stop / start)^(step / (num_steps - 1))."""
    return start * (stop / start) ** (np.asarray(step, "float64") / (num_steps - 1))


def smooth(losses, smoothing):
    """Exponential moving average without the bias to 0 of its beginning.

    ```
    m_t = smoothing * m_(t-1) + (1 - smoothing) * loss_t;  smoothed_t = m_t / (1 - smoothing^(t+1))
    ```
    """

    def sums(values):
        return np.array(list(itertools.accumulate(values, lambda s, v: smoothing * s + v)))

    return sums(losses) / sums(np.ones(len(losses)))


def is_diverged(smoothed, stop_factor):
    """Whether the last loss is above the lowest by more than `stop_factor - 1` times its size.

    Of losses above 0 that is: above `stop_factor` times the lowest.
    """
    lowest = np.min(smoothed)
    return bool(smoothed[-1] - lowest > (stop_factor - 1) * abs(lowest))


def steepest_descent(learning_rates, smoothed):
    """Rate where the loss falls fastest over log(rate); None if it falls nowhere.

    The first tenth is left out, where the average is of few losses, and what lies behind the
    minimum.
    """
    slopes = np.gradient(smoothed, np.log(learning_rates))
    first, end = len(slopes) // 10, int(np.argmin(smoothed)) + 1
    slopes = slopes[first:end]
    if not slopes.size or slopes.min() >= 0:
        return None
    return float(learning_rates[first + np.argmin(slopes)])


@told
class RangeTestResult(NamedTuple):
    """What a learning rate range test found.

    Attributes:
        learning_rates: The rates, growing, one per step that was taken; float64.
        losses: The loss of each step's batch, before the step.
        smoothed_losses: Their exponential moving average.
        minimum: Rate with the lowest smoothed loss. The average lags behind the losses, by about
            `smoothing / (1 - smoothing)` steps.
        steepest: Rate at which the smoothed loss falls fastest over the logarithm of the rate, from
            a tenth of the steps on and up to the minimum. `None` if it falls nowhere.
        diverged: Whether the test ended because the loss grew too far, or was not finite.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed_losses: np.ndarray
    minimum: float
    steepest: float | None
    diverged: bool

    @property
    def is_open(self):
        """Whether the end of the sweep decided: the loss had not grown behind its lowest yet.

        It is lowest in the last tenth of the steps, and the test did not end by growth.
        """
        count = len(self.smoothed_losses)
        return not self.diverged and int(np.argmin(self.smoothed_losses)) >= count - count // 10 - 1

    @property
    def minimum_over_10(self):
        """A tenth of `minimum`: the loss still falls there, at a distance from where it grows."""
        return self.minimum / 10

    @property
    def suggestion(self):
        """The rate to begin with: `minimum_over_10`, which hangs less on single batches."""
        return self.minimum_over_10

    @property
    def bracket(self):
        """`(lowest, highest)`: the decade around `minimum`, which is its middle on the log scale.

        Mishra (2020, section 3.2.2) advises such a neighbourhood for imbalanced and homogeneous
        data, and leaves its width open; it is minimum / sqrt(10) to minimum * sqrt(10) here.
        """
        return self.minimum / HALF_DECADE, self.minimum * HALF_DECADE

    def plot(self, ax=None):
        """Draws the losses over the learning rate (`tfuq.plots.lr_range_test`).

        Args:
            ax: Matplotlib Axes to draw on, or `None` for a new figure.

        Returns:
            The Axes.
        """
        from tfuq.plots import lr_range_test as draw  # matplotlib is optional

        return draw(self, ax)


def read_sweep(learning_rates, losses, smoothing, diverged):
    """The `RangeTestResult` of a sweep."""
    learning_rates, losses = np.asarray(learning_rates), np.asarray(losses)
    smoothed = smooth(losses, smoothing)
    return RangeTestResult(
        learning_rates,
        losses,
        smoothed,
        minimum=float(learning_rates[np.argmin(smoothed)]),
        steepest=steepest_descent(learning_rates, smoothed),
        diverged=diverged,
    )


def check_sweep(start, stop, num_steps):
    """Raises ValueError unless rates and steps can be swept."""
    check_positive("start", start)
    check_positive("stop", stop)
    if not stop > start:
        raise ValueError(
            "Argument `stop` must be above `start`. "
            f"Received: stop={shown(stop)}, start={shown(start)}"
        )
    check_integer("num_steps", num_steps, MIN_STEPS)


def check_curve(smoothing, stop_factor):
    """Raises ValueError unless the losses can be smoothed and compared."""
    check_fraction("smoothing", smoothing)
    if smoothing == 1:
        raise ValueError(
            f"Argument `smoothing` must be in [0, 1). Received: smoothing={shown(smoothing)}"
        )
    if stop_factor is not None:
        check_positive("stop_factor", stop_factor)
        if stop_factor <= 1:
            raise ValueError(
                "Argument `stop_factor` must be above 1. "
                f"Received: stop_factor={shown(stop_factor)}"
            )
