"""A model's predictions and the labels they belong to, in one pass over any data Keras takes."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_kind
from tfuq._models.batches import batches
from tfuq._models.finite import known_only
from tfuq._models.meaning import reading_of
from tfuq._models.outputs import select_output
from tfuq._models.taken import check_shapes, inputs_of, sizes_fit, spec_of
from tfuq._models.torch_data import keras_data

_INSIDE = "inside"  # whether an example lies in the range that is declared of the model
_FITS = "fits"  # whether it has the sizes that the model takes


def _data_error(name, expected, received):
    return ValueError(f"Argument `{name}` must {expected}. Received: {received}")


def _check_arrays(name, data):
    """`(x, y)` or `(x, y, sample_weight)`: as many examples in each array, and at least one."""
    if len(data) not in (2, 3):
        raise _data_error(name, "be (x, y) or (x, y, sample_weight)", f"a tuple of {len(data)}")
    arrays = keras.tree.flatten(tuple(part for part in data if part is not None))
    for array in arrays:
        check_kind(name, array)
    shapes = [tuple(getattr(array, "shape", ())) for array in arrays]
    if not all(shapes) or data[1] is None:
        raise _data_error(name, "hold arrays, labels among them", f"shapes {shapes}")
    lengths = [shape[0] for shape in shapes]
    if len(set(lengths)) > 1 or lengths[0] == 0:
        raise _data_error(name, "hold arrays of one length of at least 1", f"lengths {lengths}")


def _check_dataset(name, dataset):
    """A `tf.data.Dataset` of batches with labels, known to end and not known to be empty."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise _data_error(name, "give (x, y) or (x, y, sample_weight)", f"elements of {spec}")
    if any(leaf.shape.rank == 0 for leaf in keras.tree.flatten(spec)):
        raise _data_error(
            name, "be batched: call `.batch(n)` on the dataset", f"elements of {spec}"
        )
    _check_length(name, int(dataset.cardinality()))


def _check_length(name, batches):
    """`batches` as PyDataset and tf.data count them: None or -1 is infinite, -2 unknown."""
    if batches in (None, -1):
        raise _data_error(name, "be finite: it is read to its end each time", "an infinite dataset")
    if batches == 0:
        raise _data_error(name, "hold at least one batch", "an empty dataset")


def check_validation_data(data, name="validation_data"):
    """Raises ValueError unless `data`, the argument `name`, are labelled and known to end.

    They are returned as Keras takes them without PyTorch.
    """
    data = keras_data(data)
    if isinstance(data, tf.data.Dataset):
        _check_dataset(name, data)
    elif isinstance(data, keras.utils.PyDataset):
        _check_length(name, data.num_batches)
    elif isinstance(data, (tuple, list)):
        _check_arrays(name, data)
    else:
        kinds = "be (x, y[, sample_weight]) arrays, a tf.data.Dataset or a PyDataset"
        raise _data_error(name, kinds, f"{type(data).__name__}")
    return data


class Labelled(keras.Model):
    """A model that predicts, and hands each batch's labels and weights through beside it.

    `predict` of this wrapper is one pass over any data that Keras takes, with the model's own
    compilation and distribution; predictions and labels cannot fall out of step, whatever shuffles.
    (`predict_on_batch` would not do: with two replicas it returns each prediction twice.)
    """

    def __init__(self, model, output):
        super().__init__(name="labelled")
        self.predictor = model
        self.choice = output
        self.data_name = "data"  # what the caller calls what it predicts
        self.run_eagerly = model.run_eagerly
        self.jit_compile = model.jit_compile
        self.steps_per_execution = model.steps_per_execution

    def predict_step(self, data):
        x, y_true, weight = keras.utils.unpack_x_y_sample_weight(data)
        specs = spec_of(self.predictor)
        check_shapes(specs, x, self.data_name)
        fits = sizes_fit(specs, x)
        y_pred = select_output(self.predictor.predict_step(data), self.choice, self.predictor)
        y_pred = known_only(x, keras.ops.cast(y_pred, "float32"))
        takes = inputs_of(self.predictor)
        inside = None if takes is None else takes.rows_inside(x)
        if fits is not None:  # one for each example, which may be on one of several devices
            fits = tf.fill(tf.shape(tf.nest.flatten(x)[0])[:1], fits)
        found = {"y_pred": y_pred, "y_true": y_true, "weight": weight}
        found |= {_INSIDE: inside, _FITS: fits}
        return {name: value for name, value in found.items() if value is not None}


