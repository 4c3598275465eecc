"""All that tfuq writes, in one table: who writes it, who reads it.

`write(path, number)` makes the artifact at `path`, a file or a folder, and another one for another
number; `read(path)` gives back what it says, as a list of arrays, numbers and texts.
"""

import json
import pathlib
from typing import NamedTuple

import keras
import numpy as np

import tfuq
from tfuq._files.tables import write_csv
from tfuq._files.writing import prepare_folder
from tfuq.callbacks import RejectionEvaluator, SnapshotEnsemble
from tfuq.callbacks.backup import FILE, read_backup, read_random, write_backup
from tfuq.datasets import from_npz
from tfuq.ensembles import DeepEnsemble
from tfuq.export import export, export_litert, verify_export
from tfuq.ood import Mahalanobis, load_detector
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import (
    ConformalPredictor,
    ConformalRegressor,
    Monitor,
    RejectionRule,
    TemperatureScaling,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4)).astype("float32")
Y = np.arange(30) % 3
PROBS = RNG.dirichlet(np.ones(3), size=30)


class Artifact(NamedTuple):
    write: object
    read: object = None  # None for what only people and other programs read
    large: bool = True  # whether two or three pages of memory do not hold it


def network(number=0, units=3, width=600):
    keras.utils.set_random_seed(number)
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(units, "softmax")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False, run_eagerly=True)
    return model


def weights(model):
    return [np.asarray(variable) for variable in model.variables]


# --- Small objects: JSON ------------------------------------------------------------------------


def write_rule(path, number):
    RejectionRule.fit(PROBS, Y, target_coverage=0.5 + number / 10).save(path)


def write_monitor(path, number):
    rule = RejectionRule.fit(np.tile([[0.9, 0.1]], (40, 1)), np.zeros(40, int), target_risk=0.2)
    rule.monitor().update(np.tile([[0.9, 0.1]], (10 + number, 1))).save(path)


def write_calibration(path, number):
    TemperatureScaling(temperature=1.5 + number).save(path)


def write_conformal(path, number):
    ConformalPredictor.fit(PROBS, Y, alpha=0.2 + number / 10).save(path)


def write_intervals(path, number):
    ConformalRegressor.fit(X[:, 0], X[:, 1], alpha=0.2 + number / 10).save(path)


def read_fitted(kind):
    def read(path):
        return [json.dumps(kind.load(path).get_config(), sort_keys=True)]

    return read


# --- Arrays -------------------------------------------------------------------------------------


def write_detector(path, number):
    rng = np.random.default_rng(number)
    detector = Mahalanobis().fit_features(rng.normal(size=(60, 40)), np.arange(60) % 3)
    detector.threshold_at(0.9)
    detector.save(path)


def read_detector(path):
    detector = load_detector(path)
    return [detector.score_features(np.ones((2, 40))), *detector.threshold]


def write_data(path, number):
    rng = np.random.default_rng(number)
    images = rng.integers(256, size=(12, 20, 20), dtype="uint8")
    with open(path, "wb") as file:  # there is no writer of data in tfuq
        np.savez_compressed(file, x=images, y=np.arange(12) % 3)


def read_data(path):
    return [np.asarray(part) for pair in from_npz(path, None, label="y") for part in pair]


def write_kept_backup(path, number):
    if not path.exists():
        prepare_folder("backup_dir", path)  # as BackupAndRestore does when training begins
    write_backup(path / FILE, network(number).variables, 3 + number)


def read_kept_backup(path):
    arrays, epoch = read_backup(path / FILE, network().variables)
    return [*arrays, epoch, str(read_random(path / FILE, []) or [])]


# --- Models -------------------------------------------------------------------------------------


def write_model(path, number):
    network(number).save(path)  # Keras writes it, tfuq reads it


def read_model(path):
    return weights(DeepEnsemble.from_checkpoints([path]).members[0])


