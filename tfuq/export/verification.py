"""Check of an exported model: whether it is whole, and says what it should."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, PathLike, check_positive
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.export._files import read_metadata
from tfuq.export._runtimes import runtime_of

__all__ = ["ExportCheck", "verify_export"]

_OF_NUMBERS = ("mean", "std", "aleatoric_std", "epistemic_std")
_OTHER_NAMES = {"probs": "probabilities"}  # of `tfuq.predictive.Uncertainty`
# What two ways to round make of probabilities, by the dtype that networks compute in.
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


class ExportCheck(NamedTuple):
    """The result of `verify_export`.

    Example:

    >>> from tfuq.export import ExportCheck
    >>> ExportCheck(5, {"probabilities": 3e-8}).differences["probabilities"] < 1e-5
    True

    See also: `tfuq.export.verify_export`.
    """

    examples: int
    differences: dict
    """Of each output that was compared the largest absolute difference; of labels and decisions the
    fraction that differs, which is 0."""


def verify_export(
    path: PathLike,
    x: Any,
    expected: ArrayLike | Mapping[str, ArrayLike] | Uncertainty | RegressionUncertainty,
    *,
    tolerance: float | None = None,
    runtime: str | None = None,
) -> ExportCheck:
    """Checks an exported model: the hashes of its files, and its predictions on some inputs.

    Args:
        path: Folder that `export` wrote, or file that `export_litert` or `export_onnx` wrote.
        x: Inputs as the exported model takes them, an array or a dict or list of arrays.
        expected: The expected answers: an array of probabilities, for a regression of means; a dict
            of arrays by the names of outputs (`probs` is `probabilities`); or the result of
            `tfuq.predictive.predict_uncertainty`: every output that the model has is compared, also
            intervals, except conformal ones.
        tolerance: Largest allowed difference of numbers. The default allows for rounding: 1e-5, or
            5e-3 if the network (or file) computes in float16, 4e-2 in bfloat16. For a regression
            the default is a share of the largest number of an output, and for deviations between
            networks also a tenth of that share of the largest mean; your own tolerance is in the
            unit of y. Labels, decisions and sets must be equal. Files of int8 weights need a
            measured tolerance.
        runtime: `"ai-edge-litert"` to run a LiteRT file by that package (`pip install
            "tfuq[litert]"`), not by TensorFlow's own interpreter; `"openvino"` to run an ONNX file
            by OpenVINO (`pip install "tfuq[openvino]"`), with
            float32 arithmetic; by default by ONNX Runtime. OpenVINO takes no loops, such as those
            of recurrent layers, and computes as if there were no NaN: inputs that are not finite
            are refused here, and must be refused wherever you run it.

    Returns:
        `ExportCheck`.

    Raises:
        ValueError: If a file is missing, truncated or altered (the error names it with its hash);
            if this version does not know the format; if the model has no such output, or an output
            differs.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.export import export, verify_export

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    export(model, "softmax")
    x = np.random.rand(7, 4)
    print(verify_export("softmax", x, model.predict(x, verbose=0)))
    ```

    See also: `tfuq.export.export`, `tfuq.export.ExportCheck`.
    """
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    metadata = read_metadata(path)
    precision = _precision(metadata)
    expected = _by_name(expected, metadata)
    kind = metadata.get("kind")
    if kind is None and runtime is None:
        served = _answers(tf.saved_model.load(str(path)), x)
    else:
        served = runtime_of(path, kind, runtime)(_by_input(metadata["signature"]["inputs"], x))
    first = "probabilities" if metadata.get("family") is None else "mean"
    differences = {}
    for name, array in expected.items():
        allowed = tolerance
        if tolerance is None:
            allowed = TOLERANCES[precision] * (1.0 if first != "mean" else _size(name, served))
        differences[name] = _difference(name, served, np.asarray(array), allowed, precision)
    return ExportCheck(len(served[first]), differences)


def _size(name, served):
    """Of numbers in any unit, how large those of an output are, to which rounding is relative."""
    sizes = {n: np.abs(served[n][np.isfinite(served[n])]).max(initial=0.0) for n in (name, "mean")}
    is_between = "epistemic_std" in served and name in ("std", "epistemic_std")
    return sizes[name] + (sizes["mean"] / 10 if is_between or name == "score" else 0.0)


def _precision(metadata):
    """The coarsest dtype in the file, or of the network that it was made from."""
    dtypes = {metadata.get("precision"), metadata.get("weights")}
    return next((dtype for dtype in ("bfloat16", "float16") if dtype in dtypes), "float32")


def _by_name(expected, metadata):
    """Dict of what is to be compared."""
    known = metadata["outputs"]
    if isinstance(expected, RegressionUncertainty):
        named = {name: getattr(expected, name) for name in _OF_NUMBERS if name in known}
        if metadata.get("level") is not None:
            named |= expected.interval(metadata["level"])._asdict()
        return named
    if hasattr(expected, "_asdict"):
        named = {_OTHER_NAMES.get(k, k): v for k, v in expected._asdict().items()}
        return {name: array for name, array in named.items() if name in known}
    if not isinstance(expected, dict):
        return {"mean" if metadata.get("family") else "probabilities": expected}
    expected = {_OTHER_NAMES.get(name, name): array for name, array in expected.items()}
    unknown = sorted(set(expected) - set(known))
    if unknown or not expected:
        raise ValueError(
            f"Argument `expected` must name outputs of the model, {sorted(known)}. "
            f"Received: {unknown}"
        )
    return expected


def _by_input(known, x):
    """Dict of the arrays of `x`, as a file names and takes them."""
    given = x if isinstance(x, dict) else dict(zip(known, tf.nest.flatten([x]), strict=False))
    arrays = {name: np.asarray(array) for name, array in given.items()}
    specs = {name: tf.TensorSpec(info["shape"], info["dtype"]) for name, info in known.items()}
    if arrays.keys() != specs.keys() or not all(
        specs[name].shape.is_compatible_with(array.shape) for name, array in arrays.items()
    ):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(
            f"Argument `x` must be a batch as the exported model takes it, {specs}. "
            f"Received: x of shape {shapes}"
        )
    return {name: arrays[name].astype(spec.dtype.as_numpy_dtype) for name, spec in specs.items()}


def _answers(model, x):
    """What the model serves for `x`, as arrays."""
    (spec,), _ = model.serve.concrete_functions[0].structured_input_signature
    try:
        inputs = tf.nest.map_structure(lambda s, a: tf.cast(np.asarray(a), s.dtype), spec, x)
        fit = all(
            s.shape.is_compatible_with(a.shape)
            for s, a in zip(tf.nest.flatten(spec), tf.nest.flatten(inputs), strict=True)
        )
    except (TypeError, ValueError):
        fit = False
    if not fit:
        shapes = tf.nest.map_structure(lambda array: np.shape(array), x)
        raise ValueError(
            f"Argument `x` must be a batch as the exported model takes it, {spec}. "
            f"Received: x of shape {shapes}"
        )
    return {name: tensor.numpy() for name, tensor in model.serve(inputs).items()}


def _difference(name, outputs, expected, tolerance, precision):
    """How far an output is from what is expected of it; ValueError if too far."""
    served = outputs[name]
    if served.shape != expected.shape:
        raise ValueError(
            f"Argument `expected` must have the shape of the output {name!r}, {served.shape}. "
            f"Received: an array of shape {expected.shape}"
        )
    if served.dtype.kind == "f":
        difference, allowed = _largest_gap(served, expected.astype("float64")), tolerance
    else:
        differs = served != expected
        if name == "label":  # of classes that are as probable as each other, either may be named
            differs &= ~_is_tied(outputs["probabilities"], expected, tolerance)
        difference, allowed = float(np.mean(differs)) if differs.size else 0.0, 0.0
    if not difference <= allowed:
        raise ValueError(
            f"Argument `expected` must agree with the exported model to {allowed}, which is "
            f"`tolerance` or follows from the model's precision, {precision}. Received: a "
            f"difference of {difference} in {name!r}"
        )
    return difference


def _largest_gap(served, expected):
    """The largest absolute difference; inf if not the same entries are finite, or inf, or NaN."""
    known = np.isfinite(served) & np.isfinite(expected)
    if not np.array_equal(served[~known].astype("float64"), expected[~known], equal_nan=True):
        return np.inf
    return float(np.abs(served[known] - expected[known]).max(initial=0.0))


def _is_tied(probs, labels, tolerance):
    """Whether the class `labels` is as probable as the most probable one."""
    if probs.shape == labels.shape:  # binary
        return np.abs(probs - 0.5) <= tolerance
    inside = np.clip(labels, 0, probs.shape[-1] - 1)
    own = np.take_along_axis(probs, inside[..., None].astype("int64"), -1)[..., 0]
    return (inside == labels) & (own >= probs.max(-1) - tolerance)