class _NotEmpty(keras.callbacks.Callback):
    """Stops `predict` with a clear error when the data turn out to be empty."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def on_predict_begin(self, logs=None):
        self.seen = False

    def on_predict_batch_end(self, batch, logs=None):
        self.seen = True

    def on_predict_end(self, logs=None):
        if not self.seen:
            raise _data_error(self.name, "hold at least one batch", "an empty dataset")


def _split(data):
    """What `predict` reads of `data`, and the labels and weights that stand beside it already."""
    if not isinstance(data, (tuple, list)):
        return data, {}
    x, y_true, weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
    return x, {"y_true": y_true} if weight is None else {"y_true": y_true, "weight": weight}


def predict_with_labels(labelled, data, *, batch_size=None, verbose=0, name="validation_data"):
    """One pass over `data`: a dict of `y_pred`, `y_true` and, if there is one, `weight`.

    `name` is what the caller calls `data`.
    """
    x, given = _split(data)
    with warnings.catch_warnings():
        # Keras says this of any dataset whose length it does not know, read to its end as asked.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        labelled.data_name = name
        found = labelled.predict(x, batch_size, verbose, callbacks=[_NotEmpty(name)]) | given
    if not np.all(found.pop(_FITS, True)):
        shapes = tf.nest.map_structure(lambda spec: tuple(spec.shape), spec_of(labelled.predictor))
        expected = f"have the shape that the model takes, {shapes}"
        raise _data_error(name, expected, "batches of another size")
    if not np.all(found.pop(_INSIDE, True)):
        low, high = inputs_of(labelled.predictor).value_range
        expected = f"hold images from {low:g} to {high:g}, as declared of the model"
        raise _data_error(name, expected, "images outside of that range: scale them")
    if "y_true" not in found:
        raise _data_error(name, "give (x, y) or (x, y, sample_weight)", "batches without labels")
    choose = labelled.choice
    return {k: select_output(v, choose) if keras.tree.is_nested(v) else v for k, v in found.items()}


class Predicted(NamedTuple):
    """What a model predicts for labelled data, in one pass."""

    probs: np.ndarray  # probabilities, or logits
    labels: np.ndarray
    weight: np.ndarray | None
    from_logits: bool
    multi_label: bool

    def flags(self):
        """What the predictions are declared to be, as arguments."""
        return {"from_logits": self.from_logits, "multi_label": self.multi_label}


def predicted(
    model, data, output=None, batch_size=None, verbose=0, *, takes_weights=False, given=None
):
    """`Predicted` of `(x, y)` arrays, a `tf.data.Dataset` or a `PyDataset`: the argument `data`."""
    data = check_validation_data(data, "data")
    found = predict_with_labels(
        Labelled(model, output), data, batch_size=batch_size, verbose=verbose, name="data"
    )
    weight = found.get("weight")
    if not takes_weights:
        _check_no_weights(weight)
    reading = _reading_of_data(model, data, output, given)
    reading.checked(found["y_pred"])
    return Predicted(found["y_pred"], found["y_true"], weight, *reading[1:])


def predicted_beside(model, data, beside, output=None, batch_size=32, verbose=0, *, given=None):
    """`Predicted`, and what `beside(inputs, count)` gives `(n,)` for the same batches.

    One pass, so that neither falls out of step where data are shuffled.
    """
    data = check_validation_data(data, "data")
    labelled = Labelled(model, output)
    step = tf.function(labelled.predict_step, reduce_retracing=True)
    step = labelled.predict_step if model.run_eagerly else step
    found = []
    for batch, label, weight in batches(data, batch_size, verbose, "data", model=model):
        if label is None:
            raise _data_error("data", "give (x, y)", "batches without labels")
        _check_no_weights(weight)
        if keras.tree.is_nested(label):
            label = select_output(label, output)
        probs = np.asarray(step((batch,))["y_pred"])
        found.append((probs, np.asarray(label), beside(batch, len(probs))))
    probs, labels, more = (np.concatenate(column) for column in zip(*found, strict=True))
    reading = _reading_of_data(model, data, output, given)
    reading.checked(probs)
    return Predicted(probs, labels, None, *reading[1:]), more


def _check_no_weights(weight):
    if weight is not None:
        raise ValueError(
            "Argument `data` must have no sample weights: each example counts once. "
            f"Received: weights of shape {np.shape(weight)}"
        )


def _reading_of_data(model, data, output, given):
    flags = [(given or {}).get(name) for name in ("from_logits", "multi_label")]
    return reading_of(output, *flags).known(model, first_rows(data))


def first_rows(data):
    """Inputs of some examples, for a subclassed model, which shows its layers when it is called."""
    if isinstance(data, (tuple, list)):
        return tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:1]), data[0])
    first = data[0] if isinstance(data, keras.utils.PyDataset) else next(iter(data))
    return keras.tree.map_structure(tf.convert_to_tensor, first[0])
