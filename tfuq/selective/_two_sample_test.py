"""Classifier two-sample test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from tfuq._arguments import ArrayLike, check_fraction, check_integer, check_positive
from tfuq._math.logistic_regression import logistic_regression
from tfuq._models.feature_arrays import check_rows, rows_finite


class TwoSampleTest(NamedTuple):
    """Whether a classifier tells two samples apart, on examples that it has not seen.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import classifier_two_sample_test
    >>> rng = np.random.default_rng(0)
    >>> found = classifier_two_sample_test(rng.normal(size=(80, 2)), rng.normal(3, 1, (80, 2)))
    >>> bool(found.accuracy > 0.9), bool(found.p_value < 1e-6), found.examples
    (True, True, 80)

    See also: `tfuq.selective.classifier_two_sample_test`.
    """

    accuracy: float
    """0.5 where the samples are alike."""
    p_value: float
    """Probability of this accuracy or more, if they are."""
    examples: int
    """Held-out examples, half of each sample."""


def classifier_two_sample_test(
    features_a: ArrayLike,
    features_b: ArrayLike,
    *,
    test_share: float = 0.5,
    l2: float = 1.0,
    max_examples: int = 5000,
    seed: int = 0,
) -> TwoSampleTest:
    """Tests whether two samples have one distribution: whether a classifier tells them apart.

    A logistic regression learns from one part of both samples, as many of each, and is tested on
    the rest. If the samples are alike it is right in half of the cases:

    ```
    p = P(Binomial(n, 1 / 2) >= number right)     (Lopez-Paz and Oquab 2017)
    ```

    Examples have to be independent: not several images of one patient. It finds what shows linearly
    in the features, such as those of a network's penultimate layer.

    Args:
        features_a: Features of one sample, `(n, d)`; more axes between are averaged over.
        features_b: Those of the other, `(m, d)`.
        test_share: Fraction of each sample that is held out.
        l2: Penalty l2 / 2 |w|^2 of the regression, on features of mean 0 and deviation 1.
        max_examples: How many of each sample are used at most, drawn at random.
        seed: Of all that is drawn.

    Returns:
        `TwoSampleTest`.

    Raises:
        ValueError: If features are empty, not finite, or have not the same columns; if there are
            fewer than 2 of a sample; if an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import classifier_two_sample_test
    >>> rng = np.random.default_rng(0)
    >>> same = classifier_two_sample_test(rng.normal(size=(500, 4)), rng.normal(size=(300, 4)))
    >>> bool(same.p_value > 0.01)
    True

    See also: `tfuq.selective.shift_report`, `tfuq.selective.CovariateShift`.
    """
    check_fraction("test_share", test_share)
    check_positive("l2", l2)
    check_integer("max_examples", max_examples, 2)
    check_integer("seed", seed, 0)
    samples = check_samples(features_a=features_a, features_b=features_b)
    count = min(len(samples[0]), len(samples[1]), max_examples)
    held_out = round(test_share * count)
    if not 0 < held_out < count:
        raise ValueError(
            f"Argument `test_share` must leave examples to learn and to test, of {count} of each "
            f"sample. Received: test_share={test_share}"
        )
    rng = np.random.default_rng(seed)
    chosen = [sample[rng.permutation(len(sample))[:count]].astype("float64") for sample in samples]
    test, train = (
        np.concatenate([sample[part] for sample in chosen])
        for part in (slice(held_out), slice(held_out, None))
    )
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    weights, bias = logistic_regression(
        (train - mean) / deviation, np.repeat([0, 1], count - held_out), l2
    )
    guess = (test - mean) / deviation @ weights + bias > 0
    right = int(np.sum(guess == np.repeat([False, True], held_out)))
    p_value = float(stats.binom.sf(right - 1, 2 * held_out, 0.5))
    return TwoSampleTest(right / (2 * held_out), p_value, 2 * held_out)


def check_samples(**given):
    """Two samples of features, by the names of their arguments, with the same columns."""
    samples = [check_rows(name, value, pool=True) for name, value in given.items()]
    for name, sample in zip(given, samples, strict=True):
        if len(sample) < 2 or not np.all(rows_finite([sample])):
            raise ValueError(
                f"Argument `{name}` must hold at least 2 rows, all finite. Received: "
                f"{np.count_nonzero(rows_finite([sample]))} finite rows of {len(sample)}"
            )
    if samples[0].shape[1] != samples[1].shape[1]:
        first, second = given
        raise ValueError(
            f"Argument `{second}` must have the {samples[0].shape[1]} columns of `{first}`. "
            f"Received: {samples[1].shape[1]}"
        )
    return samples
