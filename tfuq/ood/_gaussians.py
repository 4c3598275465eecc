"""Gaussians of features, one mean per class and one covariance for all, and distances to them."""

import numpy as np
import tensorflow as tf
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

from tfuq._models.feature_arrays import BLOCK

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


def whitener(total, fourth, count, shrinkage=None):
    """A matrix A `(d, d)` with A A^T = S^-1 for the covariance S = total / count, shrunk.

    Shrunk, S is (1 - s) S + s (tr S / d) I. By default s is 0 where S has full rank, and that of
    Ledoit and Wolf, at least 1e-6, where it has not.
    """
    covariance = total / count
    scale = np.trace(covariance) / len(covariance)
    if scale <= 0:
        raise ValueError(
            "Argument `features` must vary within classes. Received: the same features everywhere"
        )
    if shrinkage is None:
        values = np.linalg.eigvalsh(covariance)
        is_full = count > len(values) and values[0] > values[-1] * len(values) * 2.0**-52
        least = ledoit_wolf(covariance, fourth, count)
        shrinkage = 0.0 if is_full else max(least, MIN_SHRINKAGE)
    shrunk = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
    try:
        factor = np.linalg.cholesky(shrunk)
    except np.linalg.LinAlgError:
        raise ValueError(
            "Argument `shrinkage` must be None, or above 0, where the covariance of the features "
            f"has not full rank. Received: shrinkage={shrinkage!r}"
        ) from None
    return solve_triangular(factor, np.eye(len(factor)), lower=True).T


def squared_distances(features, means, whitening):
    """(f - m)^T S^-1 (f - m) of each row f to each mean m: `(n, classes)`."""
    return cdist(features @ whitening, means @ whitening, "sqeuclidean")


# --- In a graph -------------------------------------------------------------------------------


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
