"""Exports as models of MLflow (extra `mlflow`), imported by `import tfuq.export.mlflow` alone."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import PathLike, public_dir
from tfuq._version import __version__
from tfuq.export._files import read_metadata
from tfuq.export.loading import FILES, checked_export, load_export
from tfuq.predictive.inputs import Batch
from tfuq.predictive.number_rows import rows_of
from tfuq.predictive.rows import as_model

__all__ = ["log_model", "save_model"]
__dir__ = public_dir(__all__)

_EXTRAS = {".onnx": "onnx"}  # that a file needs where it is loaded
_NOT_SAID = ("num_samples", "output", "from_logits", "multi_label", "rule", "ood", "columns")


def import_mlflow():
    """MLflow, or an ImportError that says what to install."""
    try:
        import mlflow
    except ImportError as error:
        raise ImportError(
            'MLflow is an extra. Install it with: pip install "tfuq[mlflow]"'
        ) from error
    return mlflow


def save_model(path: PathLike, folder: PathLike, **options: Any) -> None:
    """Writes an export as a model of MLflow, which `mlflow.pyfunc.load_model` reads.

    No pickle is written: the folder has the files of the export, and the name of this module, which
    loads them. `predict` of the loaded model takes an array of inputs and returns a
    `pandas.DataFrame` with the rows of `tfuq.predictive.score_dataset`, but for their numbers:
    probabilities, label, class, `accept` and what else the export says of an example. Inputs of
    another shape or type, or outside of the declared range, are refused.

    A SavedModel is code, and so is a model of MLflow: load what you trust. The hashes of the export
    are compared when it is loaded.

    Args:
        path: What `tfuq.export.export`, `export_litert` or `export_onnx` wrote.
        folder: Where the model of MLflow goes: a new folder.
        options: What `mlflow.pyfunc.save_model` takes besides, such as `metadata`.

    Raises:
        ImportError: Without MLflow.
        ValueError: If `path` is no export, or files of it are missing or changed; if `options` name
            what is known: `loader_module`, `data_path`, `python_model`, `path`.

    Example:

    ```
    import mlflow
    import tfuq
    from tfuq.export.mlflow import save_model

    tfuq.export.export(model, "served", rule=rule)
    save_model("served", "for_mlflow")
    print(mlflow.pyfunc.load_model("for_mlflow").predict(images)["accept"])
    ```

    See also: `tfuq.export.mlflow.log_model`, `tfuq.export.export`.
    """
    _written(path, lambda kept: import_mlflow().pyfunc.save_model(str(folder), **kept), options)


def log_model(path: PathLike, name: str = "model", **options: Any) -> Any:
    """As `save_model`, into the run of MLflow that is active, or a new one.

    Args:
        path: What `tfuq.export.export`, `export_litert` or `export_onnx` wrote.
        name: Name of the model in the run.
        options: What `mlflow.pyfunc.log_model` takes besides, such as `registered_model_name`.

    Returns:
        MLflow's `ModelInfo`, whose `model_uri` loads the model.

    Raises:
        ImportError: Without MLflow.
        ValueError: As `save_model`.

    Example:

    ```
    import mlflow
    from tfuq.export.mlflow import log_model

    with mlflow.start_run():
        info = log_model("served", "skin", registered_model_name="skin")
    print(mlflow.pyfunc.load_model(info.model_uri).predict(images))
    ```

    See also: `tfuq.export.mlflow.save_model`, `tfuq.callbacks.mlflow.MLflowLogger`.
    """
    return _written(path, lambda kept: import_mlflow().pyfunc.log_model(name=name, **kept), options)


def _written(path, write, options):
    """What `write` returns of the arguments of MLflow, with a copy of the export."""
    import_mlflow()
    taken = {"loader_module", "data_path", "python_model", "artifacts", "path"} & options.keys()
    if taken:
        raise ValueError(
            "Argument `options` must leave out what the export itself records. Received: "
            f"{', '.join(sorted(taken))}"
        )
    path = pathlib.Path(path)
    about = checked_export(path)
    extra = _EXTRAS.get(path.suffix)
    needs = f"tfuq[{extra}]" if extra else "tfuq"
    known = {
        "signature": _signature(about),
        "pip_requirements": [f"{needs}=={__version__}", f"tensorflow=={tf.__version__}"],
    }
    with tempfile.TemporaryDirectory() as folder:
        copied = pathlib.Path(folder) / "export"
        if path.is_dir():
            shutil.copytree(path, copied)
        else:  # with what is called as it and stands beside it: metadata, card, signature
            copied.mkdir()
            for each in (path, *path.parent.glob(f"{path.name}.*")):
                shutil.copy(each, copied)
        loader = {"loader_module": "tfuq.export.mlflow", "data_path": str(copied)}
        return write({**known, **options, **loader})


def _signature(about):
    """What MLflow compares inputs with; None for texts, such as encoded images."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    ((_, given),) = about["signature"]["inputs"].items()
    dtype = tf.as_dtype(given["dtype"])
    if dtype == tf.string:
        return None
    shape = [-1 if size is None else size for size in given["shape"]]
    return ModelSignature(Schema([TensorSpec(np.dtype(dtype.as_numpy_dtype), shape)]))


def _load_pyfunc(path):
    """What MLflow calls, by this name, with the path of the copied export."""
    folder = pathlib.Path(path)
    files = [each for each in folder.iterdir() if each.suffix in FILES]
    return _Exported(files[0] if files else folder)


class _Exported:
    """An export as MLflow calls it."""

    def __init__(self, path):
        self._model, self._rows = as_model(load_export(path)), None
        self._options = dict.fromkeys(_NOT_SAID)
        if _is_of_labels(read_metadata(path)["outputs"]):
            self._options["multi_label"] = True

    def predict(self, model_input, params=None):
        """A `pandas.DataFrame` with a row for each example of an array."""
        import pandas as pd

        if isinstance(model_input, (pd.DataFrame, dict)):
            raise ValueError(
                "Argument `model_input` must be an array of inputs. "
                f"Received: a {type(model_input).__name__}"
            )
        inputs = tf.convert_to_tensor(model_input)
        if self._rows is None:
            self._rows = rows_of(self._model, inputs, seed=0, **self._options)
        columns = self._rows.rows(0, Batch(inputs, None, None))
        columns.pop("index")
        return pd.DataFrame({name: np.asarray(values).tolist() for name, values in columns.items()})


def _is_of_labels(outputs):
    """Whether each class is a prediction of its own, with a label of its own."""
    label, probs = (outputs.get(name, {}).get("shape") for name in ("label", "probabilities"))
    return bool(probs) and label == probs and probs[-1] != 1
