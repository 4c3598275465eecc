"""Export as one SavedModel, which TensorFlow alone loads."""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfuq._export_files import (
    check_path,
    folder_written_whole,
    hash_of_arrays,
    write_metadata,
)
from tfuq._export_graphs import of_python, unrepeatable
from tfuq._export_networks import (
    PREDICTIVES,
    Options,
    check_options,
    failing_layer,
    is_random,
    members_of,
    named,
    network,
    predicting,
    sample_inputs,
)
from tfuq._export_ood import GraphScore, check_detector
from tfuq._export_outputs import MEANINGS, make_decisions
from tfuq._keras import check_choice, check_integer
from tfuq._outputs import Reading, any_batch, input_spec
from tfuq._predictions import check_flags
from tfuq._version import __version__
from tfuq.selective import RejectionRule

__all__ = ["export"]


def export(
    model,
    path,
    rule=None,
    num_samples=None,
    ood=None,
    predictive="fixed_samples",
    batch_size=None,
    preprocessing=None,
    *,
    calibration=None,
    conformal=None,
    output=None,
    from_logits=None,
    multi_label=False,
    seed=0,
    input_signature=None,
    overwrite=False,
    verbose=False,
):
    """Writes a model, its uncertainty and its decision as one SavedModel.

    TensorFlow alone loads it, `tf.saved_model.load(path)`: neither tfuq nor Keras has to be there.
    Its `serve`, and the signature `"serving_default"`, take a batch of inputs of any size and
    return a dict of what the model can give:

    ```
    name                dtype    shape                  what it is
    probabilities       float32  (batch, ..., classes)  mean probabilities, calibrated
    label               int64    (batch, ...)           the most probable class
    confidence          float32  (batch, ...)           the largest probability, in [0, 1]
    predictive_entropy  float32  (batch, ...)           H[probabilities], total, nats
    expected_entropy    float32  (batch, ...)           mean H of the samples, aleatoric, nats
    mutual_information  float32  (batch, ...)           their disagreement, epistemic, nats
    accept              bool     (batch, ...)           whether the rule accepts the prediction
    prediction_set      bool     (batch, ..., classes)  which classes are in the conformal set
    ood_score           float32  (batch,)               larger is further out; inf if unknown
    ```

    As in `tfuq.predictive`, predictions of one column have a label, a confidence and entropies of
    shape `(batch, ..., 1)`, and those of several labels of `(batch, ..., labels)`. `accept` and
    `prediction_set` have the shapes that `RejectionRule.accept` and
    `ConformalPredictor.predict_set` give. `expected_entropy` and `mutual_information` need samples:
    random layers, or an ensemble. They are of the samples before calibration, whose mean has the
    entropy that is their sum; without a calibration, that is `predictive_entropy`.

    The noise is part of the file, so that predictions repeat, and are those of
    `tfuq.predictive.predict_uncertainty` with the same `num_samples` and `seed`. What comes before
    the first random layer runs once, not per sample.

    In the folder, `metadata.json` says what was exported: versions, signature, outputs, rule, how
    many examples that was fitted to, hashes of the weights and of each file. `verify_export` reads
    it. The folder may be moved.

    Args:
        model: A Keras model of any style; or a `tfuq.ensembles.DeepEnsemble`, a
            `tfuq.callbacks.SnapshotEnsemble` after training, or a list of models, whose members are
            the samples.
        path: Folder to be, new or empty. It gets its name when it is complete.
        rule: A `tfuq.selective.RejectionRule`, or the path of one. A rule on the disagreement of
            samples sees these as the networks give them, every other rule the calibrated
            probabilities. Scores that are within rounding (1e-6) of its threshold are accepted.
        num_samples: Networks that are drawn of a model with random layers, 30 by default. Of the
            members of an ensemble none are drawn by default; a number draws as many of each.
        ood: A fitted detector of `tfuq.ood` of this model. All but the two on gradients run in a
            graph. `MutualInformation` must have the samples that are exported.
        predictive: How a network predicts:

            - `"fixed_samples"`: as draws from `seed`, the same in each call. A model without random
              layers has one prediction.
            - `"probit"`: mean / sqrt(1 + pi var / 8) of the logits (MacKay 1992), without samples,
              of a model whose one random layer is a `VBLLDense` or a heteroscedastic head.
            - `"mean"`: with the means of all random weights, and without dropout.
            - `"fresh_samples"`: as draws that are new in each call, from a counter that is part of
              the loaded model. Calls do not repeat.
        batch_size: None for batches of any size; an integer fixes it, for compilers that ask for
            that.
        preprocessing: What makes of raw inputs those of the model: a Keras layer or model, a
            function of tensors that TensorFlow can trace, or a list of these.
        calibration: A fitted calibration of `tfuq.selective`, applied first.
        conformal: A fitted `ConformalPredictor`, applied to the calibrated probabilities. Without a
            `rule`, predictions with one class in their set are accepted.
        output: Which output, when the model has several: an index, a key or a function; by default
            the `logits` of a named tuple that has such.
        from_logits: Whether the output holds logits. By default what the compiled loss says; of a
            model without, logits are what lies outside [0, 1] or does not sum to 1.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        seed: Integer from which networks are drawn.
        input_signature: `tf.TensorSpec`, or a structure of these, of the inputs. By default those
            of `preprocessing` or of the model, if that is functional or `Sequential`.
        overwrite: Whether an exported model that is there is replaced.
        verbose: Whether to print what is written.

    Returns:
        None.

    Raises:
        ValueError: If `path` holds something, an argument is out of its range or does not fit the
            model (a rule on samples of a model without), or a layer cannot be exported: it is
            named.
        OSError: If there is no space; nothing is left behind.

    Example:

    ```python
    import keras
    import numpy as np
    import tensorflow as tf
    from tfuq.export import export, verify_export
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty
    from tfuq.selective import RejectionRule

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    export(model, "served", rule=RejectionRule("confidence", 0.7), num_samples=10)
    x = np.random.rand(5, 8).astype("float32")
    print(verify_export("served", x, predict_uncertainty(model, x, num_samples=10)))
    served = tf.saved_model.load("served")  # to be kept: its weights go with it
    print(served.serve(x)["accept"])
    ```

    References:
        - MacKay, "The evidence framework applied to classification networks", 1992.
    """
    check_choice("predictive", predictive, PREDICTIVES)
    check_flags(multi_label=multi_label, overwrite=overwrite)
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    path = check_path(path, overwrite)
    members, several = members_of(model)
    options = Options(predictive, num_samples, output, seed)
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
        networks = [
            network(member, options, inner, hold, score if member is scored else None)
            for member in members
        ]
        outputs = _Outputs(networks, flags, members, several, options)
        given = (multi_label, calibration, rule, conformal)
        serve = tf.function(
            lambda inputs: _served(prepare(inputs), outputs, given, ood),
            input_signature=[spec],
            autograph=False,  # it would wrap our errors
        )
        concrete = serve.get_concrete_function()
    except Exception as error:
        _name_the_layer(error, members, inner)
        raise
    _check_operations(concrete, members, predictive)
    about = _about(members, options, ood, steps, *given[1:])
    archive = keras.export.ExportArchive()
    for each in [*members, *(step for step in steps if isinstance(step, keras.layers.Layer))]:
        archive.track(each)
    archive.add_variable_collection("held", held)
    archive.add_endpoint("serve", serve)
    with folder_written_whole(path) as folder:
        # What is served is not differentiated, and some gradients cannot be written.
        plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(folder), plain, verbose)
        tf.saved_model.load(str(folder))  # what cannot be read must not take the place of anything
        write_metadata(folder, {**about, **_signature(folder)})


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
    with predicting(model, predictive):
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


def _served(batch, outputs, given, ood):
    """The dict that `serve` returns."""
    values, scores = outputs(batch, given[0])
    shape = values.shape[1:] if outputs.is_stack else values.shape
    decide = make_decisions(shape, outputs.is_stack, outputs.is_logits, *given)
    found = decide(values, outputs.is_stack)
    if scores:
        found["ood_score"] = scores[0]
    elif ood is not None:  # it scores the samples
        information = found["mutual_information"]
        found["ood_score"] = tf.reshape(information, (tf.shape(information)[0],))
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


def _signature(folder):
    """Inputs and outputs of the serving signature, as the file has them."""
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    found = message.meta_graphs[0].signature_def["serving_default"]
    inputs, outputs = (
        {name: _tensor(info) for name, info in sorted(part.items())}
        for part in (found.inputs, found.outputs)
    )
    documented = {name: {**info, "meaning": MEANINGS[name]} for name, info in outputs.items()}
    return {"signature": {"inputs": inputs, "outputs": list(outputs)}, "outputs": documented}


def _tensor(info):
    shape = tf.TensorShape(info.tensor_shape)
    return {
        "dtype": tf.dtypes.as_dtype(info.dtype).name,
        "shape": None if shape.rank is None else shape.as_list(),
    }
