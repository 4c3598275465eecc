"""Metadata of an export: versions, options, what was fitted, inputs and outputs."""

import platform

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfuq._version import __version__
from tfuq.export._decisions import MEANINGS
from tfuq.export._files import hash_of_arrays


def metadata(request):
    """What is known of a `Request` before anything is written, for JSON."""
    members, rule, detector = request.members, request.rule, request.detector
    fitted = {"rule": rule, "conformal": request.conformal}
    counts = {name: each.fitted_to.get("examples") for name, each in fitted.items() if each}
    threshold = getattr(detector, "threshold", None)
    threshold = None if threshold is None else float(threshold.value)
    own = request.declared.inputs
    inputs = None if request.steps else own  # of what is served
    arrays = [keras.ops.convert_to_numpy(v) for m in members for v in m.variables]
    return {
        "versions": {
            "tfuq": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "predictive": request.predictive,
        "num_samples": request.num_samples,
        "members": len(members),
        "seed": request.seed,
        "models": [{"name": m.name, "class": type(m).__name__} for m in members],
        "preprocessing": str(_names(request.steps)) if request.steps else None,
        "family": None if request.family is None else request.family.get_config(),
        "level": request.level,
        "class_names": request.declared.class_names,
        "inputs": None if inputs is None else inputs.told(),
        # What the networks take, whatever is served.
        "model_inputs": None if own is None else own.told(),
        "calibration": _described(request.calibration),
        "rule": None if rule is None else {**_described(rule), "says": rule.describe()},
        "conformal": _described(request.conformal),
        "monitor": _monitored(request.monitor),
        "calibration_examples": counts,
        "ood": None if detector is None else {**_described(detector), "threshold": threshold},
        "weights_sha256": hash_of_arrays(arrays),
        "precision": _precision(members),
    }


def _precision(members):
    """The coarsest dtype that any layer of the networks computes in."""
    layers = [layer for member in members for layer in member._flatten_layers()]
    found = {getattr(layer, "compute_dtype", None) for layer in layers}
    return next((dtype for dtype in ("bfloat16", "float16") if dtype in found), "float32")


def _described(fitted):
    if fitted is None:
        return None
    return {"name": type(fitted).__name__, "config": fitted.get_config()}


def _monitored(monitor):
    if monitor is None:
        return None
    told = {name: monitor.fitted_to[name] for name in ("cases", "accepted", "labelled", "loss")}
    return {**told, "alarms": list(monitor.alarms), "alpha": monitor.alpha}


def _names(steps):
    return [getattr(step, "name", getattr(step, "__name__", type(step).__name__)) for step in steps]


# --- Inputs and outputs -----------------------------------------------------------------------


def signature_of(graph):
    """Metadata of a `tfuq.export._frozen.Frozen`: its inputs and outputs."""
    outputs = graph.function().structured_outputs
    return _signature(
        {name: _tensor(spec.shape, spec.dtype) for name, spec in graph.inputs.items()},
        {name: _tensor(spec.shape, spec.dtype) for name, spec in outputs.items()},
    )


def signature_of_folder(folder):
    """The same of the serving signature of a SavedModel, as the file has it."""
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    serving = message.meta_graphs[0].signature_def["serving_default"]
    inputs, outputs = (
        {
            name: _tensor(tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
            for name, info in part.items()
        }
        for part in (serving.inputs, serving.outputs)
    )
    return _signature(inputs, outputs)


def _signature(inputs, outputs):
    documented = {
        name: {**info, "meaning": MEANINGS[name]} for name, info in sorted(outputs.items())
    }
    signature = {"inputs": dict(sorted(inputs.items())), "outputs": list(documented)}
    return {"signature": signature, "outputs": documented}


def _tensor(shape, dtype):
    return {"dtype": dtype.name, "shape": None if shape.rank is None else shape.as_list()}
