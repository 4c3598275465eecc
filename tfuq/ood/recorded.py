"""Detectors by what several layers do inside a network: gradients at them, and Gram matrices."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Output, check_choice, check_fraction, check_integer, register, shown
from tfuq._models.changes import watched
from tfuq._models.feature_arrays import check_labels, check_logits, check_rows
from tfuq._models.finite import finite_rows, where_known
from tfuq.ensembles import DeepEnsemble
from tfuq.ood._maps import deviation, gram_rows, inner_layers, positions
from tfuq.ood.base import Detector
from tfuq.ood.feature_detector import check_layer

END = object()  # stands behind what ran before the last layer


class _RecordingDetector(Detector):
    """Base of the detectors that look at the outputs of several layers as they are."""

    _takes = ()

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        if layers is not None:
            if isinstance(layers, str) or not np.iterable(layers) or not list(layers):
                raise ValueError(
                    "Argument `layers` must be a list of names of layers, or None to choose them "
                    f"from the model. Received: layers={shown(layers)}"
                )
            for name in layers:
                check_layer("layers", name)
                if name is None:
                    raise ValueError(
                        "Argument `layers` must hold names. Received: layers with None in it"
                    )
        self.layers = None if layers is None else list(layers)
        self._names = self.layers or []

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layers": self.layers}

    def _tapped(self):
        return {"layers": tuple(self._names), "takes": self._takes}

    def _bind(self, model):
        is_model = isinstance(model, (keras.Model, DeepEnsemble))  # `Tap` refuses others
        self._names = inner_layers(model) if self.layers is None and is_model else self.layers or []
        super()._bind(model)
        self._run = self._tap.compiled(self._arrays_of)

    def _recorded(self, batch, watch=lambda tensor: None):
        """`Found` of a batch, and the outputs of the layers in their order, once watched."""
        outputs = []

        def note(tensor):
            watch(tensor)
            outputs.append(tensor)
            return tensor

        def end(call, *args, **kwargs):
            outputs.append(END)
            return call(*args, **kwargs)

        taps = getattr(self._tap, "taps", (self._tap,))
        with contextlib.ExitStack() as stack:
            for tap in taps:
                stack.enter_context(watched(tap.body, end))
            return self._tap.forward(batch, note), outputs

    def _arrays_of(self, batch):
        """Tensors that `_read` gives as arrays."""
        raise NotImplementedError

    def _read(self, batch):
        self._tap.prepare(batch)
        if not self._names:
            raise ValueError(
                "Argument `layers` must name layers inside the model: it has neither a batch "
                "normalization nor a convolution or Dense layer before the last. "
                f"Received: layers=None with model={shown(self.model)}"
            )
        return tuple(array.numpy() for array in self._run(batch))


@register
class GAIA(_RecordingDetector):
    """Abnormality of the gradients at inner layers that attribute the prediction to features.

    Attributions weigh features by their gradients. For unknown inputs fewer gradients are 0
    (variant "z"), and their channel means are larger relative to those at the last layer (variant
    "a"). Nothing is fitted. Cost: a forward pass and one or two backward passes.

    Formula:

    ```
    "z": a_lk = fraction of positions with d max_c z_c / d A_lk != 0
    "a": a_lk = mean over positions of d sum_j f_j / d A_lk
                / sqrt(mean over j of |d sum_c log p_c / d f_j|)
    score = mean over layers l and channels k of a_lk^2          (Chen et al. 2023)
    ```

    with the maps A_lk, the features f that the last layer takes, logits z and p = softmax(z).

    `fit_features` and `score_features` take the numbers a `(n, channels of all layers)`. Labels are
    not needed.

    Args:
        variant: `"z"`, for networks with ReLUs behind the layers, or `"a"`.
        layers: List of names (or paths) of the layers; by default the batch normalizations of the
            model, as the authors have it, or if there are none its convolutions and `Dense` layers
            but the last.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxLogit`.

    Warns:
        UserWarning: In `fit`, if variant "z" gives all examples one score.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no such layers or
            no logits, or the prediction has no gradient at a layer.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import GAIA

    x = np.random.normal(size=(32, 8, 8, 1))
    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    detector = GAIA(from_logits=True).fit(model, x)
    print(detector.score(x).shape)
    ```

    References:
        - Chen, Li, Qu, Wang, Wan and Xiao, "GAIA: Delving into Gradient-based Attribution
          Abnormality for Out-of-distribution Detection", NeurIPS 2023.

    See also: `tfuq.ood.ExGrad`, `tfuq.ood.Gram`.
    """

    def __init__(
        self,
        variant: str = "z",
        layers: Sequence[str] | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layers, output=output, from_logits=from_logits)
        check_choice("variant", variant, ("z", "a"))
        self.variant = variant

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "variant": self.variant}

    def _tapped(self):
        last = (None,) if self.variant == "a" else ()  # the features that the last layer takes
        return {"layers": (*self._names, *last)}

    def _from_model(self):
        self._tap.check_knows_logits()
        return {}

    def _arrays_of(self, batch):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            found, outputs = self._recorded(batch, tape.watch)
            largest = tf.reduce_max(found.own_logits, -1)
            ease = tf.reduce_sum(tf.nn.log_softmax(found.own_logits), -1)
            maps, features = self._split(outputs)
            total = sum(tf.reduce_sum(tf.cast(each, "float32")) for each in features)
        if self.variant == "z":
            slopes = self._gradients(tape, largest, maps)
            rows = [tf.reduce_mean(tf.cast(positions(g) != 0, "float64"), 1) for g in slopes]
            size = 1.0
        else:
            outer = [tf.reduce_mean(positions(g), 1) for g in self._gradients(tape, ease, features)]
            size = tf.sqrt(tf.reduce_mean(tf.abs(tf.concat(outer, 1)), 1, keepdims=True))
            rows = [tf.reduce_mean(positions(g), 1) for g in self._gradients(tape, total, maps)]
        # Gradients of infinite logits can be numbers, in some runtimes or in all.
        return (where_known(finite_rows(found.own_logits), tf.concat(rows, 1) / size),)

    def _split(self, outputs):
        """Maps of the layers, and the features that the last layer of each member takes."""
        if outputs[-1] is not END:
            raise self._error_of_layers()
        if self.variant == "z":
            return [each for each in outputs if each is not END], []
        maps, features = [], []
        for each, following in zip(outputs, [*outputs[1:], None], strict=True):
            if each is not END:
                (features if following is END else maps).append(each)
        return maps, features

    def _gradients(self, tape, target, sources):
        found = tape.gradient(target, sources)
        if any(gradient is None for gradient in found):
            raise self._error_of_layers()
        return found

    def _error_of_layers(self):
        return ValueError(
            "Argument `layers` must name layers before the last, with respect to which the "
            f"prediction has a gradient. Received: layers={shown(self._names)}"
        )

    def _check(self, features):
        return (check_rows("features", features),)

    def _score(self, arrays):
        return tf.reduce_mean(tf.cast(arrays[0], "float64") ** 2, 1)

    def _scores_of_fit(self, arrays):
        scores = super()._scores_of_fit(arrays)
        if self.variant == "z" and len(scores) > 1 and np.ptp(scores) == 0:
            warnings.warn(
                f"GAIA scores all {len(scores)} examples {scores[0]:.3g}: the same number of "
                'gradients is 0 in each. Use variant="a", or name layers with a ReLU behind them: '
                "the outputs of a layer that ends in its own ReLU have none.",
                stacklevel=4,
            )
        return scores

    def _graph_score(self, state, found, batch):
        arrays = self._arrays_of(batch)
        return self._score(arrays), arrays


@register
class Gram(_RecordingDetector):
    """Deviation of channel correlations from the range that the predicted class had in training.

    Formula:

    ```
    g_lpk = (sum_j sum over positions of A_lk^p A_lj^p)^(1/p)
    d_l   = sum_pk max(0, min_c - g) / |min_c| + max(0, g - max_c) / |max_c|
    score = sum_l d_l / mean of d_l                              (Sastry and Oore 2020)
    ```

    with the maps A_lk of layer l and channel k; min_c and max_c are the least and the largest g of
    the training examples of the predicted class c. The mean deviation of a layer comes from a tenth
    of the examples, which the ranges have not seen; it is 1 if it would be 0, or if a class has
    fewer than 10 examples.

    `fit_features` and `score_features` take a list: maps `(n, ..., channels)` of each layer, and
    last logits `(n, classes)`. Labels are needed to fit; for a regression all examples are one
    class.

    Args:
        layers: List of names (or paths) of the layers, as for `GAIA`.
        powers: The orders p, a list of integers of at least 1; or an integer, for 1 up to it.
        validation: Fraction of each class that the mean deviations are estimated on, below 1; with
            0 they are 1.
        seed: Integer of at least 0 that determines which examples these are.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Warns:
        UserWarning: In `fit`, if a class has no examples: inputs predicted as that class are
            unknown, and score inf.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if labels are missing or are none
            of the classes, or the model has no such layers.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import Gram

    x, y = np.random.normal(size=(60, 8, 8, 1)), np.arange(60) % 3
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalMaxPooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(3)])
    detector = Gram(powers=(1, 2, 3), from_logits=True).fit(model, x, y)
    print(detector.score(3 * x).mean() > detector.score(x).mean())
    ```

    References:
        - Sastry and Oore, "Detecting Out-of-Distribution Examples with Gram Matrices", ICML 2020.

    See also: `tfuq.ood.GAIA`, `tfuq.ood.Mahalanobis`.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        powers: int | Sequence[int] = 5,
        validation: float = 0.1,
        seed: int = 0,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layers, output=output, from_logits=from_logits)
        is_list = np.iterable(powers) and not isinstance(powers, str)
        for power in powers if is_list else [powers]:
            check_integer("powers", power, 1)
        if is_list and not list(powers):
            raise ValueError("Argument `powers` must hold an integer. Received: an empty list")
        check_fraction("validation", validation)
        if validation == 1:
            raise ValueError("Argument `validation` must be below 1. Received: validation=1")
        check_integer("seed", seed, 0)
        self.powers = [int(power) for power in powers] if is_list else int(powers)
        self.validation = validation
        self.seed = seed

    def get_config(self) -> dict[str, Any]:
        own = {"powers": self.powers, "validation": self.validation, "seed": self.seed}
        return {**super().get_config(), **own}

    _takes = ("numbers",)

    def _rows(self, maps):
        orders = self.powers if isinstance(self.powers, list) else range(1, self.powers + 1)
        return gram_rows(maps, orders)

    def _arrays_of(self, batch):
        found, outputs = self._recorded(batch)
        return (*(self._rows(each) for each in outputs if each is not END), found.logits)

    def _check(self, features):
        if not isinstance(features, (list, tuple)) or len(features) < 2:
            raise ValueError(
                "Argument `features` must be a list of maps (n, ..., channels), one per layer, and "
                f"last logits (n, classes). Received: features={shown(features)}"
            )
        maps = [check_rows("features", each, ndim=max(2, np.ndim(each))) for each in features[:-1]]
        logits = check_logits("features", features[-1])
        if len({len(each) for each in (*maps, logits)}) > 1:
            raise ValueError(
                "Argument `features` must hold arrays of one length. "
                f"Received: lengths {[len(each) for each in (*maps, logits)]}"
            )
        return (*(self._rows(tf.constant(each)).numpy() for each in maps), logits)

    @property
    def _count(self):
        """How many outputs of layers there are."""
        return max(1, sum(name.startswith("least") for name in self._state))

    def _shapes(self):
        classes = f"features_{self._count}"
        shapes = {"known": (classes,), "expected": ("layers",)}
        for i in range(self._count):
            shapes |= {f"{name}_{i}": (classes, f"features_{i}") for name in ("least", "most")}
        return shapes

    def _fit(self, arrays, y):
        *rows, logits = arrays
        count = logits.shape[1]
        labels = check_labels(y, len(logits), count)
        known = np.bincount(labels, minlength=count) > 0
        if not known.all():
            missing = np.flatnonzero(~known).tolist()
            warnings.warn(
                f"{len(missing)} of {count} classes have no example: {shown(missing)}. An input "
                "that is predicted as one of them scores inf: fit to examples of them.",
                stacklevel=4,
            )
        held_out = self._held_out(labels)
        state = {"known": known.astype("float64"), "expected": np.ones(len(rows))}
        for i, each in enumerate(rows):
            least, most = np.zeros((2, count, each.shape[1]))
            for label in np.flatnonzero(known):
                of_class = each[(labels == label) & ~held_out]
                least[label], most[label] = of_class.min(0), of_class.max(0)
            state |= {f"least_{i}": least, f"most_{i}": most}
            if held_out.any():
                index = labels[held_out]
                found = deviation(each[held_out], least[index], most[index]).numpy().mean()
                state["expected"][i] = found if found > 0 else 1.0
        return state

    def _held_out(self, labels):
        """Which examples the ranges do not see: a fraction of each class."""
        rng, held_out = np.random.default_rng(self.seed), np.zeros(len(labels), bool)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            held_out[rows[: int(self.validation * len(rows))]] = True
        return held_out

    def _formula(self, arrays, state):
        *rows, logits = arrays
        predicted = tf.argmax(logits, -1)
        total = 0.0
        for i, each in enumerate(rows):
            bounds = (tf.gather(state[f"{name}_{i}"], predicted) for name in ("least", "most"))
            total += deviation(each, *bounds) / state["expected"][i]
        is_known = tf.gather(state["known"], predicted) > 0
        return tf.where(is_known, total, tf.cast(np.inf, "float64"))

    def _score(self, arrays):
        return self._formula(arrays, self._state)

    def _graph_score(self, state, found, batch):
        arrays = self._arrays_of(batch)
        return self._formula(arrays, state), arrays
