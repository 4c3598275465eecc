"""Detector by the distance of features to the boundaries between classes."""

import numpy as np
import tensorflow as tf

from tfuq._arguments import register, shown
from tfuq._models.feature_arrays import in_blocks
from tfuq.ood._gaussians import row_lengths
from tfuq.ood.last_layer import LastLayerDetector, head_logits

SMALLEST = 1e-8  # a distance from the mean, which a score is divided by


def boundary_distance(logits, kernel):
    """Mean distance `(n,)` of features to where each other class is as likely as the predicted.

    |z_y - z_c| / ||w_y - w_c||, averaged over c != y, with y the predicted class.
    """
    kernel = kernel - tf.reduce_mean(kernel, 1, keepdims=True)  # differences keep their digits
    predicted = tf.argmax(logits, -1)
    own = tf.gather(kernel, predicted, axis=1)  # (d, n)
    squares = tf.reduce_sum(kernel**2, 0)
    gaps = tf.gather(squares, predicted)[:, None] + squares
    gaps -= 2 * tf.matmul(own, kernel, transpose_a=True)
    is_own = tf.one_hot(predicted, logits.shape[-1], True, False, dtype="bool")
    lengths = tf.sqrt(tf.where(is_own, tf.ones_like(gaps), tf.maximum(gaps, 0)))
    differences = tf.reduce_max(logits, -1, keepdims=True) - logits
    distances = tf.math.divide_no_nan(differences, lengths)
    return tf.reduce_sum(distances, -1) / (logits.shape[-1] - 1)


@register
class FDBD(LastLayerDetector):
    """Closeness of the features to the decision boundaries, relative to their deviation.

    Features of known inputs lie far from the boundaries between classes. The distance to a boundary
    of the last layer has a closed form. It is divided by the distance to the mean of the training
    features, so that features with different deviations can be compared. It has nothing to tune.

    Formula:

    ```
    D_c(x) = |z_y(x) - z_c(x)| / ||w_y - w_c||,   y = argmax_c z_c(x)
    score  = -1/(C - 1) sum_{c != y} D_c(x) / ||f(x) - mu||      (Liu and Qin 2024)
    ```

    with the columns w_c of the last layer and the mean mu of the features of `fit`.

    `fit_features(features, head=...)` and `score_features` take penultimate features `(n, d)`.
    Labels are not needed. A last layer of one column z counts as one of (-z / 2, z / 2).

    Args:
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model does not end in a
            `Dense` layer, or two of its classes have the same weights.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import FDBD

    features, kernel = np.random.normal(size=(64, 8)), np.random.normal(size=(8, 3))
    detector = FDBD().fit_features(features, head=(kernel, None))
    print(detector.score_features(features).shape)
    ```

    References:
        - Liu and Qin, "Fast Decision Boundary based Out-of-Distribution Detector", ICML 2024.

    See also: `tfuq.ood.KNN`, `tfuq.ood.ViM`.
    """

    def _shapes(self):
        return {**super()._shapes(), "center": ("features_0",)}

    def _fit(self, arrays, y, head):
        state = super()._fit(arrays, y, head)
        columns, index = np.unique(head.kernel, axis=1, return_inverse=True)
        if columns.shape[1] < head.kernel.shape[1]:
            twins = np.flatnonzero(index.ravel() == np.argmax(np.bincount(index.ravel())))
            raise ValueError(
                "Argument `head` must have different weights for each class: two with the same "
                "have no boundary between them. Received: the same weights for the classes "
                f"{shown(twins.tolist())}"
            )
        sums = in_blocks(lambda rows: rows.sum(0, "float64")[None], arrays[0])
        return {**state, "center": sums.sum(0) / len(arrays[0])}

    def _formula(self, features, state):
        near = boundary_distance(head_logits(features, state), state["kernel"])
        deviation = row_lengths(tf.cast(features, "float64") - state["center"])
        return -near / tf.maximum(deviation[:, 0], SMALLEST)
