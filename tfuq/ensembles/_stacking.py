"""Ensembles whose members are computed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Self
from tfuq._models.outputs import input_spec, sample_inputs
from tfuq._models.stacked import StackedForward
from tfuq.ensembles._checks import check_built

EXAMPLES, EXTENT = 4, 32  # of the random inputs
TOLERANCE = {"float32": 1e-5, "float64": 1e-5}  # of other compute dtypes 2e-2


class Stackable:
    """Ensembles that can be stacked."""

    def stacked(self) -> Self:
        """The same ensemble, computed as one network over stacked weights.

        Where overhead counts, as with a few examples and small layers, all members take little
        longer than one; where arithmetic does, as long as before. Dense layers, convolutions,
        batch normalization, pooling and what works on each number are stacked; layers of other
        kinds are called member by member. Predictions are the same but for rounding, which is
        looked at here, on random inputs. `predict`, `evaluate`, `predict_uncertainty`,
        `DeepEnsemble.export` and `tfuq.export.export` use it; LiteRT and ONNX files hold the
        members one after another, and `save` writes them as they are.

        Weights are read from the members in each call: training a member changes it here as well.
        Training in other processes makes new members, after which the old stack is refused.

        Returns:
            A new `DeepEnsemble` of the same members, not copies. `fit` is for the one it is of.

        Raises:
            ValueError: If members are not built, not functional or `Sequential`, not of the same
                layers, mask, or compute something between layers that has no stacked form.

        Example:

        ```python
        import keras
        import numpy as np
        from tfuq.ensembles import DeepEnsemble

        def build_model():
            layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten()]
            return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(3)])

        ensemble, x = DeepEnsemble(build_model, num_members=4), np.random.rand(5, 8, 8, 1)
        fast = ensemble.stacked()
        gap = fast.predict(x, from_logits=True) - ensemble.predict(x, from_logits=True)
        print(abs(gap).max() < 1e-6)
        ```
        """
        check_built(self._members, "be stacked")
        forward = StackedForward(self._members)
        _check_equal(forward, self._members)
        ensemble = type(self).from_models(self._members, seed=self.seed)
        ensemble.build_model = self.build_model
        ensemble._forward, ensemble._source = forward, self
        return ensemble

    @property
    def forward(self) -> Callable[..., Any] | None:
        """What computes all members at once, a function of a batch; None unless it is stacked.

        Raises:
            ValueError: If the ensemble that was stacked has other members by now.
        """
        if self._source is not None and self._source.members != self.members:
            raise ValueError(
                "The ensemble that was stacked must still have the same members; `fit` in other "
                "processes makes new ones. Call `stacked()` again. Received: a stack of members "
                "that it no longer has"
            )
        return self._forward

    def _check_not_stacked(self, what):
        if self._forward is not None:
            raise ValueError(
                f"`{what}` must be called of the ensemble that was stacked: train that one, and "
                "the stack follows its members. Received: a stacked ensemble"
            )


def _with_extents(spec):
    """A spec whose unknown axes, but for the batch, have an extent that layers can make smaller."""
    shape = [EXTENT if each is None else each for each in spec.shape[1:]]
    return tf.TensorSpec([None, *shape], spec.dtype)


def _check_equal(forward, members):
    """Raises ValueError unless both ways of computing agree, on random inputs."""
    spec = tf.nest.map_structure(_with_extents, input_spec(members[0]))
    inputs = sample_inputs(spec, EXAMPLES)
    try:
        found = tf.nest.flatten(forward(inputs))
    except (tf.errors.InvalidArgumentError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            "Members must consist of layers that can be stacked; what is computed between them "
            f"cannot be. Received: {type(error).__name__}: {error}"
        ) from error
    expected = zip(*(tf.nest.flatten(m(inputs, training=False)) for m in members), strict=True)
    for stack, parts in zip(found, expected, strict=True):
        allowed = TOLERANCE.get(members[0].compute_dtype, 2e-2)
        parts = np.stack([np.asarray(tf.cast(p, "float32")) for p in parts], axis=-2)
        stack = np.asarray(tf.cast(stack, "float32"))
        same = stack.shape == parts.shape
        gap = np.abs(stack - parts).max() if same else np.inf
        if not gap <= allowed * max(1.0, np.abs(parts).max()):
            raise ValueError(
                "Members must consist of layers that can be stacked; something between them works "
                f"along another axis in a stack. Received: outputs that differ by {gap:.2g}"
            )
