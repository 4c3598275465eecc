"""Exports as models of MLflow, and a training's figures and report in its run (a file store)."""

import builtins
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfuq
from tfuq.callbacks import RejectionEvaluator
from tfuq.callbacks.mlflow import MLflowLogger
from tfuq.export.mlflow import log_model, save_model
from tfuq.predictive import declare, predict_uncertainty, read_scores, score_dataset
from tfuq.selective import RejectionRule

# Theirs, of what they use.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
pytestmark += [pytest.mark.filterwarnings("ignore::UserWarning:mlflow")]
X = np.random.default_rng(0).random((24, 6, 6, 1)).astype("float32")
Y = np.arange(24) % 3


def network():
    keras.utils.set_random_seed(0)
    body = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((6, 6, 1)), *body, keras.layers.Dense(3, "softmax")])
    declare(model, class_names=["a", "b", "c"], value_range=(0, 1))
    return model


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow with a store of its own."""
    found = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones prefer a database
    found.set_tracking_uri((tmp_path / "runs").as_uri())
    found.set_experiment("tests")
    yield found
    while found.active_run():
        found.end_run()


def test_without_mlflow_it_says_what_to_install(monkeypatch, tmp_path):
    own = builtins.__import__

    def missing(name, *arguments, **options):
        if name.split(".")[0] == "mlflow":
            raise ImportError(name)
        return own(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (
        MLflowLogger,
        lambda: log_model(tmp_path),
        lambda: save_model(tmp_path, tmp_path / "m"),
    ):
        with pytest.raises(ImportError, match=r'pip install "tfuq\[mlflow\]"'):
            call()


WRITE = {
    "served": tfuq.export.export,
    "m.onnx": tfuq.export.export_onnx,
    "m.tflite": tfuq.export.export_litert,
}


@pytest.mark.parametrize("form", WRITE)
def test_a_logged_model_gives_the_rows_of_score_dataset(form, mlflow, tmp_path):
    model = network()
    probs = predict_uncertainty(model, X).probs
    rule = RejectionRule("confidence", float(np.median(probs.max(-1))), class_names=list("abc"))
    WRITE[form](model, tmp_path / form, rule=rule)
    with mlflow.start_run():
        info = log_model(tmp_path / form)
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    found = loaded.predict(X)
    score_dataset(model, X, tmp_path / "scores.tfrecord", rule=rule, verbose=0)
    expected = read_scores(tmp_path / "scores.tfrecord")
    for name in ("label", "class"):
        assert found[name].tolist() == [
            each.decode() if isinstance(each, bytes) else each for each in expected[name].tolist()
        ]
    accepted = probs.max(-1) >= rule.threshold
    assert found["accept"].tolist() == accepted.tolist() and 0 < accepted.sum() < 24
    np.testing.assert_allclose(np.stack(found["probabilities"]), probs, atol=1e-5)
    for wrong in (X[:, :4], np.round(255 * X), X.astype("int64"), X[0]):
        with pytest.raises(Exception, match=r"(?i)shape|range|images from|type"):
            loaded.predict(wrong)
    assert not list(tmp_path.rglob("*.pkl"))


def test_labels_and_numbers_have_their_rows(mlflow, tmp_path):
    inputs = keras.Input((6, 6, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    labels = keras.Model(inputs, keras.layers.Dense(3, "sigmoid")(pooled))
    numbers = keras.Model(inputs, tfuq.layers.NormalDense(1)(pooled))
    found = {}
    for name, model in {"labels": labels, "numbers": numbers}.items():
        told = {"multi_label": True} if name == "labels" else {}
        tfuq.export.export_litert(model, tmp_path / f"{name}.tflite", **told)
        save_model(tmp_path / f"{name}.tflite", tmp_path / name)
        found[name] = mlflow.pyfunc.load_model(str(tmp_path / name)).predict(X)
    probs = labels.predict(X, verbose=0)
    np.testing.assert_allclose(np.stack(found["labels"]["probabilities"]), probs, atol=1e-5)
    np.testing.assert_array_equal(np.stack(found["labels"]["label"]), probs > 0.5)
    expected = predict_uncertainty(numbers, X)
    np.testing.assert_allclose(found["numbers"]["mean"], expected.mean[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["numbers"]["std"], expected.std[:, 0], atol=1e-5)


def test_a_saved_model_is_whole_or_refused(mlflow, tmp_path):
    tfuq.export.export_litert(network(), tmp_path / "m.tflite")
    for known in ("loader_module", "data_path"):
        with pytest.raises(ValueError, match=f"leave out.*{known}"):
            save_model(tmp_path / "m.tflite", tmp_path / "m", **{known: "x"})
    save_model(tmp_path / "m.tflite", tmp_path / "m")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    with pytest.raises(Exception, match="array"):
        loaded._model_impl.predict({"x": X})
    (written,) = (tmp_path / "m").rglob("m.tflite")
    content = bytearray(written.read_bytes())
    content[len(content) // 2] ^= 1
    written.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.tflite"):
        mlflow.pyfunc.load_model(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="path"):
        save_model(tmp_path / "nothing", tmp_path / "n")


@pytest.mark.parametrize("is_active", [True, False])
def test_a_training_logs_its_figures_and_a_report(is_active, mlflow):
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    run = mlflow.start_run() if is_active else None
    watched = RejectionEvaluator((X, Y), (0.5,), verbose=0)
    logger = MLflowLogger((X, Y), {"title": "Mine"})
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[watched, logger]).history
    assert (mlflow.active_run() is not None) == is_active
    client = mlflow.MlflowClient()
    run_id = run.info.run_id if is_active else mlflow.last_active_run().info.run_id
    for name in history:
        told = [each.value for each in client.get_metric_history(run_id, name)]
        np.testing.assert_allclose(told, history[name])
    assert len(history) > 2
    (artifact,) = client.list_artifacts(run_id, "tfuq")
    page = pathlib.Path(client.download_artifacts(run_id, artifact.path)).read_text()
    assert artifact.path == "tfuq/report.html" and "Mine" in page
    assert client.get_run(run_id).data.tags["tfuq.version"] == tfuq.__version__


class Interrupts(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def compiled():
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def statuses(mlflow):
    """Of all runs, the oldest first."""
    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "tests"]
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run.info.status for run in runs]


def test_a_training_that_did_not_end_is_no_finished_run(mlflow):
    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=[MLflowLogger(), Interrupts()])
    with pytest.warns(UserWarning, match="did not end was closed as FAILED"):
        model.fit(X, Y, verbose=0, callbacks=[MLflowLogger()])
    assert statuses(mlflow) == ["FAILED", "FINISHED"] and mlflow.active_run() is None
    broken = MLflowLogger((X, Y), {"rule": "none.json"})  # a report that cannot be made
    with pytest.raises((ValueError, OSError)):
        model.fit(X, Y, verbose=0, callbacks=[broken])
    assert statuses(mlflow)[-1] == "FAILED" and mlflow.active_run() is None
    with mlflow.start_run() as run:  # the caller's, which stays open
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, verbose=0, callbacks=[MLflowLogger(), Interrupts()])
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert len(statuses(mlflow)) == 4


ENDS = """
import sys
sys.path[:0] = {paths!r}
import mlflow
from test_mlflow import X, Y, Interrupts, MLflowLogger, compiled
mlflow.set_tracking_uri({store!r})
mlflow.set_experiment("tests")
compiled().fit(X, Y, verbose=0, callbacks=[MLflowLogger(), Interrupts()])
"""


@pytest.mark.slow
def test_a_process_that_is_interrupted_leaves_a_failed_run(mlflow, tmp_path):
    """MLflow itself would tell that it was finished."""
    paths = [str(pathlib.Path(tfuq.__file__).parents[1]), str(pathlib.Path(__file__).parent)]
    script = ENDS.format(paths=paths, store=mlflow.get_tracking_uri())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode and "KeyboardInterrupt" in done.stderr, done.stderr
    assert statuses(mlflow) == ["FAILED"]


def test_what_is_no_report_is_refused_before_the_training(mlflow):
    for data, options, says in (
        ((X, None), None, "`data`"),
        ((X, Y), {"path": "x"}, "report_options"),
        ((X, Y), {"colour": "red"}, "report_options"),
        (None, {"title": "x"}, "report_options"),
        ((X, Y), "title", "report_options"),
    ):
        with pytest.raises(ValueError, match=says):
            MLflowLogger(data, options)
