"""Calibration base class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    check_choice,
    check_flags,
    check_integer,
    is_finite,
    shown,
    to_float64,
)
from tfuq._models.predicting import predicted
from tfuq._predictions.class_names import checked_names, numbered
from tfuq._predictions.examples import BLOCK, in_blocks
from tfuq._predictions.labelled import is_stack, labelled_predictions
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.probabilities import check_probabilities, is_binary, probabilities
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.layers import PostProcessing
from tfuq.predictive import declared
from tfuq.selective._calibrated_arrays import hashes_of_raw, tagged
from tfuq.selective._row_hashes import (
    STEP,
    is_sketch,
    labelled_hashes,
    remember,
    sketch,
    sum_of_hashes,
    text_of_sum,
)
from tfuq.selective._scaling import Entries, bounded, to_logits
from tfuq.selective._void import known_entries, void_weight
from tfuq.selective.base import Fitted, plain, with_outputs


class Calibration(Fitted):
    """Base of what maps predictions to calibrated ones.

    A child says on what it works (`_on_logits`), its parameters (`_parameters`, all None until it
    is fitted), `_estimate(data)` and `_scale(values)`.
    """

    _on_logits = True
    _parameters = ()

    def __init__(
        self,
        rank: int | None,
        from_logits: bool,
        multi_label: bool,
        average: str,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        if rank is not None:
            check_integer("rank", rank, 1)
        check_flags(from_logits=from_logits, multi_label=multi_label)
        check_choice("average", average, ("before", "after"))
        self.rank = rank
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.average = average
        self.fitted_to = checked_fitted_to(fitted_to)
        self._remember()

    def get_config(self) -> dict[str, Any]:
        names = (*self._parameters, "rank", "from_logits", "multi_label", "average")
        names += () if self.fitted_to is None else ("fitted_to",)
        return plain({name: getattr(self, name) for name in names})

    def __eq__(self, other):
        if type(self) is not type(other):
            return False
        mine, others = ({**one.get_config(), "fitted_to": None} for one in (self, other))
        return mine == others  # in all that they do

    __hash__ = None

    @property
    def gives_logits(self) -> bool:
        """Whether `transform` gives logits, and not probabilities."""
        return self.from_logits and self._on_logits

    @property
    def is_fitted(self) -> bool:
        """Whether it has its parameters."""
        return all(getattr(self, name) is not None for name in self._parameters)

    def _remember(self):
        """Keeps in mind which rows, calibrated, can show nothing any more."""
        if self.fitted_to is not None:
            known = self.fitted_to.get("sketches", {}).get("calibrated")
            remember(self.fitted_to["rows"], type(self).__name__, known)

    def _estimate(self, data):
        """Sets the parameters."""
        raise NotImplementedError

    def _scale(self, values):
        """Calibrated `values`, a tensor `(samples, n, ..., classes)` of logits or probabilities."""
        raise NotImplementedError

    def _num_columns(self):
        """How long the last axis must be; None for any."""
        return None

    # --- Fitting ------------------------------------------------------------------------------

    def fit(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        class_names: Sequence[str] | None = None,
        ignore_class: int | str | None = None,
    ) -> Self:
        """Fits to labelled predictions, and forgets what was fitted before.

        A rule or a conformal predictor needs other rows than these, or its promise does not hold:
        fitted to the calibrated ones, or to some of them, it raises. Its own argument `calibration`
        splits the rows.

        Args:
            probs: Predictions for data that the model has not been trained on, logits with
                `from_logits=True`: `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`; multi-label
                `(n, ..., labels)`; or a stack of them, `(samples, n, ..., classes)`.
            labels: Labels, sparse `(n, ...)` or one-hot; or names, of `class_names`.
            sample_weight: Weights with one or more of the leading axes of the labels.
            class_names: Names of the classes, in the order of the last axis.
            ignore_class: Label of what is left out, or None.

        Returns:
            This object.

        Raises:
            ValueError: If arrays are empty or do not fit together, hold NaN, no probabilities or
                labels that are no class.

        Warns:
            UserWarning: If no label is of a class that has parameters of its own.
        """
        asked = probs, labels, sample_weight, ignore_class, self.multi_label
        sample_weight = void_weight(*asked)
        if ignore_class is not None:
            labels = known_entries(probs, labels, None, ignore_class, self.multi_label)[0]
        labels = numbered(labels, checked_names(class_names))
        data, rank, used = self._read(probs, labels, sample_weight)
        self._estimate(data)
        self.rank, labels = rank, data.labels
        del data  # as large as the predictions
        self.fitted_to = self._told_rows(probs, labels, used, rank)
        self._remember()
        return self

    def _told_rows(self, probs, labels, used, rank):
        """What is told of the rows that are `used`, `fitted_to`; they are calibrated in blocks."""
        probs, axis = np.asarray(probs), np.ndim(probs) - rank  # 1 for a stack
        count, seen = probs.shape[axis], 0
        entries, size = len(used) // count, max(1, BLOCK * probs.shape[axis] // probs.size)
        total, calibrated, raw = 0, [], []
        for start in range(0, count, size):
            part = probs[:, start : start + size] if axis else probs[start : start + size]
            values = ops.convert_to_tensor(to_float64("probs", part, copy=False), "float32")
            kept = used[start * entries : (start + size) * entries]
            found = ops.convert_to_numpy(self.probabilities(values)).reshape(len(kept), -1)[kept]
            own = labels[seen : seen + len(found)]
            total += sum_of_hashes(labelled_hashes(found, own, STEP))
            calibrated.append(labelled_hashes(found, own))
            is_used = kept.reshape(values.shape[axis], -1).any(axis=1)
            raw.append(hashes_of_raw(values, axis == 1)[is_used])
            seen += len(found)
        sketches = {"calibrated": calibrated, "raw": raw}
        return {
            "examples": count,
            "rows": text_of_sum(seen, total),
            "sketches": {name: sketch(np.concatenate(each)) for name, each in sketches.items()},
        }

    @classmethod
    def fit_model(
        cls,
        model: ModelLike,
        data: Data,
        *,
        output: Output | None = None,
        batch_size: int = 32,
        verbose: int = 0,
        **options: Any,
    ) -> Self:
        """A new object, fitted to what a model predicts for `data`, in one pass over it.

        Args:
            model: A Keras model.
            data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` of such batches,
                or a `PyDataset`; not what the model was trained on.
            output: Which output, if there are several: an index, a key or a function.
            batch_size: Examples in a batch of arrays.
            verbose: As in Keras' `predict`.
            **options: Arguments of the constructor. `from_logits` and `multi_label` are by default
                what the last layer declares, else what the compiled loss says.

        Returns:
            The fitted object.

        Raises:
            ValueError: As `fit`; if the data are of another kind or have no labels.
        """
        found = predicted(
            model, data, output, batch_size, verbose, takes_weights=True, given=options
        )
        fresh = cls(**{**found.flags(), **options})
        names = declared(model).class_names
        return fresh.fit(found.probs, found.labels, found.weight, class_names=names)

    def _read(self, probs, labels, sample_weight):
        """`Entries`, how many axes single predictions have, and which entries have a weight."""
        flags = {"from_logits": self.from_logits, "multi_label": self.multi_label}
        shape = np.shape(probs)
        if np.prod(shape) > BLOCK and not is_stack(shape, np.shape(labels), self.multi_label):
            data = self._read_blocks(probs, labels, sample_weight, flags)
            return data.used(), len(shape), data.weight > 0
        labelled = labelled_predictions(probs, labels, sample_weight, **flags)
        values, stacked = to_float64("probs", probs), labelled.stack is not None
        rank, binary = values.ndim - stacked, labelled.examples.columns is not None
        # Heights are looked up in float32 later, so knots must be the same numbers.
        dtype = "float64" if self._on_logits else "float32"
        tensor = ops.convert_to_tensor(values, dtype)
        values = ops.convert_to_numpy(self._samples(tensor, stacked))
        shape = (len(values), -1) if binary else (len(values), -1, values.shape[-1])
        labels, weight = (np.asarray(part) for part in labelled.examples[1:3])
        num_columns = labelled.examples.columns or 1
        column = np.arange(len(labels)) % num_columns
        data = Entries(values.reshape(shape), labels, weight, column, num_columns, binary)
        return data.used(), rank, weight > 0

    def _read_blocks(self, probs, labels, sample_weight, flags):
        """`Entries` of single predictions that are many, read in blocks."""
        names = {"names": ("labels", "probs", "sample_weight")}
        parts, filled = None, 0
        for examples in in_blocks(labels, probs, sample_weight, **flags, **names):
            columns = examples.columns
            scores = examples.scores if columns is None else examples.scores[:, 1]
            tensor = ops.convert_to_tensor(scores, "float64" if self._on_logits else "float32")
            values = self._samples(tensor, False) if columns is None else self._of_one(tensor)
            found = (ops.convert_to_numpy(values)[0], examples.labels, examples.weight)
            if parts is None:
                count = np.size(probs) // (found[0].shape[1] if found[0].ndim > 1 else 1)
                parts = [np.empty((count, *np.shape(p)[1:]), np.asarray(p).dtype) for p in found]
            end = filled + len(found[0])
            for whole, part in zip(parts, found, strict=True):
                whole[filled:end] = part
            filled = end
        values, labels, weight = parts
        columns = columns or 1
        column = np.zeros(1, "int8") if columns == 1 else np.arange(len(labels)) % columns
        column = np.broadcast_to(column, labels.shape)
        return Entries(values[None], labels, weight, column, columns, examples.columns is not None)

    def _of_one(self, values):
        """What is scaled of binary predictions or logits `(n,)`, `(1, n)`."""
        return self._samples(values[:, None], False)[..., 0]

    # --- Use ----------------------------------------------------------------------------------

    def transform(self, probs: ArrayLike | Uncertainty | RegressionUncertainty) -> np.ndarray:
        """Calibrated predictions, arrays for arrays and tensors for tensors, in float32.

        Args:
            probs: Predictions, or a stack of them, of the kind that was fitted to.

        Returns:
            Predictions `(n, ..., classes)`; those of a stack are one average.

        Raises:
            ValueError: If nothing has been fitted, or shapes do not fit; of arrays, if they hold
                NaN or no probabilities.
        """
        if not self.is_fitted:
            raise ValueError(
                f"{type(self).__name__} must be fitted first: call `fit` or `fit_model`. Received: "
                f"{shown(self)}"
            )
        is_array = not ops.is_tensor(probs)
        probs = to_float64("probs", probs) if is_array else probs
        is_stack = self._is_stack(probs.shape)
        if is_array:
            self._check_values(probs)
        probs = ops.cast(probs, "float32")
        scaled = self._scale(self._samples(probs, is_stack))
        found = self._joined(scaled, is_stack and self.average == "after")
        if not is_array:
            return found
        found, known = ops.convert_to_numpy(found), (self.fitted_to or {}).get("sketches")
        if not known:
            return found
        return tagged(found, hashes_of_raw(probs, is_stack), (type(self).__name__, known["raw"]))

    __call__ = transform

    def probabilities(self, probs: ArrayLike | Uncertainty | RegressionUncertainty) -> Any:
        """As `transform`, but probabilities of logits as well."""
        found = self.transform(probs)
        if not (self.from_logits and self._on_logits):
            return found
        binary = self._is_binary(len(found.shape), found.shape[-1])
        values = probabilities(ops.convert_to_tensor(found), True, binary)
        return values if ops.is_tensor(found) else ops.convert_to_numpy(values)

    def append_to(self, model: keras.Model, output: Output | None = None) -> keras.Model:
        """A functional model of the same inputs whose output is calibrated; weights are shared.

        Args:
            model: A functional or `Sequential` model, or a subclassed one called in such.
            output: Which of several outputs: an index, a key or a function.
        """
        return with_outputs(model, PostProcessing(self, name="calibration"), output)

    def _check_values(self, probs):
        """Raises ValueError unless an array holds what was fitted to."""
        if np.any(np.isnan(probs)):
            raise ValueError(
                f"Argument `probs` must hold no NaN. Received: {np.isnan(probs).sum()} such"
            )
        if not self.from_logits:
            rows = probs[..., None] if probs.ndim < 2 else probs
            binary = is_binary(rows.shape, self.multi_label)
            check_probabilities("probs", rows, binary, ("from_logits",))
        elif np.any(probs == np.inf):
            raise ValueError(
                "Argument `probs` must hold finite logits with from_logits=True. "
                f"Received: {(probs == np.inf).sum()} of inf"
            )

    def _is_stack(self, shape):
        """Whether predictions of `shape` are a stack; ValueError if they are neither."""
        axes, width = len(shape), shape[-1] if len(shape) > 1 else 1
        known = (axes,) if self.rank is None else (self.rank, self.rank + 1)
        if self.rank == 1:  # what was (n,) may come as (n, 1), and as a stack of these
            known = (1, 2, 3) if width == 1 else (1,)
        columns = self._num_columns()
        if axes not in known or axes == 0 or columns not in (None, width):
            last = "" if columns is None else f", the last of length {columns}"
            raise ValueError(
                f"Argument `probs` must have {self.rank or 'one or more'} axes{last}; one more if "
                f"they are a stack of samples. Received: probs of shape {tuple(shape)}"
            )
        return self.rank is not None and axes > max(self.rank, 2)

    def _is_binary(self, axes, width):
        return axes == 1 or is_binary((width,), self.multi_label)

    def _samples(self, probs, is_stack):
        """What is scaled, `(samples, n, ..., classes)`; one sample if averages are."""
        binary = self._is_binary(len(probs.shape), probs.shape[-1])
        stack = probs if is_stack else probs[None]
        pool = is_stack and self.average == "before"
        if self._on_logits and not pool:
            return bounded(stack) if self.from_logits else to_logits(stack, binary)
        stack = probabilities(stack, self.from_logits, binary)
        stack = ops.mean(stack, axis=0, keepdims=True) if pool else stack
        return to_logits(stack, binary) if self._on_logits else stack

    def _joined(self, scaled, is_stack):
        """The answer: one of the kind of the inputs, of scaled logits `(samples, n, ...)`."""
        binary = self._is_binary(len(scaled.shape) - 1, scaled.shape[-1])
        if self.from_logits and not is_stack:
            return scaled[0]
        probs = ops.mean(probabilities(scaled, True, binary), axis=0)
        return to_logits(probs, binary) if self.from_logits else probs


def checked_fitted_to(fitted_to):
    """The argument `fitted_to` of a calibration, None or what `fit` has written."""
    if fitted_to is None:
        return None
    fine = isinstance(fitted_to, dict) and isinstance(fitted_to.get("rows"), str)
    known = fitted_to.get("sketches", {}) if fine else {}
    fine = fine and isinstance(known, dict) and set(known) in (set(), {"calibrated", "raw"})
    fine = fine and all(is_sketch(found) for found in known.values())
    if not fine or not is_finite(fitted_to.get("examples")):
        raise ValueError(
            "Argument `fitted_to` must be None or what `fit` reports, a dict of `examples` and "
            f"`rows`. Received: fitted_to={str(fitted_to)[:80]}"
        )
    return dict(fitted_to)
