"""Multi-head attention whose projections, or whose dropout, take part in draws of the network."""

from __future__ import annotations

from typing import Any

from keras import layers

from tfuq._arguments import register
from tfuq.layers.base import check_kl_weight
from tfuq.layers.mc_dropout import MCDropout
from tfuq.layers.variational import EinsumDenseVariational

_PROJECTIONS = ("_query_dense", "_key_dense", "_value_dense", "_gate_dense", "_output_dense")
_OPTIONS = (
    *("kl_weight", "estimator", "prior_scale", "posterior_scale"),
    *("trainable_prior", "prior_mean", "resample"),
)


class _OtherParts(layers.MultiHeadAttention):
    """Attention of which some parts are replaced when it is built."""

    def _put(self, name, new):
        """Makes `new` the layer `self.name`, which Keras' own `build` has made."""
        self._tracker.untrack(getattr(self, name))
        setattr(self, name, new)


@register
class MultiHeadAttentionVariational(_OtherParts):
    """`keras.layers.MultiHeadAttention` whose projections are `EinsumDenseVariational`.

    The arguments of `keras.layers.MultiHeadAttention`, then those of `DenseVariational`, where they
    are described. The projections of queries, keys, values and outputs each add their KL
    divergence.

    Args:
        num_heads, key_dim, ...: The arguments of `keras.layers.MultiHeadAttention`.
        kl_weight: As in `DenseVariational`. Required.
        estimator, prior_scale, posterior_scale, trainable_prior, prior_mean, resample: As in
            `DenseVariational`, for each projection.
        seed: Integer from which the noise and Keras' own dropout follow.

    Raises:
        ValueError: If an argument is out of its range, or `kl_weight` is missing.

    Example:

    ```python
    import keras
    from tfuq.layers import MultiHeadAttentionVariational

    x = keras.Input((10, 16))
    attended = MultiHeadAttentionVariational(2, 8, kl_weight=0.001)(x, x)
    model = keras.Model(x, attended)
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """

    def __init__(
        self,
        *args: Any,
        kl_weight: float | None = None,
        estimator: str = "flipout",
        prior_scale: float = 1.0,
        posterior_scale: float = 0.05,
        trainable_prior: bool = False,
        prior_mean: str = "zero",
        resample: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_kl_weight(kl_weight)
        self.kl_weight = kl_weight
        self.estimator = estimator
        self.prior_scale = prior_scale
        self.posterior_scale = posterior_scale
        self.trainable_prior = trainable_prior
        self.prior_mean = prior_mean
        self.resample = resample
        EinsumDenseVariational("ab,bc->ac", 1, **self._options())  # says what is wrong with them

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        super().build(query_shape, value_shape, key_shape)
        for number, name in enumerate(_PROJECTIONS):
            old = getattr(self, name, None)
            if old is not None:
                # The same noise in two projections would be no two draws.
                seed = None if self.seed is None else self.seed + number
                options = {**self._options(), "seed": seed}
                new = EinsumDenseVariational.from_config({**old.get_config(), **options})
                new.build_from_config(old.get_build_config())
                self._put(name, new)

    def _options(self):
        """The arguments that every projection gets."""
        return {name: getattr(self, name) for name in _OPTIONS}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._options()}


@register
class MCMultiHeadAttention(_OtherParts):
    """`keras.layers.MultiHeadAttention` whose dropout takes part in draws of the network.

    Dropout of the attention scores is `MCDropout`: a draw has one mask for all examples, a
    prediction drops nothing.

    Args:
        num_heads, key_dim, ...: The arguments of `keras.layers.MultiHeadAttention`.

    Example:

    ```python
    import keras
    from tfuq.layers import MCMultiHeadAttention

    x = keras.Input((10, 16))
    model = keras.Model(x, MCMultiHeadAttention(2, 8, dropout=0.1)(x, x))
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.convert.mc_dropout`.
    """

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
        super().build(query_shape, value_shape, key_shape)
        old = getattr(self, "_dropout_layer", None)
        if old is not None and self.dropout:
            self._put(
                "_dropout_layer", MCDropout(self.dropout, seed=self.seed, dtype=self.dtype_policy)
            )
