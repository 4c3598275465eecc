"""Export as one LiteRT (TensorFlow Lite) file of operations that every interpreter has built in."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfuq._arguments import ModelLike, Output, PathLike, check_choice, check_flags
from tfuq._files.writing import disk_errors
from tfuq._predictions.family import Family
from tfuq.export._files import check_file, file_written_whole
from tfuq.export._frozen import frozen, with_exact_constants
from tfuq.export._metadata import metadata, signature_of
from tfuq.export._networks import networks
from tfuq.export._operations import named
from tfuq.export._request import checked_request
from tfuq.export._runtimes import try_out
from tfuq.export._serving import graph

__all__ = ["export_litert"]

WEIGHTS = ("float32", "float16", "int8")


def export_litert(
    model: ModelLike,
    path: PathLike,
    rule: Any = None,
    num_samples: int | None = None,
    ood: Any = None,
    predictive: str = "fixed_samples",
    batch_size: int | None = None,
    preprocessing: Any = None,
    *,
    weights: str = "float32",
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
    """Writes a model, its uncertainty and its decision as one LiteRT file, for small devices.

    LiteRT's (TensorFlow Lite's) interpreter runs the file as it is, without the "Flex" delegate.
    The signature `"serving_default"` has the inputs and outputs of the SavedModel that
    `tfuq.export.export` writes, with the same names, and takes batches of any size but 0:

    ```
    runner = interpreter.get_signature_runner("serving_default")
    accept = runner(inputs=images)["accept"]
    ```

    Draws of weights, masks and noise are constants in the file. A last layer such as `VBLLDense` is
    computed for all samples at once. If that takes too much memory, and for random convolutions,
    samples run one after the other, and the file holds their operations `num_samples` times.

    For recurrent layers (LSTM, GRU, ...) the file holds the operations of each time step; the input
    must declare their number.

    Computations that Python does in float64 (mainly detectors) or in float16 are float32 here. With
    float16 or int8 only the weights of the networks are stored so; thresholds, calibrations and
    detectors stay float32. With int8, matrices and kernels of 1024 numbers or more are rounded,
    each channel on its own scale, and multiplied with inputs that are rounded to int8 at run time;
    biases and the rest stay float32. A rule or threshold fitted to the float32 model keeps its
    promise only as far as the outputs stay the same: measure that, with `verify_export` and a
    `tolerance`.

    The metadata of `export` are beside the file, under its name with ".json" appended;
    `verify_export` reads them. Their `agreement` is the largest difference of probabilities from
    the float32 graph, over 32 random inputs.

    Args:
        model: As in `tfuq.export.export`.
        path: File to write, usually `.tflite`. It gets its name when it is complete.
        rule: As in `export`.
        num_samples: As in `export`. All draws together may take 256 MB.
        ood: As in `export`, but for `ODIN` and `Mahalanobis` with a step along the gradient, whose
            operations are not built in.
        predictive: `"fixed_samples"`, `"probit"` or `"mean"`, as in `export`. There are no random
            numbers among the operations that are built in, so not `"fresh_samples"`.
        batch_size: As in `export`. With a fixed one LiteRT's compiler leaves out the comparison of
            sizes: programs other than `verify_export` and `tfuq predict` must look at them.
        preprocessing: As in `export`.
        weights: `"float32"`, `"float16"`, which halves the file, or `"int8"`, which quarters it.
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
        ValueError: If `path` exists, an argument is out of its range or does not fit the model, or
            LiteRT lacks an operation, which the error names with its layer.
        OSError: If there is no space; nothing is left behind.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.export import export_litert, verify_export
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    export_litert(model, "small.tflite", num_samples=10)
    x = np.random.rand(5, 8).astype("float32")
    print(verify_export("small.tflite", x, predict_uncertainty(model, x, num_samples=10)))
    ```

    See also: `tfuq.export.export`, `tfuq.export.export_onnx`, `tfuq.export.verify_export`.
    """
    arguments = locals()
    check_choice("weights", weights, WEIGHTS)
    check_flags(overwrite=overwrite)
    path = check_file(path, overwrite, (".tflite", ".lite"))
    request = checked_request(arguments, "LiteRT")
    serving = graph(request, networks(request))
    with disk_errors(path):  # the conversion has files of its own
        constant = frozen(serving.write)
        _check_branches(constant, request.members)
        content = _converted(constant, weights, request.members)
    about = {**metadata(request), "kind": "litert", "weights": weights, **signature_of(constant)}
    with file_written_whole(path, about, request.card) as new:
        new.write_bytes(content)
        # What cannot be run must not take the place of anything.
        about["agreement"] = try_out("litert", new, serving, is_exact=weights == "float32")


def _check_branches(graph, members):
    """Raises ValueError if anything is decided on the way.

    Of a convolution in a branch the interpreter of TensorFlow 2.21 ends the process.
    """
    branches = graph.nodes_of(("If", "StatelessIf", "Case", "StatelessCase"))
    if branches:
        raise ValueError(
            "Argument `model`, and what is exported with it, must not branch on computed values: "
            "LiteRT's interpreter may end the process there. Received: a branch in "
            f"{named(branches[0], members)}"
        )


def _converted(graph, weights, members):
    """The bytes of the file, or a ValueError that names what LiteRT has not."""
    function = (graph if weights == "float32" else with_exact_constants(graph)).function()
    with tempfile.TemporaryDirectory() as folder:
        plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(tf.Module(), folder, {"serving_default": function}, plain)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:
            missing = re.findall(r"'tf\.(\w+)' op", str(error))
            nodes = graph.nodes_of(missing)
            if not nodes:
                raise
            raise ValueError(
                "Argument `model`, and what goes with it, must be made of operations that LiteRT "
                f"has built in. Received: {', '.join(sorted(set(missing)))}, as in "
                f"{named(nodes[0], members)}"
            ) from error
