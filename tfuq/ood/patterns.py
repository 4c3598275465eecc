"""Detectors by features and prediction together: what a class looks like, and neighbours."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Output, check_integer, register, shown
from tfuq._models.feature_arrays import BLOCK, check_labels, check_pair, in_blocks
from tfuq.ood._gaussians import unit_array, unit_rows
from tfuq.ood._logit_scores import energy
from tfuq.ood.feature_detector import FeatureDetector


def class_patterns(features, logits, labels):
    """Means `(classes, d)` of the features of each class that are rightly predicted, and counts."""
    is_right = np.argmax(logits, axis=1) == labels
    counts = np.bincount(labels[is_right], minlength=logits.shape[1])
    sums = np.zeros((logits.shape[1], features.shape[1]))
    np.add.at(sums, labels[is_right], features[is_right])
    return sums / np.maximum(counts, 1)[:, None], counts


def pattern_score(features, logits, patterns, known):
    """-f . S of the pattern S of the predicted class; inf where that is not known. float64."""
    predicted = tf.argmax(logits, -1)
    products = tf.cast(features, "float64") * tf.gather(patterns, predicted)
    is_known = tf.gather(known, predicted) > 0
    return tf.where(is_known, -tf.reduce_sum(products, -1), tf.cast(np.inf, "float64"))


def guidance(rows, bank, confidences, k, own=None):
    """The mean `(n,)` of the k largest s_j u_j . r of unit rows r, a block of `bank` at a time.

    Args:
        rows: Of unit length, `(n, d)`, float64.
        bank: u_j, of unit length, `(m, d)`.
        confidences: s_j, `(m,)`.
        k: How many are averaged.
        own: Which row of the bank each row is, and is not compared with; or None.
    """
    largest = None
    for start in range(0, bank.shape[0], BLOCK):
        part = tf.cast(bank[start : start + BLOCK], "float64")
        weights = tf.cast(confidences[start : start + BLOCK], "float64")
        products = tf.matmul(rows, part, transpose_b=True) * weights
        if own is not None:
            numbers = start + np.arange(part.shape[0])
            products = tf.where(numbers == own[:, None], tf.cast(-np.inf, "float64"), products)
        largest = products if largest is None else tf.concat([largest, products], 1)
        if largest.shape[1] > k:
            largest = tf.math.top_k(largest, k).values
    return tf.reduce_mean(largest, 1)


def guided(confidence, guide):
    """-confidence guide, but where both are below 0, of which the product would be praise."""
    product = confidence * guide
    return tf.where((confidence < 0) & (guide < 0), product, -product)


class _PairDetector(FeatureDetector):
    """Base of the detectors that take features `(n, d)` of a layer, and logits `(n, classes)`."""

    def _read(self, batch):
        found = self._tap(batch)
        return *found.features, found.logits

    def _check(self, features):
        return check_pair("features", features)


@register
class SHE(_PairDetector):
    """Dissimilarity of the features to the mean features of the predicted class (Hopfield energy).

    This is the simplified Hopfield energy: it stores, for each class, the mean features of the
    training examples that are predicted correctly.

    Formula:

    ```
    S_c   = mean of f(x_i) with y_i = argmax z(x_i) = c
    score = -f(x) . S_c,   c = argmax z(x)                       (Zhang et al. 2023)
    ```

    `fit_features` and `score_features` take a pair: features `(n, d)`, and logits `(n, classes)`.
    Labels are needed to fit.

    Args:
        layer: Name of the layer whose outputs are the features, as for `Mahalanobis`.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Warns:
        UserWarning: In `fit`, if no example of a class is predicted correctly: inputs predicted as
            that class are unknown, and score inf.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if labels are missing or are no
            classes, or no example is predicted correctly.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import SHE

    y = np.arange(90) % 3
    x = 3 * np.eye(3)[y] + np.random.normal(size=(90, 3))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax")])
    model.set_weights([np.eye(3), np.zeros(3)])
    detector = SHE().fit(model, x, y)
    print(detector.score(x / 5).mean() > detector.score(x).mean())  # True
    ```

    References:
        - Zhang, Fu, Chen, Du, Li, Wang, Liu, Han and Zhang, "Out-of-Distribution Detection based on
          In-Distribution Data Patterns Memorization with Modern Hopfield Energy", ICLR 2023.

    See also: `tfuq.ood.KNN`, `tfuq.ood.NNGuide`.
    """

    def _shapes(self):
        return {"patterns": ("features_1", "features_0"), "known": ("features_1",)}

    def _fit(self, arrays, y):
        features, logits = arrays
        count = logits.shape[1]
        labels = check_labels(y, len(features), count)
        patterns, counts = class_patterns(features, logits, labels)
        missing = np.flatnonzero(counts == 0)
        if len(missing) == count:
            raise ValueError(
                "Argument `y` must hold labels that the model predicts right for some examples: a "
                f"class is remembered by those. Received: no right prediction of {len(labels)}"
            )
        if len(missing):
            warnings.warn(
                f"{len(missing)} of {count} classes have no example that is predicted right: "
                f"{shown(missing.tolist())}. An input that is predicted as one of them scores inf: "
                "fit to more examples of them.",
                stacklevel=4,
            )
        return {"patterns": patterns, "known": (counts > 0).astype("float64")}

    def _score(self, arrays):
        return pattern_score(*arrays, self._state["patterns"], self._state["known"])

    def _graph_score(self, state, found, batch):
        arrays = (*found.features, found.logits)
        return pattern_score(*arrays, state["patterns"], state["known"]), arrays


@register
class NNGuide(_PairDetector):
    """Energy of the logits times the similarity of the features to those of confident examples.

    Logits can be large far from the training data, too; the similarity to neighbours is small
    there.

    Formula:

    ```
    g(x)  = mean of the k largest s(x_i) cos(f(x), f(x_i)),   s(x) = log sum_c exp(z_c(x))
    score = -s(x) g(x)                                           (Park et al. 2023)
    ```

    over the examples of `fit`. The detector keeps all of them: if there are many, fit it to some
    thousands at random (the paper takes 1 % of ImageNet). If s and g are both below 0, both say
    that x is strange, so the score is their product, not minus it.

    `fit_features` and `score_features` take a pair: features `(n, d)`, and logits `(n, classes)`.
    Labels are not needed. If `threshold_at` gets no other data, it scores each example of `fit`
    against the others.

    Args:
        k: How many neighbours; 10 in the paper.
        layer: Name of the layer whose outputs are the features, as for `Mahalanobis`.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxLogit`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if there are fewer examples than
            `k`, the model has no logits, or the mean of s is not above 0, so that it is no
            confidence.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import NNGuide

    features = np.random.normal(1, 1, size=(99, 4))
    logits = 5 * features[:, :3]
    detector = NNGuide(k=5).fit_features((features, logits))
    print(detector.score_features((-features, logits)).mean(), detector.threshold_at(0.95).value)
    ```

    References:
        - Park, Jung and Teoh, "Nearest Neighbor Guidance for Out-of-Distribution Detection", ICCV
          2023.

    See also: `tfuq.ood.KNN`, `tfuq.ood.Energy`.
    """

    def __init__(
        self,
        k: int = 10,
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

    def _read(self, batch):
        found = self._tap(batch)
        self._tap.check_knows_logits()
        return *found.features, found.own_logits

    def _shapes(self):
        return {"bank": ("examples", "features_0"), "confidences": ("examples",)}

    def _fit(self, arrays, y):
        features, logits = arrays
        if len(features) < self.k:
            raise ValueError(
                "Argument `k` must not be above the number of examples. "
                f"Received: k={shown(self.k)} with {len(features)} examples"
            )
        confidences = in_blocks(lambda rows: -energy(rows).numpy(), logits)
        if confidences.mean() <= 0:
            raise ValueError(
                "Argument `model` must have logits whose log-sum-exp grows with confidence, and is "
                "above 0 for the data of `fit`, as training by soft-max makes them; take `KNN` for "
                f"others. Received: a mean log-sum-exp of {confidences.mean():g}"
            )
        return {"bank": unit_array(features), "confidences": confidences}

    def _score(self, arrays):
        return self._of_pair(*arrays, self._state)

    def _of_pair(self, features, logits, state):
        guide = guidance(unit_rows(features), state["bank"], state["confidences"], self.k)
        return guided(-energy(logits), guide)

    def _graph_state(self):
        return self._state  # the features as they came

    def _graph_score(self, state, found, batch):
        arrays = (*found.features, found.own_logits)
        return self._of_pair(*arrays, state), arrays

    def _scores_of_fit(self, arrays):
        return None  # `_own_scores` finds them, if somebody asks

    def _own_scores(self):
        bank, confidences = self._state["bank"], self._state["confidences"]
        if len(bank) == self.k:
            raise ValueError(
                "Argument `x` must be given, or `scores`: each example has fewer than `k` others. "
                f"Received: neither, with k={shown(self.k)} and {len(bank)} examples"
            )

        def scores(rows, own):
            guide = guidance(unit_rows(rows), bank, confidences, self.k, own)
            return guided(tf.convert_to_tensor(confidences[own]), guide).numpy()

        return in_blocks(scores, bank, np.arange(len(bank)))
