"""Detector on gradients of a trained model, trained with out-of-distribution examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Self,
    check_integer,
    check_positive,
    register,
)
from tfuq._models.batches import batches
from tfuq._random.global_state import derived_seed, seeded
from tfuq.metrics import ood_metrics
from tfuq.ood._gradient_base import GradientNormDetector, check_enough, scale_of
from tfuq.ood.log_features import log_norms, squared_norms

SPLIT = (0.4, 0.8)  # where training ends, and validation


def split_rows(labels, seed):
    """Rows to train (40 %), to validate (40 %) and to test (20 %), by chance, of each label."""
    rng = np.random.default_rng(seed)
    parts = []
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        parts.append(np.split(rows, [round(cut * len(rows)) for cut in SPLIT]))
    return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def equal_priors(labels):
    """Weights of mean 1 that give both labels the same total."""
    return len(labels) / (2 * np.bincount(labels)[labels])


def relu_network(z, hidden_kernel, hidden_bias, kernel, bias):
    """Logits `(n,)` of two fully connected layers."""
    return np.maximum(z @ hidden_kernel + hidden_bias, 0) @ kernel[:, 0] + bias


def train_network(train, validation, *, hidden_units, learning_rate, **options):
    """Weights of the two layers, and the history, from `(z, labels)` to train and to validate."""
    layers = [
        keras.layers.Dense(hidden_units, activation="relu", dtype="float32"),
        keras.layers.Dense(1, dtype="float32"),
    ]
    patience = options.pop("patience")
    (z, labels), (other, other_labels) = train, validation
    network = keras.Sequential([keras.Input((z.shape[1],)), *layers])
    network.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        weighted_metrics=[],
        jit_compile=False,  # XLA takes longer to compile than this to train
    )
    history = network.fit(
        z,
        labels[:, None],
        sample_weight=equal_priors(labels),
        validation_data=(other, other_labels[:, None], equal_priors(other_labels)),
        callbacks=[keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)],
        **options,
    ).history
    return network.get_weights(), history


@register
class GradientDetector(GradientNormDetector):
    """Two fully connected layers that tell the gradients of unfamiliar inputs from familiar ones.

    The detector of Lee and AlRegib, section 4: a small network on the squared norms of a model's
    gradients, which `tfuq.ood.GradientFeatures` gives, of in-distribution and of
    out-of-distribution examples that the model was not trained on. Of each set 40 % train it, 40 %
    say when to stop, and `evaluate` judges it on the remaining 20 %. It learns to separate its own
    examples, and works as far as future inputs resemble them: evaluate it on another
    out-of-distribution set, too (`evaluate(features_out)`). Without such data use
    `GradientDensity`.

    Thresholds come from the in-distribution examples of the validation part, unless others are
    given.

    Formula:

    ```
    z = (log(f + 1e-20) - mean) / std,   over all training examples
    score = w_2 . max(W_1 z + b_1, 0) + b_2
    ```

    Both sets weigh the same in the loss, so the score estimates log p(f | out) / p(f | in). A
    column that does not vary in training is left out.

    Args:
        hidden_units: Units of the first layer; the paper does not say how many.
        learning_rate: Of Adam.
        batch_size: Examples in a step of training.
        epochs: Largest number of epochs.
        patience: Epochs without a lower validation loss after which training stops; the weights
            are those of the lowest.
        seed: Integer from which the split, the first weights and the order of examples follow.

    Attributes:
        history: What Keras' `fit` recorded, by epoch; None after `load`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import GradientDetector

    rng = np.random.default_rng(0)
    familiar = np.exp(rng.normal(size=(100, 6)))  # of GradientFeatures(model)(x)
    unfamiliar = np.exp(rng.normal(1, size=(100, 6)))
    detector = GradientDetector(epochs=5).fit_features(familiar, unfamiliar)
    found = detector.evaluate(num_resamples=200)
    print(found["auroc"], found["auroc_interval"])
    threshold = detector.threshold_at(0.95)
    print(np.mean(detector.score_features(unfamiliar) > threshold.value))
    ```

    References:
        - Lee and AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020.

    See also: `tfuq.ood.GradientFeatures`, `tfuq.ood.GradientDensity`.
    """

    def __init__(
        self,
        hidden_units: int = 64,
        learning_rate: float = 0.001,
        batch_size: int = 64,
        epochs: int = 100,
        patience: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive("learning_rate", learning_rate)
        counts = {"hidden_units": hidden_units, "batch_size": batch_size, "epochs": epochs}
        for name, value in {**counts, "patience": patience}.items():
            check_integer(name, value, 1)
        check_integer("seed", seed, 0)
        self.hidden_units = hidden_units
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.seed = seed
        self.history = None

    def fit(
        self,
        model: ModelLike | Callable[..., Any],
        x: Data,
        x_out: Data,
        *,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Self:
        """Fits to in-distribution and to out-of-distribution inputs.

        Args:
            model: `tfuq.ood.GradientFeatures(model)`, or another function from a batch of inputs
                to their features `(batch, columns)`. It is kept, to score with.
            x: In-distribution inputs that the model was not trained on: arrays, a
                `tf.data.Dataset` or a `keras.utils.PyDataset` of batches. Labels are ignored.
            x_out: Out-of-distribution inputs, in the same form.
            batch_size: Examples whose features are computed at a time, for arrays.
            verbose: 1 shows progress bars.

        Returns:
            The detector.

        Raises:
            ValueError: If data are empty, not finite, or fewer than 10 of a set.
        """
        self._bind(model)
        inside, outside = (
            np.concatenate([self._read(b)[0] for b, *_ in batches(data, batch_size, verbose, name)])
            for name, data in (("x", x), ("x_out", x_out))
        )
        return self.fit_features(inside, outside, verbose=verbose)._know_model()

    def fit_features(
        self,
        features: ArrayLike | Sequence[ArrayLike],
        features_out: ArrayLike,
        *,
        verbose: int = 0,
    ) -> Self:
        """Fits to features of in-distribution and of out-of-distribution examples.

        Args:
            features: Squared gradient norms `(n, columns)` of in-distribution examples.
            features_out: Those `(m, columns)` of out-of-distribution examples.
            verbose: As Keras' `fit`.

        Returns:
            The detector. `score` needs a function that gives features: assign `detector.model`.

        Raises:
            ValueError: If features are not of these shapes, negative, not finite, fewer than 10 of
                a set, or the same for all examples.
        """
        (inside,) = self._check(features)
        outside = squared_norms("features_out", features_out)
        if outside.shape[1] != inside.shape[1]:
            raise ValueError(
                f"Argument `features_out` must have the columns of `features`, {inside.shape[1]}. "
                f"Received: features_out of shape {outside.shape}"
            )
        check_enough("features", len(inside))
        check_enough("features_out", len(outside))
        labels = np.repeat([0, 1], [len(inside), len(outside)])
        rows = np.concatenate([inside, outside])
        return self._learn("features", (rows,), labels, verbose=verbose)

    def _shapes(self):
        return {
            "mean": ("features_0",),
            "spread": ("features_0",),
            "hidden_kernel": ("features_0", "hidden"),
            "hidden_bias": ("hidden",),
            "kernel": ("hidden", "one"),
            "bias": ("one",),
            "test_in": ("in",),
            "test_out": ("out",),
        }

    def _fit(self, arrays, y, verbose):
        parts = split_rows(y, self.seed)
        scale = scale_of("features", arrays[0][parts[0]])
        z = scale(log_norms(arrays[0]))
        train, validation, test = ((z[rows], y[rows]) for rows in parts)
        names = ("hidden_units", "batch_size", "epochs", "patience")
        options = {name: int(getattr(self, name)) for name in names}  # Keras takes no NumPy numbers
        options["learning_rate"] = float(self.learning_rate)
        with seeded(derived_seed(self.seed, 0, 0)):
            weights, self.history = train_network(train, validation, verbose=verbose, **options)
        weights = [weight.astype("float64") for weight in weights]
        names = ("hidden_kernel", "hidden_bias", "kernel", "bias")
        scores = [relu_network(part, *weights) for part, _ in (validation, test)]
        return {
            "mean": scale.mean,
            "spread": scale.spread,
            **dict(zip(names, weights, strict=True)),
            "validation_in": scores[0][validation[1] == 0],
            "test_in": scores[1][test[1] == 0],
            "test_out": scores[1][test[1] == 1],
        }

    def _scores_of_fit(self, arrays):
        return self._state.pop("validation_in")  # the base class keeps them

    def _score(self, arrays):
        names = ("hidden_kernel", "hidden_bias", "kernel", "bias")
        weights = [self._state[name] for name in names]
        return relu_network(self._standardised(arrays[0]), *weights)

    def evaluate(
        self,
        features_out: ArrayLike | None = None,
        *,
        tpr: float = 0.95,
        num_resamples: int = 1000,
        confidence: float = 0.95,
    ) -> dict[str, Any]:
        """Judges the detector on the 20 % of the data that its training has not seen.

        Args:
            features_out: Features of other out-of-distribution examples to tell from the held-out
                in-distribution ones, or None for the held-out part of those of `fit`. What is not
                finite counts as detected.
            tpr: For `"fpr_at_tpr"`, with in distribution as the positive class.
            num_resamples: Resamples for the intervals; 0 for none.
            confidence: Of the intervals.

        Returns:
            The dict of `tfuq.metrics.ood_metrics`: `"detection_accuracy"`, `"auroc"`, `"aupr_in"`,
            `"aupr_out"`, `"fpr_at_tpr"`, and the interval `(low, high)` of each.

        Raises:
            ValueError: If the detector is not fitted, features do not fit it, or an option is out
                of its range.
        """
        self._check_fitted()
        inside, outside = self._state["test_in"], self._state["test_out"]
        if features_out is not None:
            outside = self._scores_of((squared_norms("features_out", features_out),))
        options = {"tpr": tpr, "num_resamples": num_resamples, "confidence": confidence}
        labels = np.repeat([0, 1], [len(inside), len(outside)])
        return ood_metrics(labels, np.concatenate([inside, outside]), seed=self.seed, **options)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("hidden_units", "learning_rate", "batch_size", "epochs", "patience", "seed")
        return {name: getattr(self, name) for name in names}
