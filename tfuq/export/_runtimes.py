"""Runtimes of models in one file, as functions from arrays to arrays."""

import contextlib
import os
import tempfile
import warnings

import numpy as np
import tensorflow as tf

_NOTE = b"INFO: Created TensorFlow Lite XNNPACK delegate"


class LiteRT:
    """A LiteRT file on one thread: `model({name: array})` is a dict of arrays."""

    def __init__(self, path):
        with _without_notes():
            interpreter = self._interpreter(str(path))
            interpreter.allocate_tensors()
            self._run = interpreter.get_signature_runner("serving_default")
        self._shapes = {
            name: tf.TensorShape([None if size < 0 else size for size in each["shape_signature"]])
            for name, each in self._run.get_input_details().items()
        }
        self.inputs = list(self._shapes)
        self.interpreter = interpreter  # whose memory the runner uses

    @staticmethod
    def _interpreter(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter will move to another package
            return tf.lite.Interpreter(path, num_threads=1)

    def __call__(self, inputs):
        """LiteRT resizes a tensor to what it is given; batches of none may end the process."""
        for name, shape in self._shapes.items():
            found = np.shape(inputs.get(name))
            fits = not shape.rank or shape.is_compatible_with(found)  # of any rank: said as none
            if not fits or 0 in found:
                raise ValueError(
                    "Argument `x` must be a batch as the LiteRT file takes it, of one example or "
                    f"more: {name!r} of shape {shape}. Received: shape {found}"
                )
        return self._run(**inputs)


@contextlib.contextmanager
def _without_notes():
    """Keeps LiteRT's note of its delegate from stderr; what else is written there is shown."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if not line.startswith(_NOTE)))


class AIEdgeLiteRT(LiteRT):
    """The same by the package `ai-edge-litert`, where TensorFlow's interpreter has moved to."""

    @staticmethod
    def _interpreter(path):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                'ai-edge-litert is an extra. Install it with: pip install "tfuq[litert]"'
            ) from error
        return Interpreter(path, num_threads=1)


class ONNX:
    """An ONNX file on one thread: `model({name: array})` is a dict of arrays."""

    def __init__(self, path):
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [each.name for each in self.session.get_inputs()]
        self._names = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs):
        return dict(zip(self._names, self.session.run(self._names, inputs), strict=True))


class OpenVINO:
    """An ONNX file in OpenVINO on one thread: `model({name: array})` is a dict of arrays.

    OpenVINO computes as if there were no NaN: what is not finite would be accepted as any number.
    So such inputs are refused here, which who calls it otherwise has to do.
    """

    def __init__(self, path):
        try:
            import openvino
        except ImportError as error:
            raise ImportError(
                'OpenVINO is an extra. Install it with: pip install "tfuq[openvino]"'
            ) from error
        # It would compute in bfloat16 where a processor has that, and thresholds would move.
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        try:
            self._run = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise ValueError(
                f"Argument `path` must be a model that OpenVINO can run. Received: {path} ({error})"
            ) from error
        self.inputs = [each.get_any_name() for each in self._run.inputs]

    def __call__(self, inputs):
        for name, array in inputs.items():
            if not np.isfinite(array).all():
                raise ValueError(
                    "Argument `x` must be finite for OpenVINO, which cannot tell NaN from a "
                    f"number. Received: NaN or infinity in {name!r}"
                )
        found = self._run(inputs)
        # Integers are told as they are, booleans as bytes.
        return {port.get_any_name(): np.array(found[port]) for port in self._run.outputs}


WRONG = 1e-2  # a difference that rounding does not make, of float16 least of all
RUNTIMES = {"litert": LiteRT, "onnx": ONNX}
OTHERS = {  # by name: which files, and what runs them
    "openvino": ("onnx", OpenVINO),
    "ai-edge-litert": ("litert", AIEdgeLiteRT),
}
NAMES = {"litert": "LiteRT", "onnx": "ONNX"}


