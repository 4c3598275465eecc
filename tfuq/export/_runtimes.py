"""Runtimes of models in one file, as functions from arrays to arrays."""

import warnings

import numpy as np
import tensorflow as tf

from tfuq._models.outputs import sample_inputs


class LiteRT:
    """A LiteRT file on one thread: `model({name: array})` is a dict of arrays."""

    def __init__(self, path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the interpreter will move to another package
            interpreter = tf.lite.Interpreter(str(path), num_threads=1)
        self._run = interpreter.get_signature_runner("serving_default")
        self.inputs = list(self._run.get_input_details())
        self.interpreter = interpreter  # whose memory the runner uses

    def __call__(self, inputs):
        return self._run(**inputs)


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


WRONG = 1e-2  # a difference that rounding does not make, of float16 least of all
RUNTIMES = {"litert": LiteRT, "onnx": ONNX}
NAMES = {"litert": "LiteRT", "onnx": "ONNX"}


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


def try_out(kind, path, serving, is_exact=True):
    """How far answers are from those of a `Serving`, for 32 random inputs.

    Raises ValueError if the file cannot be run, or gives something else; if it `is_exact`, not for
    rounding alone.
    """
    inputs = sample_inputs(serving.request.spec)
    names = [t.op.name for t in serving.concrete.inputs if t.dtype != tf.resource]
    arrays = [tensor.numpy() for tensor in tf.nest.flatten(inputs)]
    given = dict(zip(names[: len(arrays)], arrays, strict=True))
    expected = {k: v.numpy() for k, v in serving.serve(inputs).items() if k in COMPARED}
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
                f"TensorFlow does. Received: {name} of random inputs that differ by {gap}"
            )
    told = {name: None if np.isnan(gap) else gap for name, gap in gaps.items()}
    return {"random_inputs": len(tf.nest.flatten(inputs)[0]), **told}


def _gap(answered, expected):
    if answered is None or answered.shape != expected.shape:
        return np.inf
    with np.errstate(invalid="ignore"):
        return float(np.abs(answered - expected).max())
