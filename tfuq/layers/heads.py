"""Protocol of heads: what an output means, the logits of the mean network, masks and shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from tfuq._arguments import Tensor, check_flags, shown
from tfuq._models.meaning import said_by_loss
from tfuq.layers._training import calling_model


class OutputMeaning(NamedTuple):
    """What the numbers of a head's output are, as the head declares it.

    Args:
        kind: `"logits"`, `"log_probabilities"`, `"probabilities"`, `"variance"`, or of a number
            `"parameters"` or `"mean"`.
        multi_label: Whether each entry of the last axis is a binary prediction of its own, to which
            a sigmoid belongs. Otherwise the entries are classes that exclude one another, to which
            a soft-max belongs.
        normalized: Whether the log-sum-exp of the logits is 0 by construction. Energies and other
            scores of unnormalized logits are defined on `mean_logits` instead.
        family: Of what says a number: the `Family` of its parameters.
    """

    kind: str
    multi_label: bool
    normalized: bool = False
    family: object = None

    @property
    def from_logits(self):
        """True for logits, False for probabilities, None for what is neither."""
        return {"logits": True, "probabilities": False}.get(self.kind)


class Head:
    """A layer that stands in for the last `Dense` of a classifier; before `Layer` in the bases.

    Any layer with `output_meaning(field)` and `mean_logits(inputs)` follows the protocol, and may
    have `linear_map()`. A subclass of this one has the attribute `logits_only` and the class
    attribute `output_type`, a named tuple whose first field is `logits`; it says how wide each
    field is, `_widths()`, and in which dtype it answers, `_sampling_dtype()`.
    """

    output_type = None

    def output_meaning(self, field: str = "logits") -> OutputMeaning:
        """What the numbers of one field of the output are: never guessed, always declared.

        Args:
            field: Name of the field, for `logits_only=False`. With `logits_only=True` the output
                is the field `"logits"`.

        Returns:
            `OutputMeaning`.

        Raises:
            ValueError: If the output has no such field.
        """
        meanings = self._meanings()
        if field not in meanings:
            raise ValueError(
                f"Argument `field` must be one of {sorted(meanings)}. Received: field={field!r}"
            )
        return meanings[field]

    def _check_switches(self, *names):
        check_flags(**{name: getattr(self, name) for name in names})

    def _meanings(self):
        """`OutputMeaning` of each field."""
        raise NotImplementedError

    def mean_logits(self, inputs: Tensor) -> Tensor:
        """Unnormalized logits of the mean network, without noise and without an average over it.

        They have the link of the output (soft-max or sigmoid), and a log-sum-exp that says how
        much the network has seen of the class, as the logits of a `Dense` do. Scores such as the
        energy take them.

        Args:
            inputs: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            Tensor `(batch, ..., outputs)`, float32 also under a mixed precision policy.
        """
        raise NotImplementedError

    def linear_map(self) -> Any:
        """Kernel and bias with `mean_logits(inputs) = inputs @ kernel + bias`.

        Returns:
            Tensors `(features, outputs)` and `(outputs,)` or None; or None alone where the map is
            not linear.
        """
        return None

    def _check_loss(self, training):
        """Raises ValueError where the model that is trained has a loss that misreads this layer.

        It is asked in each call, so that the first step of `fit` tells, not a useless network.
        """
        model = calling_model()
        loss = getattr(model, "loss", None)
        if not training or loss is None or not is_last(model, self):
            return
        if _is_tuple(model, self) and not keras.tree.is_nested(loss):
            raise ValueError(
                f"Argument `logits_only` of {self.name!r} must be True for a loss of one output: "
                f"the layer returns a tuple. Received: logits_only=False with loss={shown(loss)}"
            )
        said = said_by_loss(model)
        if self.logits_only and said.is_logits is False:
            raise ValueError(
                f"Argument `from_logits` of the loss must be True: {self.name!r} returns logits, "
                f"and {said.says} takes probabilities. Received: loss={shown(loss)}"
            )

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor) -> Any:
        if previous_mask is None or self.logits_only:
            return previous_mask
        return self.output_type(*[previous_mask] * len(self.output_type._fields))

    def compute_output_shape(self, input_shape: Any) -> Any:
        shapes = [(*input_shape[:-1], width) for width in self._widths()]
        return shapes[0] if self.logits_only else self.output_type(*shapes)

    def compute_output_spec(
        self,
        inputs: Tensor,
        training: bool = False,
        mask: Tensor | None = None,
        seed: int | None = None,
    ) -> Any:
        dtype = self._sampling_dtype()
        specs = [
            keras.KerasTensor((*inputs.shape[:-1], width), dtype=dtype) for width in self._widths()
        ]
        return specs[0] if self.logits_only else self.output_type(*specs)


def _is_tuple(model, layer):
    """Whether the model returns the whole tuple that `layer` makes, not its logits alone."""
    if layer.logits_only:
        return False
    is_sequential = isinstance(model, keras.Sequential)
    return is_sequential or len(keras.tree.flatten(model.output)) > 1


def is_last(model, layer):
    """Whether all that a `Sequential` or functional model returns is what `layer` makes."""
    if isinstance(model, keras.Sequential):
        return model.layers[-1] is layer
    outputs = keras.tree.flatten(getattr(model, "output", None))
    return all(getattr(o, "_keras_history", [None])[0] is layer for o in outputs)