def runtime_of(path, kind, name=None):
    """What runs a file of a `kind`: its own runtime, or the one of the argument `runtime`."""
    if name is None:
        return RUNTIMES[kind](path)
    if name not in OTHERS or OTHERS[name][0] != kind:
        known = sorted(other for other, (of, _) in OTHERS.items() if of == kind)
        raise ValueError(
            f"Argument `runtime` must be None or one of {known} for a file of the kind "
            f"{kind or 'SavedModel'}. Received: runtime={name!r}"
        )
    return OTHERS[name][1](path)


def import_onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'ONNX files are run by onnxruntime. Install it with: pip install "tfuq[onnx]"'
        ) from error
    return onnxruntime


# What is compared, of classifiers and of regressions.
COMPARED = ("probabilities", "mean", "std", "lower", "upper")


def try_out_served(serve, serving):
    """How far answers of `serve` are from those of a `Serving`, of the caller's example."""
    inputs = serving.request.inputs.example
    expected, answered = _expected(serving, inputs, True), serve(inputs)
    gaps = {name: _gap(answered[name].numpy(), array) for name, array in expected.items()}
    told = {name: None if np.isnan(gap) else gap for name, gap in gaps.items()}
    return {"example_inputs": len(tf.nest.flatten(inputs)[0]), **told}


def try_out(kind, path, serving, is_exact=True):
    """How far answers are from those of a `Serving`: of the caller's example, or 32 random inputs.

    Raises ValueError if the file cannot be run, or gives something else; if it `is_exact`, not for
    rounding alone. Where nothing can be made up that the model takes, a warning says so.
    """
    is_given, inputs = serving.request.inputs.example is not None, serving.request.served_example()
    counted = "example_inputs" if is_given else "random_inputs"
    expected = _expected(serving, inputs, is_given)
    if expected is None:
        warnings.warn(
            f"The {NAMES[kind]} file was not tried, because no input could be made up that the "
            "model takes. Pass a batch of inputs as `example` to try it.",
            stacklevel=3,
        )
        RUNTIMES[kind](path)
        return {counted: 0}
    names = [t.op.name for t in serving.concrete.inputs if t.dtype != tf.resource]
    arrays = [as_file_takes(tensor.numpy()) for tensor in tf.nest.flatten(inputs)]
    given = dict(zip(names[: len(arrays)], arrays, strict=True))
    try:
        answered = RUNTIMES[kind](path)(given)
    except (ImportError, OSError):
        raise
    except Exception as error:  # each runtime has its own
        raise ValueError(
            f"Argument `model`, and what goes with it, must be what {NAMES[kind]} can run. "
            f"Received: {type(error).__name__}: {error}"
        ) from error
    gaps = {name: _gap(answered.get(name), array) for name, array in expected.items()}
    for name, gap in gaps.items():
        size = 1.0 if name == "probabilities" else np.abs(expected[name]).max()
        if gap > WRONG * size and (is_exact or np.isinf(gap)):
            raise ValueError(
                f"Argument `model`, and what goes with it, must be what {NAMES[kind]} computes as "
                f"TensorFlow does. Received: {name} of {counted.replace('_', ' ')} that differ by "
                f"{gap}"
            )
    told = {name: None if np.isnan(gap) else gap for name, gap in gaps.items()}
    return {counted: len(tf.nest.flatten(inputs)[0]), **told}


def _expected(serving, inputs, is_given):
    """What TensorFlow says of inputs; None where it cannot take what was made up."""
    if inputs is None:
        return None
    try:
        return {k: v.numpy() for k, v in serving.serve(inputs).items() if k in COMPARED}
    except tf.errors.OpError as error:
        if not is_given:
            return None
        raise ValueError(
            f"Argument `example` must be what the model takes. Received: {error}"
        ) from error


def as_file_takes(array):
    """An array as files have it, whose floats are float32."""
    is_float = tf.as_dtype(array.dtype).is_floating
    return array.astype("float32") if is_float else array


def _gap(answered, expected):
    if answered is None or answered.shape != expected.shape:
        return np.inf
    with np.errstate(invalid="ignore"):
        return float(np.abs(answered - expected).max())
