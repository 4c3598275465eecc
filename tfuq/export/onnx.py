"""Export as one ONNX file, by tf2onnx."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tensorflow.python.util.deprecation import silence

from tfuq._arguments import ModelLike, Output, PathLike, check_flags, check_integer
from tfuq._files.writing import disk_errors
from tfuq._predictions.family import Family
from tfuq.export._files import check_file, file_written_whole
from tfuq.export._frozen import frozen
from tfuq.export._metadata import metadata, signature_of
from tfuq.export._networks import networks
from tfuq.export._operations import named
from tfuq.export._request import checked_request
from tfuq.export._runtimes import try_out
from tfuq.export._serving import graph

__all__ = ["export_onnx"]


def export_onnx(
    model: ModelLike,
    path: PathLike,
    rule: Any = None,
    num_samples: int | None = None,
    ood: Any = None,
    predictive: str = "fixed_samples",
    batch_size: int | None = None,
    preprocessing: Any = None,
    *,
    opset: int = 18,
    calibration: Any = None,
    conformal: Any = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    family: str | Mapping[str, Any] | Family | None = None,
    level: float | None = None,
    seed: int = 0,
    input_signature: Any = None,
    example: Any = None,
    monitor: Any = None,
    card: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model, its uncertainty and its decision as one ONNX file, by tf2onnx.

    This needs `pip install "tfuq[onnx]"`: tf2onnx 1.17, onnx and onnxruntime, which run beside
    TensorFlow 2.21, NumPy 2 and protobuf 7. The inputs and outputs are those of the SavedModel that
    `tfuq.export.export` writes, by the same names; batches may have any size but 0:

    ```
    session = onnxruntime.InferenceSession("model.onnx")
    (accept,) = session.run(["accept"], {"inputs": images})
    ```

    OpenVINO reads the file, too. On processors that have it, it computes in bfloat16 by default, by
    which thresholds move: compile with `{"INFERENCE_PRECISION_HINT": "f32"}`.

    Draws are constants, as in `export_litert`, and computations in float64 or float16 become
    float32.

    Converted, and compared with Python, are: `Dense` and convolutional networks, ensembles and
    snapshots; `VBLLDense` with all posteriors and both likelihoods, `MCSoftmaxDenseFA` and
    `MCSigmoidDenseFA`, by samples, `"probit"` and `"mean"`; `DenseVariational`,
    `Conv2DVariational`, `SparseBayesDense`, `SparseBayesConv2D` and `MCDropout`; calibrations,
    rules and conformal sets; all detectors of `export` but `ODIN` and `Mahalanobis` with a step
    along the gradient. These are not converted, nor are `"fresh_samples"` and layers with
    operations that tf2onnx does not know, such as random numbers, FFTs or the logarithm of the
    gamma function: an error names them.

    Args:
        model: As in `tfuq.export.export`.
        path: File to write, usually `.onnx`. It gets its name when it is complete.
        rule: As in `export`.
        num_samples: As in `export`. All draws together may take 256 MB.
        ood: As in `export`.
        predictive: `"fixed_samples"`, `"probit"` or `"mean"`, as in `export`.
        batch_size: As in `export`.
        preprocessing: As in `export`.
        opset: Version of the operations of ONNX, 13 or more, as far as tf2onnx knows it.
        calibration: As in `export`.
        conformal: As in `export`.
        output: As in `export`.
        from_logits: As in `export`.
        multi_label: As in `export`.
        family: As in `export`.
        level: As in `export`.
        seed: As in `export`.
        input_signature: As in `export`.
        example: A batch of inputs as they are served, by which the file is tried and `agreement`
            is told; by default 32 random ones, in the range that is declared of the model. Texts
            and what a preprocessing alone understands (encoded images) cannot be made up: without
            an example a warning says that the file was not tried.
        monitor: As in `export`.
        card: As in `export`; the card is beside the file, under its name with ".md" appended.
        overwrite: Whether to replace an exported file at `path`.

    Returns:
        None.

    Raises:
        ImportError: If tf2onnx or onnxruntime is not installed.
        ValueError: If `path` exists, an argument is out of its range or does not fit the model, or
            tf2onnx does not convert an operation, which the error names with its layer.
        OSError: If there is no space; nothing is left behind.

    Example:

    ```python
    import importlib.util

    import keras
    import numpy as np
    from tfuq.export import export_onnx, verify_export
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    x = np.random.rand(5, 8).astype("float32")
    if importlib.util.find_spec("tf2onnx"):
        export_onnx(model, "model.onnx", num_samples=10)
        print(verify_export("model.onnx", x, predict_uncertainty(model, x, num_samples=10)))
    ```

    See also: `tfuq.export.export`, `tfuq.export.export_litert`, `tfuq.export.verify_export`.
    """
    arguments = locals()
    check_integer("opset", opset, 13)
    check_flags(overwrite=overwrite)
    path = check_file(path, overwrite, (".onnx",))
    tf2onnx = _import_tf2onnx()
    request = checked_request(arguments, "ONNX")
    serving = graph(request, networks(request))
    with disk_errors(path):  # the conversion has files of its own
        constant = frozen(serving.write).inlined()
    converted = _converted(tf2onnx, constant, opset, request.members)
    about = {**metadata(request), "kind": "onnx", "opset": opset, **signature_of(constant)}
    about["versions"] |= {name: version(name) for name in ("tf2onnx", "onnx")}
    with file_written_whole(path, about, request.card) as new:
        new.write_bytes(converted.SerializeToString())
        # What cannot be run must not take the place of anything.
        about["agreement"] = try_out("onnx", new, serving)


