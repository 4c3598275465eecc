"""Detectors by the logits of features that are changed, each input's by itself, to tell more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Output, Self, check_choice, check_positive, register, shown
from tfuq._models.finite import finite_rows, where_known
from tfuq.ood._last_layer_formulas import check_percent, check_percentile
from tfuq.ood._logit_scores import LOGIT_SCORES
from tfuq.ood.feature_detector import check_layer
from tfuq.ood.last_layer import HEAD_SHAPES, LastLayerDetector, check_head, head_logits


def rectified(features, limit):
    """min(f, limit)."""
    return tf.minimum(features, tf.cast(limit, features.dtype))


def kept_count(size, percentile):
    """How many of `size` numbers are above this percentile, at least 1."""
    return max(1, size - round(size * percentile / 100))


def flat_and_largest(features, percentile):
    """Activations `(n, size)` of each example, and the largest of them: values and places."""
    size = features.shape[1:].num_elements()
    flat = tf.reshape(features, (-1, size))
    return flat, tf.math.top_k(flat, kept_count(size, percentile))


def sharpening(flat, largest):
    """exp(s_1 / s_2) `(n, 1)`, s_1 of all and s_2 of the largest; NaN where s_2 is below 0.

    Where all are 0 it is 1: there is nothing to scale.
    """
    whole, part = (tf.reduce_sum(each, 1, keepdims=True) for each in (flat, largest))
    ratio = tf.math.divide_no_nan(whole, part)
    is_known = tf.math.is_finite(whole) & (part >= 0)  # LiteRT's exp of NaN is 0
    return tf.where(is_known, tf.exp(ratio), tf.cast(np.nan, flat.dtype))


def scaled(features, percentile):
    """f exp(s_1 / s_2), of all axes of an example together."""
    flat, largest = flat_and_largest(features, percentile)
    return tf.reshape(flat * sharpening(flat, largest.values), tf.shape(features))


def pruned(features, percentile, variant):
    """The largest activations of each example, and 0 in place of the others.

    They stay (`"p"`), share the sum of all (`"b"`), or are scaled by exp(s_1 / s_2) (`"s"`).
    """
    flat, largest = flat_and_largest(features, percentile)
    values, places = largest
    if variant == "b":
        share = tf.reduce_sum(flat, 1, keepdims=True) / values.shape[1]
        values = tf.broadcast_to(share, tf.shape(values))
    if variant == "s":
        values *= sharpening(flat, largest.values)
    rows = tf.broadcast_to(tf.range(tf.shape(flat)[0])[:, None], tf.shape(places))
    shaped = tf.scatter_nd(tf.stack([rows, places], -1), values, tf.shape(flat))
    return tf.reshape(shaped, tf.shape(features))


class _ShapingDetector(LastLayerDetector):
    """Base of those that score the logits of changed features. A child names `_shaped`.

    Of features that a linear last layer takes, of an ensemble side by side, the logits are computed
    here, in float64; of others the rest of the network makes them, of an ensemble each member.
    """

    _fitted_names = ()  # of what `_shaped` takes beside the features

    def __init__(
        self,
        base: str,
        layer: str | None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_choice("base", base, tuple(LOGIT_SCORES))
        check_layer("layer", layer)
        self.base = base
        self.layer = layer

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "base": self.base, "layer": self.layer}

    def _shaped(self, features, *fitted):
        """Features as they are to be, a tensor of their shape."""
        raise NotImplementedError

    def _tapped(self):
        return {"layers": (self.layer,), "pool": False}

    def _bind(self, model):
        super()._bind(model)
        self._run = self._tap.compiled(self._find_shaped)

    def _find_shaped(self, batch, *fitted):
        """`Found` of a batch; logits of changed features that are no numbers are NaN."""
        shaped = []

        def change(features):
            shaped.append(self._shaped(features, *fitted))
            return shaped[-1]

        found = self._tap.forward(batch, change)
        # Max-pooling behind, or a ReLU that is fused, makes a number of NaN.
        logits = where_known(finite_rows(shaped), found.own_logits)
        return found._replace(own_logits=logits)

    def _of_state(self, state):
        return [tf.convert_to_tensor(state[name]) for name in self._fitted_names]

    def _from_model(self):
        if self.base in ("energy", "max_logit"):
            self._tap.check_knows_logits()
        is_whole = self.layer is None and not self._tap.is_spatial
        return {"head": self._tap.last_layer() if is_whole else None}

    def fit_features(
        self,
        features: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike | None = None,
        *,
        head: Any = None,
    ) -> Self:
        """Fits to arrays instead of a model and its inputs.

        Args:
            features: Features `(n, d)` of the layer whose features are changed.
            y: Not looked at.
            head: The last layer that takes them: a built `Dense` or head, or a pair `(kernel,
                bias)`. None if it is not that, or only inputs are to be scored.

        Returns:
            The detector. `score` needs a model: assign `detector.model`.

        Raises:
            ValueError: If arrays are empty, not finite, or of a wrong shape.
        """
        head = None if head is None else check_head(head)
        return self._learn("features", self._given(features), y, head=head)

    def _shapes(self):
        return dict.fromkeys(self._fitted_names, ()) | (HEAD_SHAPES if self._has_head else {})

    @property
    def _has_head(self):
        return "kernel" in self._state

    def _fit(self, arrays, y, head):
        return {} if head is None else super()._fit(arrays, y, head)

    def _score_batch(self, batch):
        if self._has_head:
            return super()._score_batch(batch)
        self._tap.prepare(batch)
        found = self._run(batch, *self._of_state(self._state))
        arrays = (found.features[0].numpy(), found.own_logits.numpy())
        self._check_widths(arrays[:1])
        return self._guarded(arrays, lambda arrays: LOGIT_SCORES[self.base](arrays[1]))

    @property
    def _needs_inputs(self):
        return not self._has_head

    def _scores_of_fit(self, arrays):
        return super()._scores_of_fit(arrays) if self._has_head else None

    def _score(self, arrays):
        if not self._has_head:
            raise ValueError(
                "Argument `head` must be given to `fit_features` before features can be scored, "
                "unless the model ends in a Dense layer whose inputs are changed. Received: none"
            )
        return super()._score(arrays)

    def _formula(self, features, state):
        shaped = self._shaped(tf.cast(features, "float64"), *self._of_state(state))
        return LOGIT_SCORES[self.base](head_logits(shaped, state))

    def _graph_score(self, state, found, batch):
        if self._has_head:
            return super()._graph_score(state, found, batch)
        shaped = self._find_shaped(batch, *self._of_state(state))
        score = LOGIT_SCORES[self.base](shaped.own_logits)
        return score, [shaped.features[0], shaped.own_logits]


@register
class ReAct(_ShapingDetector):
    """A score of the logits after features are clipped where training data rarely go.

    Inputs out of distribution make single units fire strongly; clipping them raises the score. The
    rest of the network, of any kind, runs on the clipped features.

    Formula:

    ```
    f'(x) = min(f(x), c),   c = the percentile of all f_j(x_i)   (Sun et al. 2021, section 3)
    score = that of the logits the network makes of f'(x)
    ```

    `fit_features(features, head=...)` and `score_features` take features `(n, d)`; without `head`
    you can fit to features, but score only inputs. Labels are not needed.

    Args:
        percentile: In percent, 1 to 100; 90 in the paper.
        base: `"energy"`, `"max_softmax"`, `"max_logit"` or `"entropy"`, as the detectors of these
            names.
        layer: Name (or path) of the layer whose outputs are rectified, at any depth; None for what
            the last layer takes. Of a layer with more axes, all activations of the training data
            are held in memory.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no layer of this
            name, or the score is one of logits and it has none.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import ReAct

    x = np.random.normal(size=(64, 8))
    layers = [keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    detector = ReAct(percentile=90, from_logits=True).fit(model, x)
    detector.threshold_at(0.95, x)
    print(detector.detect(10 * x).mean())
    ```

    References:
        - Sun, Guo and Li, "ReAct: Out-of-distribution Detection With Rectified Activations",
          NeurIPS 2021.

    See also: `tfuq.ood.ASH`, `tfuq.ood.SCALE`, `tfuq.ood.Energy`.
    """

    _fitted_names = ("limit",)

    def __init__(
        self,
        percentile: float = 90,
        base: str = "energy",
        layer: str | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(base, layer, output=output, from_logits=from_logits)
        check_positive("percentile", percentile)
        if percentile > 100:
            raise ValueError(
                "Argument `percentile` must be at most 100. "
                f"Received: percentile={shown(percentile)}"
            )
        check_percent(percentile)
        self.percentile = percentile

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "percentile": self.percentile}

    def _shaped(self, features, limit):
        return rectified(features, limit)

    def _fit(self, arrays, y, head):
        limit = np.array(np.percentile(arrays[0], self.percentile), "float64")
        return {"limit": limit} | super()._fit(arrays, y, head)


@register
class ASH(_ShapingDetector):
    """A score of the logits after most activations of each input are removed and the rest rescaled.

    An in-distribution input is recognized from few activations. The more the largest ones stand
    out, the less they are scaled.

    Formula:

    ```
    f'(x) = f(x) where it is among the largest (100 - percentile) %, else 0
            times exp(s_1 / s_2)                   variant "s"      (Djurisic et al. 2023)
            as it is                               variant "p"
            s_1 / count in place of each           variant "b"
    score = that of the logits the network makes of f'(x)
    ```

    with the sums s_1 of all activations and s_2 of those that stay. It is made for activations that
    are not negative, as after a ReLU; where s_2 is below 0, the input is unknown and scores inf. Of
    equal activations the first stay, which matters to variant "b" where more than these are 0.

    `fit_features(features, head=...)` and `score_features` take features `(n, d)`; without `head`
    only inputs can be scored. Labels are not needed. Of a `tfuq.ensembles.DeepEnsemble` the
    activations of all members compete, or with `layer` those of each by itself.

    Args:
        percentile: 0, or at least 1 and below 100: how many percent of the activations are removed.
        variant: `"s"`, `"p"` or `"b"`.
        base: `"energy"`, `"max_softmax"`, `"max_logit"` or `"entropy"`, as the detectors of these
            names.
        layer: Name (or path) of the layer whose outputs are changed, at any depth; None for what
            the last layer takes. Of a layer with more axes all activations of an input compete.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no layer of this
            name, or the score is one of logits and it has none.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import ASH

    x = np.random.normal(size=(64, 8))
    layers = [keras.layers.Dense(20, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    detector = ASH(percentile=80, from_logits=True).fit(model, x)
    detector.threshold_at(0.95, x)
    print(detector.detect(10 * x).mean())
    ```

    References:
        - Djurisic, Bozanic, Ashok and Liu, "Extremely Simple Activation Shaping for
          Out-of-Distribution Detection", ICLR 2023.

    See also: `tfuq.ood.SCALE`, `tfuq.ood.ReAct`, `tfuq.ood.DICE`.
    """

    def __init__(
        self,
        percentile: float = 90,
        variant: str = "s",
        base: str = "energy",
        layer: str | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(base, layer, output=output, from_logits=from_logits)
        check_percentile(percentile)
        check_choice("variant", variant, ("s", "p", "b"))
        self.percentile = percentile
        self.variant = variant

    def get_config(self) -> dict[str, Any]:
        config = {"percentile": self.percentile, "variant": self.variant}
        return {**super().get_config(), **config}

    def _shaped(self, features):
        return pruned(features, float(self.percentile), self.variant)


@register
class SCALE(_ShapingDetector):
    """A score of the logits after scaling all activations by how much the largest stand out.

    It scales as `ASH` does, but does not prune, so the predictions stay: exactly if the last layer
    has no bias, and nearly otherwise.

    Formula:

    ```
    f'(x) = f(x) exp(s_1 / s_2)                                  (Xu et al. 2024)
    score = that of the logits the network makes of f'(x)
    ```

    with the sums s_1 of all activations, and s_2 of the largest (100 - percentile) % of them. It is
    made for activations that are not negative, as after a ReLU; where s_2 is below 0, the input is
    unknown and scores inf.

    `fit_features(features, head=...)` and `score_features` take features `(n, d)`; without `head`
    only inputs can be scored. Labels are not needed.

    Args:
        percentile: 0, or at least 1 and below 100.
        base: `"energy"`, `"max_softmax"`, `"max_logit"` or `"entropy"`, as the detectors of these
            names.
        layer: Name (or path) of the layer whose outputs are scaled, as for `ASH`.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: As `ASH`.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import SCALE

    features, kernel = np.random.uniform(size=(64, 20)), np.random.normal(size=(20, 3))
    detector = SCALE(percentile=80).fit_features(features, head=(kernel, None))
    print(detector.score_features(features).shape)
    ```

    References:
        - Xu, Chen, Franchi and Yao, "Scaling for Training Time and Post-hoc Out-of-distribution
          Detection Enhancement", ICLR 2024.

    See also: `tfuq.ood.ASH`, `tfuq.ood.ReAct`.
    """

    def __init__(
        self,
        percentile: float = 85,
        base: str = "energy",
        layer: str | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(base, layer, output=output, from_logits=from_logits)
        check_percentile(percentile)
        self.percentile = percentile

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "percentile": self.percentile}

    def _shaped(self, features):
        return scaled(features, float(self.percentile))
