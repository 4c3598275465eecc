"""The one graph that every format holds: a batch in, a dict of all that a model says of it out."""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_choice, check_flags, check_integer
from tfuq._models.finite import finite_rows, where_known
from tfuq._models.outputs import Reading, any_batch, input_spec
from tfuq._version import __version__
from tfuq.export._decisions import MEANINGS, make_decisions
from tfuq.export._detectors import GraphScore, check_detector
from tfuq.export._files import hash_of_arrays
from tfuq.export._networks import (
    PREDICTIVES,
    Options,
    check_options,
    failing_layer,
    is_random,
    members_of,
    named,
    network,
    sample_inputs,
)
from tfuq.export._operations import of_python, unrepeatable
from tfuq.export._samples import EXACT
from tfuq.export._unrolled import without_loops
from tfuq.layers.ways import predicting
from tfuq.selective import RejectionRule


class Serving(NamedTuple):
    """What is to be written."""

    serve: object  # a `tf.function` of a batch, traced
    concrete: object  # what it was traced to
    spec: object
    members: list
    tracked: list  # models and layers
    held: list  # variables
    about: dict  # metadata

    def write(self, folder, verbose=False):
        """Writes a SavedModel."""
        archive = keras.export.ExportArchive()
        for each in self.tracked:
            archive.track(each)
        archive.add_variable_collection("held", self.held)
        archive.add_endpoint("serve", self.serve)
        # What is served is not differentiated, and some gradients cannot be written.
        plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(folder), plain, verbose)


def serving(
    model,
    rule,
    num_samples,
    ood,
    predictive,
    batch_size,
    preprocessing,
    *,
    calibration,
    conformal,
    output,
    from_logits,
    multi_label,
    seed,
    input_signature,
    is_unrolled=False,
):
    """`Serving` of the arguments of `tfuq.export.export`, or a ValueError.

    `is_unrolled` says that the format has neither loops nor random numbers: draws are constants.
    """
    check_choice("predictive", predictive, PREDICTIVES)
    check_flags(multi_label=multi_label)
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    members, several = members_of(model)
    options = Options(predictive, num_samples, output, seed, is_unrolled)
    options = check_options(members, several, options)
    if rule is not None and not isinstance(rule, RejectionRule):
        rule = RejectionRule.load(rule)
    steps = _steps_of(preprocessing)

    def prepare(inputs):
        for step in steps:
            inputs = step(inputs)
        return inputs

    spec = _input_spec(members[0], steps, input_signature, batch_size)
    held = []

    def hold(array):
        held.append(tf.Variable(array, trainable=False, name=f"held_{len(held)}"))
        return held[-1]

    inputs = sample_inputs(spec)
    inputs = _prepared(prepare, inputs) if steps else inputs
    inner = tf.nest.map_structure(lambda t: _with_batch(any_batch(t), batch_size), inputs)
    if output is None and _gives_logits(members[0], inputs):
        output, from_logits = "logits", True
        options = options._replace(output=output)
    reading = Reading(output, from_logits, multi_label)
    flags = [_is_logits(reading, member, inputs, predictive) for member in members]
    scored = None if ood is None else check_detector(ood, members, options)
    try:
        score = None if scored is None else GraphScore(ood, inputs, hold)
        with without_loops() if is_unrolled else contextlib.nullcontext():
            networks = [
                network(member, options, inner, hold, score if member is scored else None)
                for member in members
            ]
            outputs = _Outputs(networks, flags, members, several, options)
            given = (multi_label, calibration, rule, conformal)
            serve = tf.function(
                lambda inputs: _served(inputs, prepare(inputs), outputs, given, ood),
                input_signature=[spec],
                autograph=False,  # it would wrap our errors
            )
            concrete = serve.get_concrete_function()
    except Exception as error:
        _name_the_layer(error, members, inner)
        raise
    _check_operations(concrete, members, predictive)
    about = _about(members, options, ood, steps, *given[1:])
    layers = [step for step in steps if isinstance(step, keras.layers.Layer)]
    return Serving(serve, concrete, spec, members, [*members, *layers], held, about)


# --- Inputs -----------------------------------------------------------------------------------


def _steps_of(preprocessing):
    """The argument `preprocessing` as a list of layers and functions, empty for None."""
    if preprocessing is None:
        return []
    steps = preprocessing if isinstance(preprocessing, (list, tuple)) else [preprocessing]
    for step in steps:
        if not callable(step):
            raise ValueError(
                "Argument `preprocessing` must be a Keras layer, a function of tensors or a list "
                f"of these. Received: {step!r}"
            )
    return list(steps)


def _input_spec(model, steps, input_signature, batch_size):
    if input_signature is None:
        knows = steps and isinstance(getattr(steps[0], "inputs", None), list)
        input_signature = input_spec(steps[0] if knows else model)
    specs = keras.tree.map_structure(lambda spec: _with_batch(spec, batch_size), input_signature)
    if not isinstance(specs, dict):
        return specs
    # The signature then calls them by their keys.
    return {
        name: tf.TensorSpec(each.shape, each.dtype, str(name)) if hasattr(each, "shape") else each
        for name, each in specs.items()
    }


def _with_batch(spec, batch_size):
    return tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)


def _prepared(prepare, inputs):
    """Inputs as the model takes them; ValueError if the preprocessing fails."""
    try:
        return tf.nest.map_structure(tf.convert_to_tensor, tf.function(prepare)(inputs))
    except Exception as error:
        raise ValueError(
            "Argument `preprocessing` must be made of TensorFlow operations, and take the inputs "
            f"that `input_signature` says. Received: {type(error).__name__}: {error}"
        ) from error


