"""Detector on gradients of a trained model, by their density in distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, Data, ModelLike, Self, register
from tfuq.ood._gaussians import MIN_SHRINKAGE, embedded, ledoit_wolf, scatter, whitener
from tfuq.ood._gradient_base import GradientNormDetector, check_enough, scale_of
from tfuq.ood.log_features import log_norms


def shrunk_whitener(z):
    """A matrix A with A A' the inverse of the covariance of `z`, shrunk, and by how much.

    The covariance is (1 - d) S + d m I with m = tr(S) / p and the d of Ledoit and Wolf 2004;
    columns have mean 0. One that does not vary changes nothing of the others.
    """
    varies = z.any(axis=0)
    z = z[:, varies]
    total, fourth = scatter(z, np.zeros((1, z.shape[1])), np.zeros(len(z), int))
    amount = max(ledoit_wolf(total / len(z), fourth, len(z)), MIN_SHRINKAGE)
    return embedded(whitener(total, fourth, len(z), amount), varies), amount


def leave_one_out(scores, amount):
    """Score of each row by the Gaussian of all the others, from the scores by that of all.

    ```
    n / (n-1) s / (1 - (1-d) s / (n-1))
    ```

    by Sherman and Morrison, with the shrinkage d of all, towards n / (n-1) m.
    """
    n = len(scores)
    return n / (n - 1) * scores / (1 - (1 - amount) * scores / (n - 1))


@register
class GradientDensity(GradientNormDetector):
    """How unlikely an input's gradients are under a Gaussian of in-distribution gradients.

    For use without out-of-distribution data: a Gaussian of the log squared gradient norms of
    in-distribution examples (`tfuq.ood.GradientFeatures`) that the model was not trained on. On a
    log scale norms are close to Gaussian, and the covariance knows which of them rise and fall
    together, so that what many share counts once. The norms of a layer's kernel and bias are nearly
    collinear, and columns may be more than examples; shrinkage (Ledoit and Wolf 2004) keeps the
    covariance invertible, with no parameter to tune.

    By default thresholds come from the same examples, each scored by the Gaussian of all others.

    Formula:

    ```
    z = (log(f + 1e-20) - mean) / std
    score = z' ((1 - d) S + d m I)^-1 z
    ```

    with the covariance S of z, m = tr(S) / p and the d of Ledoit and Wolf: the squared Mahalanobis
    distance, which is twice the negative log density but for a constant. It is small for gradients
    as they were, and grows in both directions. A column that does not vary in the data of `fit` is
    left out.

    Raises:
        ValueError: If features are negative, not finite, the same for all examples, or of fewer
            than 10 examples.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import GradientDensity

    rng = np.random.default_rng(0)
    familiar = np.exp(rng.normal(size=(200, 6)))  # of GradientFeatures(model)(x)
    unfamiliar = np.exp(rng.normal(3, size=(100, 6)))
    density = GradientDensity().fit_features(familiar)
    threshold = density.threshold_at(0.95)
    print(threshold.value, np.mean(density.score_features(unfamiliar) > threshold.value))
    ```

    With a model: `GradientDensity().fit(GradientFeatures(model), x)`, then `detect(x)`.

    References:
        - Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices",
          Journal of Multivariate Analysis 88, 2004.

    See also: `tfuq.ood.GradientFeatures`, `tfuq.ood.GradientDetector`.
    """

    def __init__(self) -> None:
        super().__init__()

    def fit(
        self,
        model: ModelLike | Callable[..., Any],
        x: Data,
        *,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Self:
        """Fits to in-distribution inputs.

        Args:
            model: `tfuq.ood.GradientFeatures(model)`, or another function from a batch of inputs
                to their features `(batch, columns)`. It is kept, to score with.
            x: In-distribution inputs that the model was not trained on: an array, a
                `tf.data.Dataset` or a `keras.utils.PyDataset` of batches. Labels are ignored.
            batch_size: Examples whose features are computed at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            The detector.

        Raises:
            ValueError: If data are empty, not finite, or fewer than 10 examples.
        """
        return super().fit(model, x, batch_size=batch_size, verbose=verbose)

    def fit_features(self, features: ArrayLike | Sequence[ArrayLike]) -> Self:
        """Fits to features of in-distribution examples.

        Args:
            features: Squared gradient norms `(n, columns)`.

        Returns:
            The detector. `score` needs a function that gives features: assign `detector.model`.

        Raises:
            ValueError: If features are not of this shape, negative, not finite, of fewer than 10
                examples, or the same for all.
        """
        return super().fit_features(features)

    def _shapes(self):
        columns = ("features_0",)
        square = {"whitener": 2 * columns, "shrinkage": ("one",)}
        return {"mean": columns, "spread": columns, **square}

    def _fit(self, arrays, y):
        (features,) = arrays
        check_enough("features", len(features))
        scale = scale_of("features", features)
        matrix, amount = shrunk_whitener(scale(log_norms(features)))
        shrunk = {"whitener": matrix, "shrinkage": np.array([amount])}
        return {"mean": scale.mean, "spread": scale.spread, **shrunk}

    def _scores_of_fit(self, arrays):
        return leave_one_out(self._scores_of(arrays), self._state["shrinkage"][0])

    def _score(self, arrays):
        z = self._standardised(arrays[0])
        return np.square(z @ self._state["whitener"]).sum(axis=1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments: there are none."""
        return {}
