"""Detectors by the whole of the predicted probabilities, not only the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Output, check_integer, check_positive, register
from tfuq.ood._logit_scores import generalized_entropy
from tfuq.ood.logits import LogitDetector


def log_templates(logits):
    """log mean p of the rows that predict the same class: `(predicted classes, classes)`."""
    predicted = np.argmax(logits, axis=1)
    kinds, counts = np.unique(predicted, return_counts=True)
    templates = np.full((len(kinds), logits.shape[1]), -np.inf)
    for row, kind in enumerate(kinds):
        (members,) = np.nonzero(predicted == kind)
        # Blocks, and logarithms: a probability below the smallest float64 stays a number.
        for start in range(0, len(members), 4096):
            z = tf.cast(logits[members[start : start + 4096]], "float64")
            block = tf.reduce_logsumexp(tf.nn.log_softmax(z), 0).numpy()
            templates[row] = np.logaddexp(templates[row], block)
    return templates - np.log(counts)[:, None]


def kl_to_closest(logits, templates):
    """min_k KL[softmax(z) || d_k] of each row, with log d_k the rows of `templates`; float64."""
    log_p = tf.nn.log_softmax(tf.cast(logits, "float64"))
    p = tf.exp(log_p)
    cross = tf.matmul(p, templates, transpose_b=True)
    divergence = tf.reduce_sum(p * log_p, -1) - tf.reduce_max(cross, -1)
    return tf.maximum(divergence, 0)  # but for rounding it is


@register
class GEN(LogitDetector):
    """Generalized entropy of the largest probabilities, sensitive to values near 0 and 1.

    Formula:
        score = sum_j p_j(x)^gamma (1 - p_j(x))^gamma            (Liu et al. 2023)
    over the `top` largest of the probabilities p. It is computed from logits, so that
    probabilities next to 1 stay apart.

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed.

    Args:
        gamma: Power, above 0; the paper's 0.1 needs no tuning. The smaller it is, the more the
            least probabilities count.
        top: How many of the largest probabilities count: the paper's 100 of 1,000 classes. All
            where there are fewer classes, or with None.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.ood import GEN
    >>> print(GEN().score_features([[3.0, 1.0, 0.0], [0.5, 0.25, 0.0]]).round(3))
    [2.337 2.575]

    References:
        - Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution
          Detection", CVPR 2023.

    See also: `tfuq.ood.Entropy`, `tfuq.ood.KLMatching`.
    """

    def __init__(
        self,
        gamma: float = 0.1,
        top: int = 100,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_positive("gamma", gamma)
        if top is not None:
            check_integer("top", top, 1)
        self.gamma = gamma
        self.top = top

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "top": self.top}

    def _score(self, arrays):
        return generalized_entropy(arrays[0], self.gamma, self.top)


@register
class KLMatching(LogitDetector):
    """Divergence of the predicted probabilities from the closest typical prediction.

    Formula:

    ```
    d_k   = mean of p(. | x_i) with argmax p(. | x_i) = k
    score = min_k KL[p(. | x) || d_k]                        (Hendrycks et al. 2022)
    ```

    over the classes predicted for some example of `fit`. It measures whether a prediction is
    typical, not whether it is certain: a common confusion of two classes scores low.

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed. Fit it to held-out data, as the paper does: their probabilities
    resemble those of new inputs, while training data have more certain ones.

    Args:
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import KLMatching

    logits = 4 * np.eye(3)[np.arange(99) % 3] + np.random.normal(size=(99, 3))
    detector = KLMatching().fit_features(logits)
    print(detector.score_features([[4.0, 0.0, 0.0], [9.0, 9.0, 0.0]]))
    ```

    References:
        - Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt and Song, "Scaling
          Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    See also: `tfuq.ood.GEN`, `tfuq.ood.MaxSoftmax`.
    """

    def _shapes(self):
        return {"log_templates": ("predicted", "features_0")}

    def _fit(self, arrays, y):
        return {"log_templates": log_templates(arrays[0])}

    def _score(self, arrays):
        return kl_to_closest(arrays[0], self._state["log_templates"])

    def _graph_score(self, state, found, batch):
        return kl_to_closest(found.logits, state["log_templates"]), [found.logits]