# --- The graph --------------------------------------------------------------------------------


def _gives_logits(model, inputs):
    """Whether the outputs are a named tuple with logits, as of the layers of tfuq."""
    return "logits" in getattr(model(inputs, training=False), "_fields", ())


def _is_logits(reading, model, inputs, predictive):
    with predicting(predictive):
        return reading.is_logits(model, inputs)


class _Outputs:
    """Outputs of all networks for a batch, as one stack, and the score beside them."""

    def __init__(self, networks, flags, members, several, options):
        self.networks, self.flags = networks, flags
        self.is_logits = all(flags)
        draws = options.num_samples is not None
        self.are_stacks = [draws and is_random(member) for member in members]
        self.is_stack = several or any(self.are_stacks)

    def __call__(self, batch, multi_label):
        found, scores = [], []
        for predict, flag, is_stack in zip(self.networks, self.flags, self.are_stacks, strict=True):
            outputs, more = predict(batch)
            if flag and not self.is_logits:  # members of both kinds
                binary = multi_label or outputs.shape[-1] == 1
                outputs = tf.sigmoid(outputs) if binary else tf.nn.softmax(outputs)
            found.append(outputs if is_stack or not self.is_stack else outputs[None])
            scores += more
        return tf.concat(found, 0) if self.is_stack else found[0], scores


def _served(inputs, batch, outputs, given, ood):
    """The dict that `serve` returns.

    Of inputs that are not finite nothing is known, even if the preparation or the network hides it.
    """
    values, scores = outputs(batch, given[0])
    known = finite_rows([inputs] if batch is inputs else [inputs, batch])
    values = where_known(known, values, axis=int(outputs.is_stack))
    shape = values.shape[1:] if outputs.is_stack else values.shape
    decide = make_decisions(shape, outputs.is_stack, outputs.is_logits, *given)
    with tf.name_scope(EXACT):
        found = decide(values, outputs.is_stack)
    if scores:
        found["ood_score"] = where_known(known, scores[0], otherwise=np.inf)
    elif ood is not None:  # it scores the samples
        information = found["mutual_information"]
        score = tf.reshape(information, (tf.shape(information)[0],))
        found["ood_score"] = where_known(known, score, otherwise=np.inf)
    return {name: tf.identity(found[name], name=name) for name in MEANINGS if name in found}


# --- What cannot be exported ------------------------------------------------------------------


def _name_the_layer(error, members, spec):
    """Raises a ValueError that names the layer, if one of the models cannot be traced."""
    layer = failing_layer(members, spec)
    if layer is not None:
        raise ValueError(
            "Argument `model` must be made of layers that TensorFlow can trace. Received: layer "
            f"{layer.name!r} of class {type(layer).__name__}, whose call fails with "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_operations(concrete, members, predictive):
    python = of_python(concrete)
    if python:
        raise ValueError(
            "Argument `model` must not call Python, which a file cannot hold: use TensorFlow "
            f"operations. Received: a py_function in {named(python[0], members)}"
        )
    changing = [] if predictive == "fresh_samples" else unrepeatable(concrete)
    if changing:
        raise ValueError(
            f"Argument `predictive` must be 'fresh_samples' for a model whose calls differ. "
            f"Received: predictive={predictive!r} with {named(changing[0], members)}"
        )


# --- Metadata ---------------------------------------------------------------------------------


def _about(members, options, ood, steps, calibration, rule, conformal):
    """What is known before anything is written."""
    fitted = {"rule": rule, "conformal": conformal}
    counts = {name: each.fitted_to.get("examples") for name, each in fitted.items() if each}
    detector = None
    if ood is not None:
        threshold = None if ood.threshold is None else float(ood.threshold.value)
        detector = {"name": type(ood).__name__, "config": ood.get_config(), "threshold": threshold}
    arrays = [keras.ops.convert_to_numpy(v) for m in members for v in m.variables]
    return {
        "versions": {
            "tfuq": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
        },
        "predictive": options.predictive,
        "num_samples": options.num_samples,
        "members": len(members),
        "seed": options.seed,
        "models": [{"name": m.name, "class": type(m).__name__} for m in members],
        "preprocessing": str(_names(steps)) if steps else None,
        "calibration": _fitted(calibration),
        "rule": None if rule is None else {**_fitted(rule), "says": rule.describe()},
        "conformal": _fitted(conformal),
        "calibration_examples": counts,
        "ood": detector,
        "weights_sha256": hash_of_arrays(arrays),
    }


def _fitted(fitted):
    if fitted is None:
        return None
    return {"name": type(fitted).__name__, "config": fitted.get_config()}


def _names(steps):
    return [getattr(step, "name", getattr(step, "__name__", type(step).__name__)) for step in steps]


def written_signature(graph):
    """Metadata of a `tfuq.export._frozen.Frozen`: its inputs and outputs."""
    function = graph.function()
    inputs = {name: _described(spec) for name, spec in sorted(graph.inputs.items())}
    outputs = function.structured_outputs
    documented = {
        name: {**_described(outputs[name]), "meaning": MEANINGS[name]} for name in sorted(outputs)
    }
    return {"signature": {"inputs": inputs, "outputs": list(documented)}, "outputs": documented}


def _described(spec):
    shape = None if spec.shape.rank is None else spec.shape.as_list()
    return {"dtype": spec.dtype.name, "shape": shape}
