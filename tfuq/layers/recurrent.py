"""Mean-field variational recurrent layers: one draw of the kernels for a whole sequence."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfuq._arguments import Tensor, check_choice, register
from tfuq._random.points import split_seed
from tfuq.layers._estimators import Gaussian
from tfuq.layers.variational import MeanFieldLayer


class _RecurrentVariational(MeanFieldLayer):
    """A recurrent layer of Keras whose cell's kernels are Gaussian; stands before it."""

    kernels = ("kernel", "recurrent_kernel")

    def __init__(self, *args: Any, estimator: str = "reparameterization", **kwargs: Any) -> None:
        check_choice("estimator", estimator, ("reparameterization",))
        super().__init__(*args, estimator=estimator, **kwargs)

    @property
    def kernel(self) -> Any:
        return self.cell.kernel

    @property
    def recurrent_kernel(self) -> Any:
        return self.cell.recurrent_kernel

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:
        super().build(sequences_shape)

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | None = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Any:
        self._add_kl(self.kl_divergence, training)
        seed = self._noise_seed(training)
        arguments = (sequences, initial_state, mask, training)
        if seed is None:
            return layers.RNN.call(self, *arguments)
        drawn = [
            (getattr(self, name), self._drawn(name, each))
            for name, each in zip(self.kernels, split_seed(seed, 2), strict=True)
        ]
        # In it Keras reads the kernels as they are drawn, and notes what the call changes.
        with keras.StatelessScope(state_mapping=drawn) as scope:
            outputs = layers.RNN.call(self, *arguments)
        for variable in self.variables:  # seeds of dropout, states from batch to batch
            value = scope.get_current_value(variable)
            if value is not None and all(variable is not kernel for kernel, _ in drawn):
                variable.assign(value)
        return outputs

    def _gaussian(self, name="kernel"):
        # The variable itself: its `value` is in the compute dtype, as the cell reads it.
        return Gaussian(tf.convert_to_tensor(getattr(self, name)._value), self._scale(name))

    def _drawn(self, name, seed):
        gaussian = self._gaussian(name)
        return tf.add(gaussian.loc, gaussian.noise(seed=seed))


@register
class GRUVariational(_RecurrentVariational, layers.GRU):
    """`keras.layers.GRU` with an independent Gaussian for each weight of its two kernels.

    The arguments of `keras.layers.GRU`, then those of `DenseVariational`, where they are
    described. A call draws both kernels once, for all examples and steps (Fortunato et al. 2017),
    so that `estimator` is `"reparameterization"`.

    Example:

    ```python
    import keras
    from tfuq.layers import GRUVariational

    layer = GRUVariational(8, kl_weight=0.001)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.layers.MCLSTM`, `tfuq.convert.variational`.
    """


@register
class LSTMVariational(_RecurrentVariational, layers.LSTM):
    """`keras.layers.LSTM` with an independent Gaussian for each weight of its two kernels.

    The arguments of `keras.layers.LSTM`, then those of `DenseVariational`, where they are
    described. A call draws both kernels once, for all examples and steps (Fortunato et al. 2017),
    so that `estimator` is `"reparameterization"`.

    Example:

    ```python
    import keras
    from tfuq.layers import LSTMVariational

    layer = LSTMVariational(8, kl_weight=0.001)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.layers.MCLSTM`, `tfuq.convert.variational`.
    """


@register
class SimpleRNNVariational(_RecurrentVariational, layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with an independent Gaussian for each weight of its two kernels.

    The arguments of `keras.layers.SimpleRNN`, then those of `DenseVariational`, where they are
    described. A call draws both kernels once, for all examples and steps (Fortunato et al. 2017),
    so that `estimator` is `"reparameterization"`.

    Example:

    ```python
    import keras
    from tfuq.layers import SimpleRNNVariational

    layer = SimpleRNNVariational(8, kl_weight=0.001)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.layers.MCLSTM`, `tfuq.convert.variational`.
    """