def _converted(tf2onnx, graph, opset, members):
    """The ONNX model, or a ValueError that names what it has not."""
    names = {f"{name}:0": name for name in graph.inputs}
    names |= {tensor: name for name, tensor in graph.outputs.items()}
    options = {
        "name": "tfuq",
        "input_names": [f"{name}:0" for name in graph.inputs],
        "output_names": list(graph.outputs.values()),
        "opset": opset,
        "tensors_to_rename": names,
    }
    for copies in (False, True):
        failed = False
        with _errors_of(logging.getLogger("tf2onnx")) as errors, _copies(copies), silence():
            try:
                converted, _ = tf2onnx.convert.from_graph_def(graph.graph, **options)
            except Exception as error:
                failed = True
                errors.append(f"{type(error).__name__}: {error}")
        if len(errors) != 1 or not failed:  # an error that was logged stays with copies too
            break
    if errors:  # it may go on, with a model that is not whole
        match = re.search(r"(?:node|output) '([^':]+)|\[([^:\]]+): ", errors[0])
        where = named(match[1] or match[2], members) if match else "one"
        raise ValueError(
            "Argument `model`, and what goes with it, must be made of operations that tf2onnx "
            f"converts. Received: {where}: {errors[0].splitlines()[0]}"
        )
    return converted


@contextlib.contextmanager
def _copies(wanted):
    """Whether tf2onnx copies the graph, weights and all, for each of some 40 simplifications.

    With copies it goes on where a simplification fails; without, the export of a network of 94 MB
    (ResNet50) takes 4.9 GB at most and not 8.2, and two thirds of the time.
    """
    name, before = "TF2ONNX_CATCH_ERRORS", os.environ.get("TF2ONNX_CATCH_ERRORS")
    if not wanted:
        os.environ[name] = "FALSE"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _errors_of(logger):
    """A list of the errors that are logged while it is open, and go nowhere else."""
    handler, messages, propagate = logging.Handler(logging.ERROR), [], logger.propagate
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _import_tf2onnx():
    try:
        import onnx
        import onnxruntime
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            "tfuq.export.export_onnx writes with tf2onnx, and tries what it wrote with "
            'onnxruntime. Install them with: pip install "tfuq[onnx]"'
        ) from error
    del onnx, onnxruntime
    return tf2onnx
