"""A training in MLflow (extra `mlflow`), imported by `import tfuq.callbacks.mlflow` alone."""

from __future__ import annotations

import atexit
import inspect
import pathlib
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfuq import report
from tfuq._arguments import Data, public_dir, shown
from tfuq._models.predicting import check_validation_data
from tfuq._version import __version__
from tfuq.export.mlflow import import_mlflow

__all__ = ["MLflowLogger"]
__dir__ = public_dir(__all__)
_OPEN = []  # ids of runs that loggers began, and have not ended


class MLflowLogger(keras.callbacks.Callback):
    """Logs a training to MLflow: the figures of each epoch, and at its end a report to look at.

    Figures are those of the log of `fit`, after the callbacks that stand before this one: put
    `tfuq.callbacks.RejectionEvaluator` first. The run is the one that is active, or a new one that
    ends with the training. The report is `report.html` among the run's artifacts, in the folder
    `tfuq`.

    Keras tells no callback of an exception. A run of its own whose training did not end (Ctrl-C, an
    error, a failed report) is closed as `FAILED` when the process ends, or, with a warning, when
    the next training with an `MLflowLogger` begins; `mlflow.end_run("KILLED")` closes it at once. A
    run that you have started is yours to end: `with mlflow.start_run():` does so.

    Args:
        data: None, for no report; or labelled data that the network was not trained on, as
            `tfuq.report.html` takes them: `(x, y)` or a dataset.
        report_options: Further arguments of `tfuq.report.html`, such as `rule` or `names`.

    Raises:
        ImportError: Without MLflow.
        ValueError: If `data` have no labels, or `report_options` are not arguments of the report.

    Example:

    ```
    from tfuq.callbacks import RejectionEvaluator
    from tfuq.callbacks.mlflow import MLflowLogger

    watched = RejectionEvaluator((x_val, y_val), (0.9,))
    model.fit(x, y, epochs=5, callbacks=[watched, MLflowLogger((x_val, y_val))])
    ```

    See also: `tfuq.export.mlflow.log_model`, `tfuq.report.html`,
    `tfuq.callbacks.RejectionEvaluator`.
    """

    def __init__(
        self, data: Data | None = None, report_options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        import_mlflow()
        self.data = None if data is None else check_validation_data(data, "data")
        self.report_options = _checked_options(report_options, data)
        self._run_id = None  # of a run of its own

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        mlflow = import_mlflow()
        _close_left_open(is_told=True)
        if mlflow.active_run() is None:
            self._run_id = mlflow.start_run().info.run_id
            _OPEN.append(self._run_id)
            atexit.unregister(_close_left_open)
            atexit.register(_close_left_open)  # after MLflow's own, so that it is called before
        mlflow.set_tags(
            {
                "tfuq.version": __version__,
                "tfuq.model": self.model.name,
                "tfuq.parameters": self.model.count_params() if self.model.built else "not built",
                "tfuq.optimizer": type(self.model.optimizer).__name__,
            }
        )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items() if not np.ndim(value)}
        if figures:
            import_mlflow().log_metrics(figures, step=epoch)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        mlflow, status = import_mlflow(), "FAILED"
        try:
            if self.data is not None:
                self._log_report(mlflow)
            status = "FINISHED"
        finally:
            _end(self._run_id, status)
            self._run_id = None

    def _log_report(self, mlflow):
        with tempfile.TemporaryDirectory() as folder:
            page = pathlib.Path(folder) / "report.html"
            report.html(self.model, page, data=self.data, **self.report_options)
            mlflow.log_artifact(str(page), "tfuq")


def _end(run_id, status):
    """Ends a run of a logger, if it is still the active one, and nothing else."""
    if run_id not in _OPEN:
        return
    _OPEN.remove(run_id)
    mlflow = import_mlflow()
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        mlflow.end_run(status)


def _close_left_open(is_told=False):
    """Ends the runs of trainings that have not ended; MLflow would call them finished."""
    for run_id in _OPEN[::-1]:
        if is_told:
            warnings.warn(
                f"The run {run_id} of a training that did not end was closed as FAILED.",
                stacklevel=3,
            )
        _end(run_id, "FAILED")


def _checked_options(options, data):
    options = {} if options is None else options
    known = inspect.signature(report.html).parameters.keys() - {"source", "path", "data"}
    if not isinstance(options, Mapping) or (data is None and options) or options.keys() - known:
        raise ValueError(
            "Argument `report_options` must be a dict of arguments of `tfuq.report.html`, beside "
            f"`data`. Received: report_options={shown(options)}"
        )
    return dict(options)
