"""Many members with one kernel: each has a rank-one factor of it and a bias of its own."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_choice, check_integer, check_positive, register
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers._operations import ConvOperation, DenseOperation
from tfuq.layers._training import calling_model, exempt_from_decay, steps_taken
from tfuq.layers.shapes import floating


class RandomSigns(keras.initializers.Initializer):
    """1 and -1, equally often on average."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        noise = keras.initializers.RandomUniform(-1.0, 1.0, seed=self.seed)(shape, dtype="float32")
        return tf.cast(tf.where(noise < 0, -1.0, 1.0), dtype or "float32")


class BatchEnsembleLayer(TakesDraws):
    """Stands before a Keras layer among the bases, and an operation `op(inputs, kernel)`."""

    def __init__(
        self,
        *args: Any,
        num_members: int | None = None,
        factors: str = "signs",
        factor_scale: float = 0.5,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_members is None:
            raise ValueError(
                "Argument `num_members` is required: how many networks share the kernel, 4 for "
                "example. Received: num_members=None"
            )
        check_integer("num_members", num_members, minimum=2)
        check_choice("factors", factors, ("signs", "normal"))
        check_positive("factor_scale", factor_scale)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        super().__init__(*args, **kwargs)
        self.num_members = num_members
        self.factors = factors
        self.factor_scale = factor_scale
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        channels = (input_shape[self._channel_axis()], self._width())
        for number, (name, size) in enumerate(zip(("input", "output"), channels, strict=True)):
            factor = self.add_weight(
                name=f"{name}_factor",
                shape=(self.num_members, size),
                initializer=self._factor_initializer(number),
            )
            setattr(self, f"{name}_factor", factor)

    def add_weight(
        self, *args: Any, name: str | None = None, shape: Any = None, **kwargs: Any
    ) -> Any:
        """As Keras', but that each member has a bias of its own."""
        shape = (self.num_members, *shape) if name == "bias" else shape
        return super().add_weight(*args, name=name, shape=shape, **kwargs)

    def linear_map(self) -> Any:
        """Kernel and bias (or None) of member 0, whose prediction is that of the layer.

        None of a convolution.
        """
        if len(self.kernel.shape) != 2:
            return None
        kernel = tf.convert_to_tensor(self.kernel) * self.input_factor[0][:, None]
        return kernel * self.output_factor[0], self.bias[0] if self.use_bias else None

    def _factor_initializer(self, number):
        seed = None if self.seed is None else 2 * self.seed + number
        if self.factors == "signs":
            return RandomSigns(seed)
        return keras.initializers.RandomNormal(1.0, self.factor_scale, seed=seed)

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        if training:
            exempt_from_decay([self.input_factor, self.output_factor])
        member = self._members(inputs, training)
        outputs = inputs * self._of(self.input_factor, member, inputs)
        outputs = self.op(outputs, tf.cast(tf.convert_to_tensor(self.kernel), inputs.dtype))
        outputs *= self._of(self.output_factor, member, outputs)
        if self.use_bias:
            outputs += self._of(self.bias, member, outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _members(self, inputs, training):
        """The number of the member, or in training one for each example, `(batch,)`."""
        draw = current_draw()
        if draw is not None:
            return draw.member(self, self.num_members)
        if not training:
            return tf.constant(0)
        steps, size = steps_taken(), inputs.shape[0]
        if steps is None:
            steps = 0
            if size and size < self.num_members and calling_model() is not None:
                warnings.warn(
                    f"{type(self).__name__}: the model is not compiled, so the members do not take "
                    f"turns, and a batch of {size} trains only the first {size} of "
                    f"{self.num_members} members. Call `compile` with the optimizer of your loop",
                    stacklevel=2,
                )
        return tf.math.floormod(tf.range(tf.shape(inputs)[0]) + steps, self.num_members)

    def _of(self, rows, member, like):
        """`rows` `(members, channels)` of the member(s), in a shape that multiplies `like`."""
        rows = tf.cast(tf.convert_to_tensor(rows), like.dtype)
        shape = [1] * like.shape.rank
        if member.shape.rank == 0:
            found = tf.gather(rows, member)
        else:  # not gathered, whose gradient is one that optimizers treat otherwise
            found = tf.matmul(tf.one_hot(member, self.num_members, dtype=like.dtype), rows)
            shape[0] = -1
        shape[self._channel_axis()] = rows.shape[-1]
        return tf.reshape(found, shape)

    def _channel_axis(self):
        return 1 if getattr(self, "data_format", None) == "channels_first" else -1

    def save_own_variables(self, store: Any) -> None:
        # Dense and Conv of Keras would save the kernel and the bias alone.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        own = ("num_members", "factors", "factor_scale", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@register
class BatchEnsembleDense(BatchEnsembleLayer, DenseOperation, keras.layers.Dense):
    """`keras.layers.Dense` of several networks, which differ in rank-one factors of one kernel.

    It is an ensemble of `num_members` networks with about the weights of one. In training the batch
    is divided among the members: at step t (the `iterations` of the compiled optimizer) the example
    at place i of its batch goes through member `(i + t) mod num_members` in all layers of the
    model. So any batch size works, and a training step costs a quarter to a half more than one
    network's. Compile the model in your own loop, too: otherwise t stays 0, and batches smaller
    than `num_members` never reach the last members. Each member sees its share of an epoch's
    examples; to show all examples to all members in each step, repeat them: `tf.repeat(x,
    num_members, axis=0)`, labels likewise.

    `predict` and `evaluate` use member 0, a network like any other; the mean of the weights would
    not be one. Draw number m of the network is member `m mod num_members`: `tfuq.predictive`,
    exports and pictures average over all members, and by default take as many draws as there are
    members.

    Weight decay of the optimizer leaves the factors alone.

    Formula (Wen et al. 2020, equations 1 and 3):

    ```
    W_m = W * (r_m s_m^T)
    y = activation(((x * r_m) W) * s_m + b_m)
    ```

    Args:
        units: As in `keras.layers.Dense`.
        num_members: Number of networks, at least 2. Required.
        activation, ...: The other arguments of `keras.layers.Dense`, by name.
        factors: Initial r and s: `"signs"`, 1 or -1 at random, for training from scratch;
            `"normal"`, N(1, factor_scale^2), for kernels that are already trained.
        factor_scale: Standard deviation of `"normal"` factors.
        seed: Integer that determines the factors.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or `num_members` is missing.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import BatchEnsembleDense
    from tfuq.predictive import predict_uncertainty

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    hidden = BatchEnsembleDense(16, 4, activation="relu")
    model = keras.Sequential([keras.Input((8,)), hidden, BatchEnsembleDense(3, 4)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    print(predict_uncertainty(model, x).mutual_information.shape)  # (64,), of four networks
    ```

    References:
        - Wen et al.: "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong
          Learning", ICLR 2020.

    See also: `tfuq.layers.BatchEnsembleConv2D`, `tfuq.convert.batch_ensemble`,
    `tfuq.ensembles.DeepEnsemble`.
    """

    def __init__(self, units: int, num_members: int | None = None, **kwargs: Any) -> None:
        super().__init__(units, num_members=num_members, **kwargs)

    def _width(self):
        return self.units


@register
class BatchEnsembleConv2D(BatchEnsembleLayer, ConvOperation, keras.layers.Conv2D):
    """`keras.layers.Conv2D` of several networks, which differ in rank-one factors of one kernel.

    The arguments of `keras.layers.Conv2D`, then those of `BatchEnsembleDense`, where they are
    described. r has a number for each channel of the input, s for each filter.

    Example:

    ```python
    import keras
    from tfuq.layers import BatchEnsembleConv2D

    layer = BatchEnsembleConv2D(16, 3, num_members=4, activation="relu")
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.BatchEnsembleDense`, `tfuq.convert.batch_ensemble`.
    """

    def _width(self):
        return self.filters
