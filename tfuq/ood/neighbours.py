"""Detector by the distance to the nearest training data."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Output, check_integer, register, shown
from tfuq._models.feature_arrays import BLOCK, in_blocks
from tfuq.ood._gaussians import graph_squared_distances, unit_array, unit_rows
from tfuq.ood.feature_detector import FeatureDetector


def kth_distance(queries, bank, k):
    """Distance `(n,)` of each row to the k-th nearest row of `bank`, with memory for a block."""
    queries = np.asarray(queries, "float64")
    nearest = np.zeros((len(queries), 0))
    for start in range(0, len(bank), BLOCK):
        block = np.asarray(bank[start : start + BLOCK], "float64")
        squares = np.sum(queries**2, 1)[:, None] + np.sum(block**2, 1) - 2 * queries @ block.T
        nearest = np.concatenate([nearest, squares], axis=1)
        if nearest.shape[1] > k:
            nearest = np.partition(nearest, k - 1, axis=1)[:, :k]
    return np.sqrt(np.maximum(nearest.max(1), 0))


def graph_kth_distance(features, bank, k):
    """The same in a graph, of features of any length, a block of `bank` at a time."""
    rows, nearest = unit_rows(features), None
    for start in range(0, bank.shape[0], BLOCK):
        block = graph_squared_distances(rows, tf.cast(bank[start : start + BLOCK], rows.dtype))
        nearest = block if nearest is None else tf.concat([nearest, block], 1)
        if nearest.shape[1] > k:
            nearest = -tf.math.top_k(-nearest, k).values
    return tf.sqrt(tf.reduce_max(nearest, 1))


@register
class KNN(FeatureDetector):
    """The distance to the k-th nearest neighbour among the training data.

    Formula:
        score = ||z - z_(k)||_2,   z = f(x) / ||f(x)||_2         (Sun et al. 2022)
    with z_(k) the k-th nearest of the normalized features of `fit`. The detector keeps all of them
    and computes distances in blocks.

    `fit_features` and `score_features` take features `(n, d)`. Labels are not needed, and the model
    may be a regression. If `threshold_at` gets no other data, it scores each example of `fit`
    against the others.

    Args:
        k: Which neighbour; 50 is the paper's choice for 50,000 images of 10 classes.
        layer: Name of the layer whose outputs are the features, as for `Mahalanobis`.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if there are fewer examples than
            `k`.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import KNN

    features = 1 + np.random.normal(size=(99, 4))
    detector = KNN(k=5).fit_features(features)
    print(detector.score_features(-features).mean(), detector.threshold_at(0.95).value)
    ```

    References:
        - Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors",
          ICML 2022.

    See also: `tfuq.ood.Mahalanobis`, `tfuq.ood.NNGuide`, `tfuq.ood.SHE`.
    """

    def __init__(
        self,
        k: int = 50,
        layer: str | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layer, output=output, from_logits=from_logits)
        check_integer("k", k, 1)
        self.k = k

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k": self.k}

    def _tapped(self):
        return {**super()._tapped(), "takes": ("labels", "numbers")}

    def _shapes(self):
        return {"bank": ("examples", "features_0")}

    def _fit(self, arrays, y):
        if len(arrays[0]) < self.k:
            raise ValueError(
                "Argument `k` must not be above the number of examples. "
                f"Received: k={shown(self.k)} with {len(arrays[0])} examples"
            )
        return {"bank": unit_array(arrays[0])}

    def _score(self, arrays):
        return kth_distance(unit_array(arrays[0]), self._state["bank"], self.k)

    def _graph_state(self):
        return self._state  # the features as they came

    def _graph_score(self, state, found, batch):
        return graph_kth_distance(found.features[0], state["bank"], self.k), found.features

    def _scores_of_fit(self, arrays):
        return None  # `_own_scores` finds them, if somebody asks

    def _own_scores(self):
        bank = self._state["bank"]
        if len(bank) == self.k:
            raise ValueError(
                "Argument `x` must be given, or `scores`, because the examples of `fit` have "
                f"fewer than `k` others each. Received: neither, with k={shown(self.k)} and "
                f"{len(bank)} examples"
            )
        return in_blocks(lambda rows: kth_distance(rows, bank, self.k + 1), bank)  # 1st is itself
