"""Recurrent layers whose dropout takes part in draws of the network."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfuq._arguments import Tensor, register
from tfuq._random import points
from tfuq._random.draws import TakesDraws, current_draw


class _MCRecurrent(TakesDraws):
    """A recurrent layer of Keras; stands before it among the bases."""

    def is_random(self) -> bool:
        return self.dropout > 0 or self.recurrent_dropout > 0

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | None = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Any:
        # Of the cell, too: with the masks that `_maybe_config_dropout_masks` gives it.
        is_drawn = current_draw() is not None and self.is_random()
        return super().call(sequences, initial_state, mask, training=is_drawn or training)

    @property
    def seed(self) -> Any:
        return self.cell.seed

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}  # which SimpleRNN forgets

    def _maybe_config_dropout_masks(self, cell, input_sequence, input_state):
        """Keras' own hook, called before the first step: masks for all steps of a sequence."""
        draw = current_draw()
        if draw is None or not self.is_random():
            return super()._maybe_config_dropout_masks(cell, input_sequence, input_state)
        seeds = points.split_seed(draw.seed_of(self), 2)
        cell._dropout_mask = _masks(cell, input_sequence, cell.dropout, seeds[0])
        state = input_state[0] if isinstance(input_state, (list, tuple)) else input_state
        cell._recurrent_dropout_mask = _masks(cell, state, cell.recurrent_dropout, seeds[1])


def _masks(cell, values, rate, seed):
    """One mask for all examples; as many as the cell has gates, if it takes one for each."""
    if not 0 < rate < 1:
        return None
    count = getattr(cell, "dropout_mask_count", None)
    shape = tf.stack([1, *keras.ops.shape(values)[1:]])
    masks = [
        points.keep_mask(shape, rate, seed=each, dtype=values.dtype)
        for each in points.split_seed(seed, count or 1)
    ]
    return masks[0] if count is None else masks


@register
class MCGRU(_MCRecurrent, layers.GRU):
    """`keras.layers.GRU` whose dropout takes part in draws of the network.

    The arguments of `keras.layers.GRU`. `dropout` and `recurrent_dropout` act in training as usual;
    a prediction drops nothing. A draw has one mask for all examples and steps (Gal and Ghahramani,
    NeurIPS 2016).

    Example:

    ```python
    import keras
    from tfuq.layers import MCGRU

    layer = MCGRU(8, dropout=0.2, recurrent_dropout=0.2)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.layers.LSTMVariational`, `tfuq.convert.mc_dropout`.
    """


@register
class MCLSTM(_MCRecurrent, layers.LSTM):
    """`keras.layers.LSTM` whose dropout takes part in draws of the network.

    The arguments of `keras.layers.LSTM`. `dropout` and `recurrent_dropout` act in training as
    usual; a prediction drops nothing. A draw has one mask for all examples and steps (Gal and
    Ghahramani, NeurIPS 2016).

    Example:

    ```python
    import keras
    from tfuq.layers import MCLSTM

    layer = MCLSTM(8, dropout=0.2, recurrent_dropout=0.2)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.layers.LSTMVariational`, `tfuq.convert.mc_dropout`.
    """


@register
class MCSimpleRNN(_MCRecurrent, layers.SimpleRNN):
    """`keras.layers.SimpleRNN` whose dropout takes part in draws of the network.

    The arguments of `keras.layers.SimpleRNN`. `dropout` and `recurrent_dropout` act in training as
    usual; a prediction drops nothing. A draw has one mask for all examples and steps (Gal and
    Ghahramani, NeurIPS 2016).

    Example:

    ```python
    import keras
    from tfuq.layers import MCSimpleRNN

    layer = MCSimpleRNN(8, dropout=0.2, recurrent_dropout=0.2)
    model = keras.Sequential([keras.Input((10, 4)), layer, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.layers.LSTMVariational`, `tfuq.convert.mc_dropout`.
    """
