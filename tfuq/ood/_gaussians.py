"""Gaussians of features, one mean per class and one covariance for all, and distances to them."""

import numpy as np
import tensorflow as tf
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

from tfuq._math.pseudo_inverse import ULPS, inverse_root, precision
from tfuq._models.feature_arrays import BLOCK, in_blocks

MIN_SHRINKAGE = 1e-6  # of a covariance that has not full rank


def class_means(features, labels):
    """Means `(classes, d)` of the classes that occur, and each row's index among them."""
    classes, index = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, index, features)
    return sums / np.bincount(index)[:, None], index


def scatter(features, means, index):
    """Of the rows r_i = features_i - means_index(i): sum_i r_i r_i^T, and sum_i ||r_i||^4."""
    total, fourth = np.zeros((features.shape[1],) * 2), 0.0
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK] - means[index[start : start + BLOCK]]
        total += rows.T @ rows
        fourth += np.sum(np.sum(rows**2, axis=1) ** 2)
    return total, fourth


def ledoit_wolf(covariance, fourth, count):
    """The shrinkage of a covariance towards the mean variance that loses least, in [0, 1].

    delta^2 = ||S - m I||^2,  beta^2 = min(delta^2, sum_i ||r_i r_i^T - S||^2 / n^2) with m = tr S /
    d; the shrinkage is beta^2 / delta^2 (Ledoit and Wolf 2004, section 3.2).
    """
    d = len(covariance)
    squares = np.sum(covariance**2)
    delta = squares - np.trace(covariance) ** 2 / d
    beta = (fourth / count - squares) / count
    return 0.0 if beta <= 0 else 1.0 if beta >= delta else float(beta / delta)


def whitener(total, fourth, count, shrinkage):
    """A matrix A `(d, d)` with A A^T = S^-1 for the covariance S = total / count, shrunk.

    S is (1 - s) total / count + s m I with m the mean variance.
    """
    covariance = total / count
    scale = np.trace(covariance) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
    try:
        factor = np.linalg.cholesky(shrunk)
    except np.linalg.LinAlgError:
        raise _rank_error(shrinkage) from None
    return solve_triangular(factor, np.eye(len(factor)), lower=True).T


def _rank_error(shrinkage):
    return ValueError(
        "Argument `shrinkage` must be None, or above 0, where the covariance of the features "
        f"has not full rank. Received: shrinkage={shrinkage!r}"
    )


def class_whitener(features, means, index, shrinkage=None, eps=None):
    """A matrix A `(d, d)` with A A^T = S^-1 for the covariance S of features about their means.

    By default the inverse is a pseudo-inverse: directions in which features do not vary, but for
    rounding, count for nothing, and change nothing of the others. With fewer examples, less the
    means, than columns that vary, S is that of Ledoit and Wolf in these columns.

    Args:
        features: `(n, d)`.
        means: `(classes, d)`.
        index: Which mean belongs to each row.
        shrinkage: s of S = (1 - s) S + s (tr S / d) I; None for the above.
        eps: Relative precision of the features; by default that of their dtype.
    """
    count, eps = len(features), eps or precision(features)
    total, fourth = scatter(features, means, index)
    covariance = total / count
    moments = np.diag(covariance) + np.bincount(index) @ means**2 / count
    varies = np.diag(covariance) > (ULPS * eps) ** 2 * moments
    if not varies.any():
        raise ValueError(
            "Argument `features` must vary within classes. Received: the same features everywhere"
        )
    if shrinkage is not None:
        if shrinkage == 0 and not _has_full_rank(covariance, moments, eps):
            raise _rank_error(shrinkage)
        return whitener(total, fourth, count, shrinkage)
    if count - len(means) >= np.count_nonzero(varies):
        return inverse_root(covariance, moments, eps)
    return embedded(_few_whitener(total[np.ix_(varies, varies)], fourth, count), varies)


def _has_full_rank(covariance, moments, eps):
    sizes = np.sqrt(np.where(moments > 0, moments, 1))
    return np.linalg.eigvalsh(covariance / sizes[:, None] / sizes)[0] > (ULPS * eps) ** 2


def _few_whitener(total, fourth, count):
    amount = max(ledoit_wolf(total / count, fourth, count), MIN_SHRINKAGE)
    return whitener(total, fourth, count, amount)


def embedded(matrix, is_kept):
    """The matrix `(d, d)` that is `matrix` in the columns that are kept, and 0 in the others."""
    whole = np.zeros((len(is_kept),) * 2)
    whole[np.ix_(is_kept, is_kept)] = matrix
    return whole


def squared_distances(features, means, whitening):
    """(f - m)^T S^-1 (f - m) of each row f to each mean m: `(n, classes)`."""
    return cdist(features @ whitening, means @ whitening, "sqeuclidean")


# --- In a graph -------------------------------------------------------------------------------


def row_lengths(rows):
    """||row||_2, `(n, 1)`, by its largest number: runtimes in float32 cannot square 2e19."""
    largest = tf.reduce_max(tf.abs(rows), 1, keepdims=True)
    return largest * tf.norm(tf.math.divide_no_nan(rows, largest), axis=1, keepdims=True)


def unit_rows(features):
    """Rows divided by their length, float64; rows of zeros stay."""
    rows = tf.cast(features, "float64")
    return tf.math.divide_no_nan(rows, row_lengths(rows))


def unit_array(features):
    """The same of an array, in its own dtype."""
    return in_blocks(lambda rows: unit_rows(rows).numpy(), features).astype(features.dtype)


def graph_squared_distances(rows, points):
    """|a - b|^2 of each row and point, `(n, points)`."""
    center = tf.reduce_mean(points, 0)  # what is far from the origin keeps its digits, in float32
    rows, points = rows - center, points - center
    squares = tf.reduce_sum(rows**2, 1)[:, None] + tf.reduce_sum(points**2, 1)
    return tf.maximum(squares - 2 * tf.matmul(rows, points, transpose_b=True), 0)


def graph_closest(features, centers, whitening):
    """Squared Mahalanobis distance to the closest of `centers`, which are whitened, `(n,)`."""
    rows = tf.cast(features, "float64") @ whitening
    return tf.reduce_min(graph_squared_distances(rows, centers), 1)


def fit_gaussians(features, labels, shrinkage=None, dtype=None):
    """Means `(classes, d)` of the classes that occur, and the whitening of their covariance.

    `dtype` names the floating type that the features had, if another than now.
    """
    means, index = class_means(features, labels)
    if len(features) <= len(means):
        raise ValueError(
            "Argument `features` must hold more examples than classes. "
            f"Received: {len(features)} examples of {len(means)} classes"
        )
    eps = precision(features, dtype)
    return means, class_whitener(features, means, index, shrinkage, eps)


def fit_background(features, shrinkage=None, dtype=None):
    """Mean `(1, d)` of all features, and the whitening of their covariance."""
    return fit_gaussians(features, np.zeros(len(features), "int64"), shrinkage, dtype)


def closest(features, means, whitening):
    """min_c (f - mu_c)^T S^-1 (f - mu_c) of each row, `(n,)`."""
    return in_blocks(lambda rows: squared_distances(rows, means, whitening).min(1), features)
