"""Thresholds whose risk is bounded for new data, whatever the distribution of scores and errors.

Levels are the values of a score, from the most trusted down; level i accepts all examples of the
levels up to i, ties together. `accepted` and `loss` are sums over them, `(levels,)`.
"""

from typing import NamedTuple

import numpy as np

from tfuq._bounds import binomial_p_value, hoeffding_bentkus_p_value

STARTS = 8  # places at which the tests begin, each with its share of the error
IMAGE_STARTS = 4


class Sums(NamedTuple):
    """What each level accepts of independent examples, whose losses are 0 or 1 if `binary`."""

    accepted: np.ndarray
    loss: np.ndarray
    binary: bool

    def p_values(self, risk):
        """Of the hypotheses that the risk of what a level accepts is above `risk`."""
        if self.binary:
            return binomial_p_value(self.loss, self.accepted, risk)
        mean = self.loss / np.maximum(self.accepted, 1)
        return hoeffding_bentkus_p_value(mean, self.accepted, risk)

    def starts(self, risk, delta):
        """Levels at equal steps of examples, from the fewest that could pass a test."""
        total = self.accepted[-1]
        fewest = [fewest_examples(risk, delta / count) for count in range(1, STARTS + 1)]
        count = int(np.sum(np.array(fewest) <= total))  # fewer shares where examples are few
        if not count:
            return np.array([], int)
        counts = np.linspace(fewest[count - 1], total, count, endpoint=False)
        return np.unique(np.searchsorted(self.accepted, counts))


class ImageSums(NamedTuple):
    """What each level accepts of images whose entries depend on each other, `(images, levels)`.

    Both are fractions of an image's entries. The risk is E[loss] / E[accepted]; it is at most r if
    and only if E[loss - r accepted] <= 0, a mean over images of numbers in [-r, 1 - r].
    """

    accepted: np.ndarray
    loss: np.ndarray

    def p_values(self, risk):
        mean = np.mean(self.loss - risk * self.accepted, axis=0) + risk
        return hoeffding_bentkus_p_value(mean, len(self.loss), risk)

    def starts(self, risk, delta):
        # A level that accepts little moves the mean of all images little: no test would pass.
        last = self.loss.shape[1] - 1
        return np.unique(np.linspace(0, last, IMAGE_STARTS + 1)[1:].astype(int))


def fewest_examples(risk, delta):
    """The fewest accepted, none wrong, that show a risk below `risk`: log delta / log(1 - risk)."""
    return int(np.ceil(np.log(delta) / np.log1p(-risk) - 1e-9))


def smallest_where(holds, steps=40):
    """The smallest risk in [0, 1] from which on `holds(risk)`, by bisection; 1 if none."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def learn_then_test(sums, risk, delta):
    """The most lenient level that is safe, or None (Angelopoulos et al. 2021).

    Levels are tested from strict to lenient; a test that passes lends its share of `delta` to the
    next, one that fails loses it until the next start (Wiens' fallback procedure 2003). All that
    pass hold together with a probability of at least 1 - delta, so the last may be chosen.
    """
    starts = sums.starts(risk, delta)
    if not len(starts):
        return None
    begins = np.zeros(sums.loss.shape[-1], bool)
    begins[starts] = True
    share, budget, last = delta / len(starts), 0.0, None
    for level, p_value in enumerate(sums.p_values(risk)):
        budget += share * begins[level]
        if budget and p_value <= budget:
            last = level
        else:
            budget = 0.0
    return last


def selection_with_guaranteed_risk(sums, risk, delta):
    """The level that a binary search ends at, or None (Geifman and El-Yaniv 2017, algorithm 1).

    Each of its steps, at most floor(log2 levels) + 1, has an equal share of `delta`.
    """
    low, high, last = 0, sums.loss.shape[-1] - 1, None
    share = delta / (high + 1).bit_length()
    p_values = sums.p_values(risk)
    while low <= high:
        level = (low + high) // 2
        if p_values[level] <= share:
            last, low = level, level + 1
        else:
            high = level - 1
    return last


METHODS = {"ltt": learn_then_test, "sgr": selection_with_guaranteed_risk}


def best_risk(sums, delta, method):
    """The lowest risk that could be promised from these examples."""
    return smallest_where(lambda risk: METHODS[method](sums, risk, delta) is not None, 25)