def write_ensemble(path, number):
    DeepEnsemble.from_models([network(number), network(number + 10)], seed=number).save(path)


def read_ensemble(path):
    ensemble = DeepEnsemble.load(path)
    return [array for member in ensemble for array in weights(member)] + [ensemble.seed]


def write_snapshots(path, number):
    """Goes on from what is there, as a training that was resumed."""
    model = network(number)
    callback = SnapshotEnsemble(path, every=1)
    done = len(list(path.glob("cycle_*")))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(done)
    callbacks, arguments = [callback], {"verbose": 0, "shuffle": False}
    model.fit(X, Y, 30, epochs=done + 1, initial_epoch=done, callbacks=callbacks, **arguments)


def read_snapshots(path):
    ensemble = SnapshotEnsemble.load(path, network)
    return [array for member in ensemble for array in weights(member)]


def write_export(path, number):
    export(network(number), path, overwrite=True)


def read_export(path):
    verify_export(path, X, network().predict(X, verbose=0))
    return []


def write_litert(path, number):
    """In a folder of its own: a model, and what is known of it beside it."""
    export_litert(network(number), path / "model.tflite", overwrite=True)


def read_litert(path):
    verify_export(path / "model.tflite", X, network().predict(X, verbose=0))
    return []


# --- Scores and reports -------------------------------------------------------------------------


def score(form):
    def write(path, number):
        options = {"shard_size": 20, "verbose": 0, "resume": False, "format": form}
        score_dataset(network(number), (X, Y), path, **options)

    return write


def read_shards(path):
    scores = read_scores(path)
    return [item for name in sorted(scores) for item in (name, np.asarray(scores[name]))]


def write_page(path, number):
    tfuq.report.html((PROBS, Y), path, seed=number, title=str(number))


def write_rejection(path, number):
    evaluator = RejectionEvaluator((X, Y), (0.5, 0.9), verbose=0)
    model = network(number)
    model.fit(X, Y, epochs=2 + number, callbacks=[evaluator], verbose=0)
    evaluator.to_csv(path)


def write_table(path, number):
    write_csv(path, ["a", "b"], [[i, number] for i in range(3000)])


ARTIFACTS = {
    "rule.json": Artifact(write_rule, read_fitted(RejectionRule), large=False),
    "monitor.json": Artifact(write_monitor, read_fitted(Monitor), large=False),
    "calibration.json": Artifact(write_calibration, read_fitted(TemperatureScaling), large=False),
    "conformal.json": Artifact(write_conformal, read_fitted(ConformalPredictor), large=False),
    "intervals.json": Artifact(write_intervals, read_fitted(ConformalRegressor), large=False),
    "detector.npz": Artifact(write_detector, read_detector),
    "data.npz": Artifact(write_data, read_data),
    "backup": Artifact(write_kept_backup, read_kept_backup),
    "model.keras": Artifact(write_model, read_model),
    "ensemble": Artifact(write_ensemble, read_ensemble),
    "snapshots": Artifact(write_snapshots, read_snapshots),
    "exported": Artifact(write_export, read_export),
    "litert": Artifact(write_litert, read_litert),
    "scores.parquet": Artifact(score("parquet"), read_shards, large=False),
    "scores.tfrecord": Artifact(score("tfrecord"), read_shards, large=False),
    "page.html": Artifact(write_page),
    "rejection.csv": Artifact(write_rejection, large=False),
    "table.csv": Artifact(write_table),
}
BY_OTHERS = ("model.keras", "data.npz")  # written by Keras and NumPy


def files_of(path):
    path = pathlib.Path(path)
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def content_of(path):
    return {str(file): file.read_bytes() for file in files_of(path)}


def same(found, expected):
    """Whether two answers of `read` are the same, to the bit."""

    def bits(item):
        array = np.asarray(item)
        return (str(array.dtype), array.shape, array.tobytes() if array.dtype != "O" else str(item))

    return [bits(item) for item in found] == [bits(item) for item in expected]
