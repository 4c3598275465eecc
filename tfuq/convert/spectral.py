"""Hidden layers that keep distances: bounds on the spectral norm of their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_choice, check_integer, check_positive, register, shown
from tfuq.convert._copies import (
    by_name,
    check_graph,
    chosen_layers,
    cloned,
    conversions,
    leaves,
    own_weights,
)
from tfuq.convert._report import told
from tfuq.convert._twins import is_quantized

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_KINDS = (keras.layers.Dense, *_CONVOLUTIONS)
_OF_CONVOLUTION = ("input_shape", "strides", "padding", "data_format", "dilation_rate")
WARM_UP = 30  # steps of the power iteration before the first bound
PADDINGS = ("valid", "same")


@register
class SpectralBound(keras.constraints.Constraint):
    """Constraint that bounds the spectral norm of a kernel's linear map by `norm_bound`.

    After each step of the optimizer the kernel W becomes W min(1, norm_bound / sigma), with sigma
    the largest singular value of `x -> x W` or, for a convolution, of the convolution itself of
    inputs of `input_shape`, by the power method (Miyato et al., ICLR 2018; Gouk et al. 2021 for the
    convolution), whose vector goes on from step to step. Nothing is added to the network, and no
    file holds the vector: for a kernel that was loaded it is found anew, by 30 steps.

    Args:
        norm_bound: Number above 0: the bound c of sigma.
        iterations: Steps of the power method after each step of the optimizer.
        input_shape: Shape of an input without the batch; needed for a convolution.
        strides, padding, data_format, dilation_rate: Those of the convolution.

    Raises:
        ValueError: If an argument is out of its range, or a kernel of more than two axes comes
            without `input_shape`.

    Example:

    ```python
    import keras
    from tfuq.convert import SpectralBound

    hidden = keras.layers.Dense(16, "relu", kernel_constraint=SpectralBound(0.95))
    ```

    See also: `tfuq.convert.spectral_normalize`.
    """

    def __init__(
        self,
        norm_bound: float = 0.95,
        iterations: int = 1,
        input_shape: Sequence[int] | None = None,
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
    ) -> None:
        check_positive("norm_bound", norm_bound)
        check_integer("iterations", iterations, minimum=1)
        check_choice("padding", padding, PADDINGS)
        self.norm_bound, self.iterations = norm_bound, iterations
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.strides, self.padding = strides, padding
        self.data_format, self.dilation_rate = data_format, dilation_rate
        self._vectors = {}

    def __call__(self, w: Tensor) -> Tensor:
        """The kernel, within the bound."""
        kernel = tf.convert_to_tensor(w)
        sigma = self.norm(w, self.iterations)
        bound = tf.cast(self.norm_bound, kernel.dtype)
        return kernel * tf.minimum(tf.ones_like(sigma), bound / sigma)

    def norm(self, kernel: Tensor, iterations: int = WARM_UP) -> Tensor:
        """The largest singular value, after so many more steps of the power method.

        Args:
            kernel: Kernel, `(features, units)` or that of a convolution.
            iterations: Number of steps.

        Returns:
            Scalar tensor: from below, and closer with each step.
        """
        weight, kernel = kernel, tf.convert_to_tensor(kernel)
        start = self._started(weight, kernel)
        vector = tf.cast(start, kernel.dtype)
        for _ in range(iterations):
            vector = _unit(self._back(_unit(self._map(vector, kernel)), kernel, vector))
        start.assign(tf.cast(vector, start.dtype))
        return tf.maximum(tf.norm(self._map(vector, kernel)), keras.config.epsilon())

    def _started(self, weight, kernel):
        """The vector of the power method, which outlives the steps of a training.

        Each weight has its own, as layers may share a constraint; tensors have one by their shape.
        """
        is_variable = isinstance(weight, (keras.Variable, tf.Variable))
        key = id(weight) if is_variable else tuple(kernel.shape)
        if key not in self._vectors:
            shape = (1, kernel.shape[0])
            if kernel.shape.rank != 2:
                if self.input_shape is None or None in self.input_shape:
                    raise ValueError(
                        "Argument `input_shape` must be the shape of an input of the convolution, "
                        "without the batch and all of it known. "
                        f"Received: input_shape={shown(self.input_shape)} for a kernel of shape "
                        f"{tuple(kernel.shape)}"
                    )
                shape = (1, *self.input_shape)
            with tf.init_scope():
                start = _unit(tf.random.stateless_normal(shape, [1, 2]))
                if is_variable:  # perhaps from a file, which holds no vector: it is found again
                    find = tf.function(self._found, autograph=False)
                    start = find(start, tf.convert_to_tensor(weight))
                start = tf.Variable(start, trainable=False, name="spectral_vector")
            # With the weight: held, its id is not given to another one.
            self._vectors[key] = (weight if is_variable else None, start)
        return self._vectors[key][1]

    def _found(self, vector, kernel):
        """The vector after the steps that come before the first bound."""
        kernel = tf.cast(kernel, vector.dtype)
        for _ in range(WARM_UP):
            vector = _unit(self._back(_unit(self._map(vector, kernel)), kernel, vector))
        return vector

    def _map(self, vector, kernel):
        if kernel.shape.rank == 2:
            return tf.matmul(vector, kernel)
        options = {n: getattr(self, n) for n in ("strides", "padding", "data_format")}
        return keras.ops.conv(vector, kernel, dilation_rate=self.dilation_rate, **options)

    def _back(self, output, kernel, like):
        """The transposed map, to a vector of the shape of `like`."""
        if kernel.shape.rank == 2:
            return tf.matmul(output, kernel, transpose_b=True)
        vector = tf.zeros(like.shape, kernel.dtype)
        if not tf.executing_eagerly():  # perhaps in a scope that stops tapes
            return tf.gradients(self._map(vector, kernel), vector, output)[0]
        with tf.GradientTape() as tape:
            tape.watch(vector)
            found = self._map(vector, kernel)
        return tape.gradient(found, vector, output)

    def get_config(self) -> dict[str, Any]:
        return {"norm_bound": self.norm_bound, "iterations": self.iterations} | {
            name: getattr(self, name) for name in _OF_CONVOLUTION
        }


def _unit(vector):
    return vector / tf.maximum(tf.norm(vector), keras.config.epsilon())


def spectral_normalize(
    model: keras.Model,
    norm_bound: float = 0.95,
    *,
    iterations: int = 1,
    layers: Sequence[str] | None = None,
) -> keras.Model:
    """A copy of a model whose hidden kernels have a spectral norm of at most `norm_bound`.

    `Dense` and `Conv1D/2D/3D` (without groups) get the constraint `SpectralBound`: their kernels
    keep the bound from the start and after each training step. The graph of the network is
    unchanged, in files and exports too. With residual connections a bound below 1 bounds distances
    from both sides (Liu et al. 2023, section 3.2), which `tfuq.layers.SNGPDense` needs. One line
    says what was converted and what was left; `tfuq.convert.report(copy)` names each layer.

    Args:
        model: A functional or `Sequential` Keras model.
        norm_bound: Number above 0, the bound of the largest singular value.
        iterations: Steps of the power method after each step of the optimizer.
        layers: Names of the layers to bound; by default all that can be, except those that make the
            model's outputs, as their logits would be bounded.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If an argument is out of its range, `model` cannot be cloned, a name in `layers`
            is not that of a layer that can be bounded, there is none, or a convolution takes inputs
            of unknown extents.

    Example:

    ```python
    import keras
    from tfuq.convert import spectral_normalize
    from tfuq.layers import SNGPDense

    hidden = keras.layers.Dense(16, activation="relu")
    model = keras.Sequential([keras.Input((8,)), hidden, SNGPDense(3, num_features=64)])
    model = spectral_normalize(model, norm_bound=0.95)
    ```

    References:
        - Liu, Padhy, Ren, Lin, Wen, Jerfel, Nado, Snoek, Tran, Lakshminarayanan: A Simple Approach
          to Improve Single-Model Deep Uncertainty via Distance-Awareness. JMLR 24, 2023.

    See also: `tfuq.layers.SNGPDense`, `tfuq.convert.SpectralBound`.
    """
    SpectralBound(norm_bound, iterations)  # says what is wrong with them, if anything is
    check_graph(model)
    last = {id(tensor._keras_history[0]) for tensor in keras.tree.flatten(model.outputs)}
    candidates = leaves(
        model, lambda x: _why_not(x) is None and (layers is not None or id(x) not in last)
    )
    chosen = chosen_layers(model, candidates, layers)

    def make(layer):
        if id(layer) not in chosen:
            return None
        bound = SpectralBound(norm_bound, iterations, **_of_convolution(layer))
        constraint = {"kernel_constraint": keras.constraints.serialize(bound)}
        return type(layer).from_config({**layer.get_config(), **constraint})

    copy, _ = cloned(model, make)
    layer_pairs = zip(model._flatten_layers(), copy._flatten_layers(), strict=True)
    pairs = [(old, new) for old, new in layer_pairs if id(old) in chosen]
    for _, new in pairs:
        new.kernel_constraint.norm(new.kernel)
        new.kernel.assign(new.kernel_constraint(new.kernel))
    left = {}
    for layer in model._flatten_layers():
        if own_weights(layer) and id(layer) not in chosen:
            of_choice = "it is not among `layers`"
            of_choice = "its outputs are the model's" if layers is None else of_choice
            why = _why_not(layer) or of_choice
            left[id(layer)] = (layer, (type(layer).__name__, why))
    converted = conversions(pairs, chosen)
    return told(copy, "spectral_normalize", converted, by_name(left.values()))


def _why_not(layer):
    """Why a layer cannot be bounded, or None."""
    if type(layer) not in _KINDS:
        return f"there is no bound for {type(layer).__name__}"
    if is_quantized(layer) or getattr(layer, "lora_enabled", False):
        return "its kernel is quantized, or has an addition of low rank"
    if layer.kernel_constraint is not None:
        return "its kernel has a constraint of its own"
    if isinstance(layer, keras.layers.Dense):
        return None
    if layer.groups != 1 or layer.padding not in PADDINGS:
        return "it is grouped or causal"
    return None


def _of_convolution(layer):
    """What a bound has to know of a layer beside its kernel."""
    if isinstance(layer, keras.layers.Dense):
        return {}
    shape = tuple(layer.get_build_config()["input_shape"])[1:]
    if None in shape:
        raise ValueError(
            f"Argument `model` must have an input of known extents for {layer.name!r}, or name in "
            f"`layers` what is to be bounded. Received: inputs of shape {(None, *shape)}"
        )
    found = {name: getattr(layer, name) for name in _OF_CONVOLUTION[1:]}
    return {"input_shape": shape, **found}
