"""Detector by the disagreement of networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    check_integer,
    check_kind,
    register,
    shown,
)
from tfuq._models.feature_arrays import check_rows
from tfuq._models.features import without_nan
from tfuq._models.meaning import Reading
from tfuq._models.outputs import check_same_shapes
from tfuq.ensembles import DeepEnsemble
from tfuq.ood._parts import scores_of_parts
from tfuq.ood.base import Detector
from tfuq.predictive import mutual_information, sample_predictions
from tfuq.predictive.sampler import NUM_SAMPLES


@register
class MutualInformation(Detector):
    """How much the predictions of several networks differ: the epistemic part of uncertainty.

    The networks are draws of a Bayesian model or of dropout, members of an ensemble, or any other
    source of a stack of predictions.

    Formula:
        score = I[y, w | x] = H[E_w p(y | x, w)] - E_w H[p(y | x, w)]   (Houlsby et al. 2011)
    in nats, of the samples w; of a model that predicts each pixel the mean of the pixels' scores.

    `fit_features` and `score_features` take a stack of probabilities `(samples, n, ..., classes)`;
    of one class, that of class 1 of two. Labels are not needed.

    Args:
        num_samples: Number of networks to draw from a model with random layers.
        seed: Integer that determines the draws.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.ood import MutualInformation

    x = np.random.normal(size=(64, 8))
    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=1 / 64)])
    detector = MutualInformation(num_samples=10).fit(model, x)
    print(detector.score(10 * x).shape)

    stack = np.random.dirichlet(np.ones(3), size=(10, 64))  # of whatever networks
    print(MutualInformation().score_features(stack).shape)
    ```

    References:
        - Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian Active Learning for Classification and
          Preference Learning", arXiv 1112.5745, 2011.

    See also: `tfuq.predictive.mutual_information`, `tfuq.ensembles.DeepEnsemble`,
    `tfuq.ood.Entropy`.
    """

    def __init__(
        self,
        num_samples: int = 30,
        seed: int = 0,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_integer("num_samples", num_samples, 1)
        check_integer("seed", seed, 0)
        self.num_samples = num_samples
        self.seed = seed

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_samples": self.num_samples, "seed": self.seed}

    def fit(
        self,
        model: ModelLike | Callable[..., Any],
        x: Data,
        y: ArrayLike | None = None,
        *,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Self:
        """Takes the networks, and the scores of in-distribution examples.

        Args:
            model: A Keras model with random layers of `tfuq.layers`, a
                `tfuq.ensembles.DeepEnsemble`, or a function that makes a stack of probabilities
                `(samples, batch, ..., classes)` of a batch of inputs, as an array.
            x: Inputs, as for the other detectors.
            y: Ignored.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            The detector.

        Raises:
            ValueError: If data are empty or not finite, or the model holds no random layer.
        """
        self._bind(model)
        self._widths = self._fit_scores = self.threshold = self._known = None
        scores = self.score(x, batch_size=batch_size, verbose=verbose)
        if not np.all(np.isfinite(scores)):
            raise ValueError("Argument `x` must be finite. Received: NaN or infinity in x")
        self._fit_scores = scores
        return self._know_model()

    def _bind(self, model):
        if not isinstance(model, (keras.Model, DeepEnsemble)) and not callable(model):
            raise ValueError(
                "Argument `model` must be a Keras model, a DeepEnsemble, or a function that makes "
                f"a stack of predictions. Received: model={shown(model)}"
            )
        self._model = model
        self._members = None

    def _read(self, batch):
        batch = without_nan(batch)  # or one example would say what the outputs of all mean
        if isinstance(self.model, DeepEnsemble):
            stack = self._of_members(batch)
        elif isinstance(self.model, keras.Model):
            # A file does not tell the default from the same number.
            is_default = self.num_samples == NUM_SAMPLES
            draws = {"num_samples": NUM_SAMPLES if is_default else self.num_samples}
            draws["seed"] = self.seed
            reading = {"output": self.output, "from_logits": self.from_logits}
            count = tf.nest.flatten(batch)[0].shape[0]
            stack = sample_predictions(self.model, (batch,), batch_size=count, **draws, **reading)
        else:
            stack = self.model(tf.nest.map_structure(np.asarray, batch))
        return self._check(stack)

    def _of_members(self, batch):
        """The stack of an ensemble, by a graph that is kept: its `predict` makes one per call."""
        if self._members is None:
            reading = Reading(self.output, self.from_logits, None)
            pairs = [(member, reading.known(member, batch)) for member in self.model.members]

            def stack(batch):
                probs = [known.probs(member, batch) for member, known in pairs]
                check_same_shapes([[tuple(p.shape)] for p in probs], "model")
                return tf.stack(probs)

            self._members = tf.function(stack, autograph=False, reduce_retracing=True)
        return self._members(batch).numpy()

    def _check(self, features):
        check_kind("features", features)
        rows = check_rows("features", features, ndim=max(3, np.ndim(features)))
        return (np.moveaxis(rows, 0, 1),)

    _draws = True
    _graph_score = None  # an export that holds the networks has their mutual information

    def _score(self, arrays):
        found = self._of_each(arrays[0])
        return found.reshape(len(found), -1).mean(axis=1)

    def _of_each(self, rows):
        found = mutual_information(np.moveaxis(rows, 1, 0))
        return found.reshape(rows.shape[:1] + rows.shape[2:-1])

    def score_each(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """Scores of each pixel, of which `score` has the mean.

        Args:
            x: Inputs, as for `score`.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n, height, width)`, float64; inf for inputs that are not finite.

        Raises:
            ValueError: As `score`; if the model has one prediction per example.
        """
        return scores_of_parts(self, x, self._of_pixels, batch_size, verbose)

    def _of_pixels(self, batch):
        rows = self._read(batch)[0]
        if rows.ndim == 3:
            raise ValueError(
                "Argument `model` must predict each pixel; take `score` for one prediction per "
                f"example. Received: predictions of shape {rows.shape[:1] + rows.shape[2:]}"
            )
        return self._of_each(rows)
