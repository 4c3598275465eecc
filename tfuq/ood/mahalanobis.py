"""Detectors by Mahalanobis distances of features from Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Data, Output, Self, check_fraction, register, shown
from tfuq._math.logistic_regression import logistic_regression
from tfuq._models.batches import batches
from tfuq._models.feature_arrays import check_labels, check_rows
from tfuq.ood._gaussians import closest, fit_background, fit_gaussians, graph_closest
from tfuq.ood._input_processing import check_epsilon, descended
from tfuq.ood.feature_detector import FeatureDetector, check_layer


@register
class Mahalanobis(FeatureDetector):
    """The distance of features to the closest class, in units of the spread within classes.

    Class-conditional Gaussians with one covariance are fitted to the penultimate features of the
    training data. The paper adds two options: with `epsilon` each input takes a small step to its
    closest class before the score; with `layers` the score weighs the distances of several layers.

    Formula:

    ```
    mu_c = mean of f(x_i) with y_i = c,   S = 1/n sum_i (f(x_i) - mu_yi)(f(x_i) - mu_yi)^T
    M(x) = min_c (f(x) - mu_c)^T S^-1 (f(x) - mu_c)              (Lee et al. 2018, equation 2)
    x'   = x - epsilon sign(grad_x M(x))                         (equation 4)
    score = M(x'), or of several layers sum_l a_l (M_l(x'_l) - m_l) / s_l + b
    ```

    m_l and s_l are the mean and the standard deviation of M_l. The weights a_l are equal until
    `fit_weights` finds them by logistic regression, as the paper always does; that needs examples
    out of distribution. Then the score is a log-odds.

    `fit_features` and `score_features` take features `(n, d)`, means over axes between; with
    `layers` a list of them. Scoring features needs `epsilon=0`. Labels are needed to fit; for a
    regression all examples are one class, and features of it take labels of 0.

    Args:
        layer: Name (or path) of the layer whose outputs are the features, at any depth; None for
            what the last layer takes.
        layers: Names of several layers instead, None among them standing for the same.
        epsilon: Size of the step of the inputs, at least 0, in their units.
        shrinkage: s in [0, 1] of S = (1 - s) S + s (tr S / d) I. By default S is not shrunk, and
            S^-1 is its pseudo-inverse: what does not vary in the data of `fit`, but for rounding
            (units that never fire, the sum of normalized features), counts for nothing and
            changes nothing else. With fewer examples, less the classes, than features that vary,
            s is that of Ledoit and Wolf (2004) for these features, at least 1e-6.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, without labels, with no more
            examples than classes, or without a layer of this name.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import Mahalanobis

    x, y = np.random.normal(size=(64, 8)), np.random.randint(3, size=64)
    hidden = keras.layers.Dense(5, activation="tanh", name="hidden")
    model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(3, "softmax")])
    detector = Mahalanobis().fit(model, x, y)
    print(detector.score(x + 5) > detector.score(x))
    ensemble = Mahalanobis(layers=["hidden", None], epsilon=0.001).fit(model, x, y)
    ensemble.fit_weights(x, 3 * x)  # better: data that it was not fitted on
    ```

    References:
        - Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting Out-of-Distribution
          Samples and Adversarial Attacks", NeurIPS 2018.
        - Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
          matrices", Journal of Multivariate Analysis 2004.

    See also: `tfuq.ood.RelativeMahalanobis`, `tfuq.ood.KNN`, `tfuq.ood.tune`.
    """

    def __init__(
        self,
        layer: str | None = None,
        *,
        layers: Sequence[str | None] | None = None,
        epsilon: float = 0.0,
        shrinkage: float | None = None,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layer, output=output, from_logits=from_logits)
        check_epsilon(epsilon)
        if shrinkage is not None:
            check_fraction("shrinkage", shrinkage)
        if layers is not None:
            if isinstance(layers, str) or not np.iterable(layers) or not list(layers):
                raise ValueError(
                    "Argument `layers` must be a list of names of layers, or None. "
                    f"Received: layers={shown(layers)}"
                )
            for name in layers:
                check_layer("layers", name)
        if layer is not None and layers is not None:
            raise ValueError(
                "Argument `layer` must be None where `layers` are given. "
                f"Received: layer={shown(layer)} with layers={shown(layers)}"
            )
        self.layers = None if layers is None else list(layers)
        self.epsilon = epsilon
        self.shrinkage = shrinkage

    def get_config(self) -> dict[str, Any]:
        config = {"layers": self.layers, "epsilon": self.epsilon, "shrinkage": self.shrinkage}
        return {**super().get_config(), **config}

    def _tapped(self):
        told = super()._tapped() if self.layers is None else {"layers": self.layers}
        return {**told, "takes": ("numbers",)}

    def _bind(self, model):
        super()._bind(model)
        self._moved = self._tap.compiled(self._features_of_moved)

    def _check(self, features):
        if self.layers is None:
            return super()._check(features)
        if not isinstance(features, (list, tuple)) or len(features) != len(self.layers):
            raise ValueError(
                f"Argument `features` must be a list of {len(self.layers)} arrays, one per layer. "
                f"Received: {type(features).__name__}"
            )
        arrays = tuple(check_rows("features", array, pool=True) for array in features)
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                "Argument `features` must hold arrays of one length. "
                f"Received: {[len(array) for array in arrays]}"
            )
        return arrays

    def _shapes(self):
        count = 1 if self.layers is None else len(self.layers)
        shapes = {}
        for i in range(count):
            shapes[f"means_{i}"] = ("classes", f"features_{i}")
            shapes[f"whitening_{i}"] = (f"features_{i}", f"features_{i}")
        if self.layers is not None:
            shapes |= {"center": ("layers",), "scale": ("layers",), "weights": ("layers",)}
            shapes["bias"] = ()
        return shapes

    def _gaussians(self):
        """Means and whitening of each layer."""
        count = 1 if self.layers is None else len(self.layers)
        return [(self._state[f"means_{i}"], self._state[f"whitening_{i}"]) for i in range(count)]

    def _fit(self, arrays, y):
        labels = check_labels(y, len(arrays[0]))
        dtypes = zip(arrays, self._dtypes, strict=True)
        gaussians = [fit_gaussians(array, labels, self.shrinkage, d) for array, d in dtypes]
        state = {}
        for i, (means, whitening) in enumerate(gaussians):
            state |= {f"means_{i}": means, f"whitening_{i}": whitening}
        if self.layers is not None:
            pairs = zip(arrays, gaussians, strict=True)
            state |= _equal_weights(np.stack([closest(a, *g) for a, g in pairs], axis=1))
        return state

    def _distances(self, arrays):
        """M_l of each row and layer, `(n, layers)`."""
        pairs = zip(arrays, self._gaussians(), strict=True)
        return np.stack([closest(array, *gaussians) for array, gaussians in pairs], axis=1)

    def _score(self, arrays):
        return self._weighted(self._distances(arrays), self._state)

    def _weighted(self, distances, state):
        """The score of distances `(n, layers)`, arrays or tensors as those of `state` are."""
        if self.layers is None:
            return distances[:, 0]
        standard = (distances - state["center"]) / state["scale"]
        return (standard @ state["weights"][:, None])[:, 0] + state["bias"]

    def _graph_state(self):
        return _with_whitened_means(super()._graph_state())

    def _graph_score(self, state, found, batch):
        numbers, features = range(len(found.features)), found.features
        gaussians = [(state[f"means_{i}"], state[f"whitening_{i}"]) for i in numbers]
        if self.epsilon != 0:
            features = self._features_of_moved(batch, gaussians)
        pairs = zip(features, gaussians, strict=True)
        distances = tf.stack([graph_closest(rows, *gaussian) for rows, gaussian in pairs], 1)
        return self._weighted(distances, state), features

    # Input processing: each layer has inputs of its own, moved along its own gradient.

    def _features_of_moved(self, batch, gaussians):
        def features(i):
            centers, whitening = gaussians[i]

            def along(batch):
                """What has the gradient of the distance but for its length, which may overflow."""
                rows = tf.cast(self._tap.forward(batch, moved=True).features[i], "float64")
                white = rows @ whitening
                products = tf.matmul(white, centers, transpose_b=True)
                nearest = tf.argmin(tf.reduce_sum(centers**2, 1) - 2 * products, axis=1)
                gaps = white - tf.gather(centers, nearest)
                slopes = tf.stop_gradient(tf.matmul(gaps, whitening, transpose_b=True))
                largest = tf.reduce_max(tf.abs(slopes), axis=1, keepdims=True)
                return tf.reduce_sum(rows * tf.math.divide_no_nan(slopes, largest), axis=1)

            moved = descended(batch, along, self.epsilon, self._tap.compute_dtype)
            return self._tap.forward(moved, moved=True).features[i]

        return tuple(features(i) for i in range(len(gaussians)))

    def _read_to_score(self, batch):
        if self.epsilon == 0:
            return self._read(batch)
        self._tap.prepare(batch)
        gaussians = [(tf.constant(m @ w), tf.constant(w)) for m, w in self._gaussians()]
        return tuple(array.numpy() for array in self._moved(batch, gaussians))

    def _score_batch(self, batch):
        return self._scores_of(self._read_to_score(batch))

    @property
    def _needs_inputs(self):
        return self.epsilon != 0

    def _scores_of_fit(self, arrays):
        return super()._scores_of_fit(arrays) if self.epsilon == 0 else None

    def score_features(self, features: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        if self.epsilon != 0:
            raise ValueError(
                "Argument `epsilon` must be 0 to score features: inputs are moved with the model. "
                f"Received: epsilon={shown(self.epsilon)}"
            )
        return super().score_features(features)

    # Weights of layers.

    def fit_weights(
        self, x_in: Data, x_ood: Data, *, batch_size: int = 32, verbose: int = 0
    ) -> Self:
        """Finds the weights of the layers by logistic regression, after `fit`.

        Args:
            x_in: In-distribution inputs, best ones that it was not fitted on: those it was fitted
                on are closer than others.
            x_ood: Inputs out of distribution.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            The detector. `threshold_at` without data takes the scores of `x_in` from now on.

        Raises:
            ValueError: If there are no `layers`, it is not fitted, or data are empty or not finite.
        """
        self._check_layers()
        distances = []
        for data, name in ((x_in, "x_in"), (x_ood, "x_ood")):
            parts = [
                self._distances(self._read_to_score(batch))
                for batch, *_ in batches(data, batch_size, verbose, name, model=self._model)
            ]
            distances.append(np.concatenate(parts))
        return self._learn_weights(*distances)

    def fit_weights_features(self, features_in: ArrayLike, features_ood: ArrayLike) -> Self:
        """As `fit_weights`, of lists of features.

        Args:
            features_in: In-distribution features, a list of arrays `(n, d)`, one per layer.
            features_ood: Features out of distribution.

        Returns:
            The detector.

        Raises:
            ValueError: As `fit_weights`.
        """
        self._check_layers()
        pair = (self._check(features) for features in (features_in, features_ood))
        return self._learn_weights(*map(self._distances, pair))

    def _check_layers(self):
        if self.layers is None:
            raise ValueError("Argument `layers` must be given to weigh them. Received: layers=None")
        self._check_fitted()

    def _learn_weights(self, inside, outside):
        distances = np.concatenate([inside, outside])
        if not np.all(np.isfinite(distances)):
            raise ValueError("Argument `x_in` must give finite features. Received: NaN or inf")
        state = _equal_weights(distances)
        standard = (distances - state["center"]) / state["scale"]
        is_outside = np.arange(len(distances)) >= len(inside)
        state["weights"], state["bias"] = logistic_regression(standard, is_outside)
        self._state |= {**state, "bias": np.array(state["bias"])}
        self._fit_scores = standard[: len(inside)] @ state["weights"] + state["bias"]
        self.threshold = None
        return self


def _equal_weights(distances):
    """What standardizes distances `(n, layers)`, and the same weight for each layer."""
    count, scale = distances.shape[1], distances.std(axis=0)
    return {
        "center": distances.mean(axis=0),
        "scale": np.where(scale > 0, scale, 1.0),
        "weights": np.full(count, 1 / count),
        "bias": np.zeros(()),
    }


def _with_whitened_means(state):
    """What was fitted, with all means whitened, as distances in a graph take them."""
    whitened = {
        name: array @ state[name.replace("means", "whitening")]
        for name, array in state.items()
        if "means" in name
    }
    return {**state, **whitened}


@register
class RelativeMahalanobis(FeatureDetector):
    """The Mahalanobis distance to the closest class, less that to the data as a whole.

    Directions that all classes share say nothing about being in or out of distribution, and cancel.

    Formula:

    ```
    score = min_c d_c(x) - d_0(x),   d_k(x) = (f(x) - mu_k)^T S_k^-1 (f(x) - mu_k)
    ```

    with the class means and their common covariance as in `Mahalanobis`, and k = 0 for the mean and
    covariance of all features (Ren et al. 2021, equation 2).

    `fit_features` and `score_features` take features `(n, d)`. Labels are needed to fit.

    Args:
        layer: Name of the layer whose outputs are the features, as for `Mahalanobis`.
        shrinkage: Of both covariances, as for `Mahalanobis`.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: As `Mahalanobis`; in `fit`, if there is one class only.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import RelativeMahalanobis

    features, labels = np.random.normal(size=(99, 4)), np.arange(99) % 3
    print(RelativeMahalanobis().fit_features(features, labels).score_features(features).mean())
    ```

    References:
        - Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021.

    See also: `tfuq.ood.Mahalanobis`, `tfuq.ood.KNN`.
    """

    def __init__(
        self,
        layer: str | None = None,
        *,
        shrinkage: float | None = None,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layer, output=output, from_logits=from_logits)
        if shrinkage is not None:
            check_fraction("shrinkage", shrinkage)
        self.shrinkage = shrinkage

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shrinkage": self.shrinkage}

    def _shapes(self):
        return {
            "means": ("classes", "features_0"),
            "whitening": ("features_0", "features_0"),
            "background_means": ("one", "features_0"),
            "background_whitening": ("features_0", "features_0"),
        }

    def _fit(self, arrays, y):
        labels = check_labels(y, len(arrays[0]))
        if len(np.unique(labels)) < 2:
            raise ValueError(
                "Argument `y` must hold at least two classes: with one class its distance and "
                "that to all data are the same, so that all scores are 0. Use `Mahalanobis`. "
                f"Received: labels of class {labels[0]} only"
            )
        options = self.shrinkage, self._dtypes[0]
        means, whitening = fit_gaussians(arrays[0], labels, *options)
        all_means, all_whitening = fit_background(arrays[0], *options)
        return {
            "means": means,
            "whitening": whitening,
            "background_means": all_means,
            "background_whitening": all_whitening,
        }

    def _score(self, arrays):
        state = self._state
        to_class = closest(arrays[0], state["means"], state["whitening"])
        return to_class - closest(
            arrays[0], state["background_means"], state["background_whitening"]
        )

    def _graph_state(self):
        return _with_whitened_means(super()._graph_state())

    def _graph_score(self, state, found, batch):
        (features,) = found.features
        to_class = graph_closest(features, state["means"], state["whitening"])
        to_all = graph_closest(features, state["background_means"], state["background_whitening"])
        return to_class - to_all, found.features
