"""Calibration by a curve for each class against the rest: base class."""

import warnings

import numpy as np
from keras import ops

from tfuq._arguments import shown
from tfuq.selective._calibration import Calibration
from tfuq.selective.base import numbers

UNCALIBRATED = (
    "its probabilities are not calibrated (with several classes they change only as the others do)."
)


class OneAgainstRest(Calibration):
    """Maps the probability of each class by a curve of its own, and brings their sum back to 1.

    A binary prediction, and each label of a multi-label one, has one curve. A child says what is
    fitted to one class (`_curve`), the curve of a class without a label (`_unseen`; None if it is
    fitted as any other), both in the order of `_parameters`, and how curves map values (`_map`).
    """

    _on_logits = False
    _unseen = None

    def _curve(self, values, targets, weight):
        """The parameters of one curve: probabilities, 0/1 targets and weights, all `(n,)`."""
        raise NotImplementedError

    def _map(self, rows):
        """Calibrated `rows` `(n, curves)`, a tensor of probabilities in float32."""
        raise NotImplementedError

    def _estimate(self, data):
        if self._unseen is not None:
            warn_of_unseen(data)
        curves = []
        for part in data.columns():
            values = part.values[..., None] if data.is_binary else part.values
            weight = np.tile(part.weight, len(values))
            labels, seen = np.tile(part.labels, len(values)), part.seen()
            for k in range(values.shape[-1]):
                known = seen.all() if data.is_binary else seen[k] and seen.sum() > 1
                if known or self._unseen is None:
                    targets = labels == (1 if data.is_binary else k)
                    curves.append(self._curve(values[..., k].ravel(), targets, weight))
                else:
                    curves.append(self._unseen)
        for name, parts in zip(self._parameters, zip(*curves, strict=True), strict=True):
            setattr(self, name, [np.asarray(part).tolist() for part in parts])

    def _num_columns(self):
        return len(getattr(self, self._parameters[0]))

    def _scale(self, values):
        count = self._num_columns()
        found = self._map(ops.reshape(values, (-1, count)))
        if not self.multi_label and count > 1:
            total = ops.sum(found, axis=-1, keepdims=True)
            shared = ops.where(total > 0, total, 1)
            found = ops.where(ops.equal(total, 0), 1 / count, found / shared)
        return ops.reshape(found, ops.shape(values))

    def _joined(self, scaled, is_stack):
        return ops.mean(scaled, axis=0)


def warn_of_unseen(data, consequence=UNCALIBRATED):
    """Warns of classes without a label, and says what comes of that, of how many `examples`."""
    for column, part in enumerate(data.columns()):
        unseen = np.flatnonzero(~part.seen())
        if unseen.size:
            where = f" of label {column}" if data.num_columns > 1 else ""
            said = consequence.format(examples=len(part.labels))
            warnings.warn(
                f"The labels{where} are without class {unseen.tolist()}: {said}", stacklevel=5
            )


def numbers_in_a_row(name, value):
    """The argument `name` as an array `(n,)` of one or more finite numbers."""
    found = numbers(name, value)
    if found.ndim != 1 or found.size == 0 or not np.all(np.isfinite(found)):
        raise ValueError(
            f"Argument `{name}` must be a list of finite numbers. Received: {name}={shown(value)}"
        )
    return found


def all_or_none(**arguments):
    """Raises ValueError unless all `arguments` are given or none; whether they are."""
    given = [value is not None for value in arguments.values()]
    if any(given) and not all(given):
        first, *others = arguments
        said = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
        raise ValueError(
            f"Argument `{first}` must be given with {', '.join(f'`{o}`' for o in others)}, or none "
            f"of them. Received: {said}"
        )
    return any(given)
