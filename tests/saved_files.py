"""What each saved file of `fixtures/saved` is asked, by the commit that wrote it and by this one.

`ASK[kind](path, given)` loads the file or folder `saved/<kind>/<name>` with the package as it is,
and answers with a dict of arrays. `given` are the inputs, by name. Files are asked in a copy of
`saved`, because some go on being written. All of it goes through what tfuq documents, so that it
stays as it is when files move inside the package.
"""

import csv
import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import cli, ood
from tfuq.callbacks import (
    BackupAndRestore,
    RejectionEvaluator,
    SaliencySelection,
    SnapshotEnsemble,
)
from tfuq.corruptions import corruption_report
from tfuq.ensembles import DeepEnsemble
from tfuq.export import verify_export
from tfuq.layers import MCDropout, SparseBayesDense
from tfuq.optimizers import DiscriminativeLearningRate
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import (
    ConformalPredictor,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
    subgroup_report,
)

EAGER = {"run_eagerly": True, "jit_compile": False}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy


# --- Models ---------------------------------------------------------------------------------------


def network(*more, optimizer="sgd"):
    """The small network that snapshots and backups are of, with its logits at the end."""
    hidden = keras.layers.Dense(4, "tanh", name="hidden")
    last = more or [keras.layers.Dense(3, name="last")]
    model = keras.Sequential([keras.Input((4,)), hidden, *last])
    model.compile(optimizer, CROSS_ENTROPY(from_logits=True), **EAGER)
    return model


def loaded(path):
    return keras.models.load_model(path, safe_mode=True)


shared = functools.cache(loaded)


def model_of(path, name):
    """The saved model that the file at `path` goes with, one for all files."""
    return shared(path.parents[1] / "models" / f"{name}.keras")


def row_of(variables):
    """The numbers of all variables, one after the other."""
    rows = [np.ravel(np.asarray(variable)).astype("float64") for variable in variables]
    return np.concatenate(rows) if rows else np.zeros(0)


def by_name(prefix, outputs):
    """The tensors of a model's outputs, by the names of the outputs and their places in these."""
    outputs = outputs if isinstance(outputs, dict) else {"output": outputs}
    return {
        f"{prefix}/{name}/{i}": array_of(tensor)
        for name, output in outputs.items()
        for i, tensor in enumerate(keras.tree.flatten(output))
    }


def array_of(tensor):
    """NumPy's files know no bfloat16."""
    array = np.asarray(tensor)
    return array.astype("float32") if array.dtype.kind == "V" else array


def ask_model(path, given):
    """Weights first: a prediction moves the states of seeds."""
    model = loaded(path)
    for layer in model._flatten_layers():
        if isinstance(layer, MCDropout):  # what a prediction was then
            layer.predictive = "thinned"
        if layer.name == "specks":  # was given images from 0 to 1, which are refused now
            layer.value_range = (0.0, 1.0)
    x = given.get(path.stem, given["x"])
    found = {"weights": row_of(model.variables), **by_name("predicted", model(x))}
    found |= by_name("trained", model(x, training=True))
    if model.losses:
        found["losses"] = np.array([float(loss) for loss in model.losses])
    return found


def ask_appended(path, given):
    return by_name("predicted", loaded(path)(given["near"]))


def ask_metrics(path, given):
    x, y = (given[f"{path.stem}_{part}"] for part in ("scores", "labels"))
    figures = loaded(path).evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    return {name: np.array(value) for name, value in figures.items()}


def ask_optimizer(path, given):
    """The state of the optimizer, and the step that it takes from there."""
    model = loaded(path)
    found = {"state": row_of(model.optimizer.variables)}
    found["factors"] = np.array(list(model.optimizer.factors.values()))
    model.train_on_batch(given["x"], given["y"])
    return {**found, "trained": row_of(model.trainable_variables)}


# --- What is fitted once --------------------------------------------------------------------------

FITTED = {
    "rule": RejectionRule,
    "sets": ConformalPredictor,
    "temperature": TemperatureScaling,
    "vector": VectorScaling,
    "isotonic": IsotonicCalibration,
}


def text_of(config):
    return np.array(json.dumps(config, sort_keys=True))


def fitted_of(path, name):
    return FITTED[name.split("_")[0]].load(path.parents[1] / "fitted" / f"{name}.json")


def ask_fitted(path, given):
    fitted = fitted_of(path, path.stem)
    found = {"config": text_of(fitted.get_config())}
    kind = path.stem.partition("_")[2]  # of what it was fitted to
    x = given[kind if kind in ("stack", "multi_label") else "probs"]
    if isinstance(fitted, RejectionRule):
        groups = given["groups"] if fitted.by == "group" else None
        return found | {"scores": fitted.score_of(x), "accepted": fitted.accept(x, groups)}
    if isinstance(fitted, ConformalPredictor):
        return found | {"sets": fitted.predict_set(x), "accepted": fitted.accept(x)}
    return {**found, "transformed": np.asarray(fitted.transform(x))}


# --- Detectors ------------------------------------------------------------------------------------

# What `score_features` takes; the others move their inputs, so that features are not enough.
FEATURES = {
    "MaxSoftmax": "logits",
    "MaxLogit": "logits",
    "Energy": "logits",
    "Entropy": "logits",
    "Mahalanobis": "hidden",
    "RelativeMahalanobis": "hidden",
    "KNN": "hidden",
    "ViM": "hidden",
    "ReAct": "hidden",
    "GradNorm": "hidden",
    "MutualInformation": "stack",
    "GradientDetector": "norms",
    "GradientDensity": "norms",
}


@functools.cache
def gradients_of(model):
    return ood.GradientFeatures(model)


def looked_at(path):
    """The model, or the features of one, that the detector of this file looks at."""
    if path.stem == "MutualInformation":
        return model_of(path, "random")
    model = model_of(path, "network")
    return gradients_of(model) if path.stem.startswith("Gradient") else model


def ask_detector(path, given):
    bare = ood.load_detector(path)
    whole = type(bare).load(path, model=looked_at(path))
    found = {"config": text_of(bare.get_config()), "threshold": np.array(bare.threshold)}
    found |= {"scores": whole.score(given["far"]), "detected": whole.detect(given["near"])}
    if path.stem in FEATURES:
        found["of_features"] = bare.score_features(given[FEATURES[path.stem]])
    return found


# --- Folders --------------------------------------------------------------------------------------


def ask_ensemble(path, given):
    ensemble = DeepEnsemble.load(path)
    found = {f"weights_{i}": row_of(member.variables) for i, member in enumerate(ensemble)}
    return found | {"seed": np.array(ensemble.seed), "predicted": ensemble.predict(given["x"])}


def ask_snapshots(path, given):
    """The members, and what the folder holds when the training goes on."""
    ensemble = SnapshotEnsemble.load(path, network)
    found = {f"weights_{i}": row_of(member.variables) for i, member in enumerate(ensemble)}
    found["predicted"] = ensemble.predict(given["x"])
    fit_snapshots(path, given, epochs=len(ensemble) + 1, initial_epoch=len(ensemble))
    return {**found, "later": np.array(sorted(file.name for file in path.iterdir()))}


def fit_snapshots(path, given, **epochs):
    model = network()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(epochs.get("initial_epoch", 0))  # one step is an epoch
    options = {"batch_size": len(given["y"]), "shuffle": False, "verbose": 0}
    model.fit(
        given["x"], given["y"], callbacks=[SnapshotEnsemble(path, every=1)], **epochs, **options
    )


def ask_backup(path, given):
    """What the training comes to that goes on with the third epoch."""
    model = fit_backup(path, given, epochs=3)
    found = {"epochs": np.array(model.history.epoch), "weights": row_of(model.variables)}
    return {**found, "state": row_of(model.optimizer.variables)}


def fit_backup(path, given, epochs):
    layers, optimizer, callbacks = BACKED[path.name]()
    model = network(*layers, optimizer=optimizer)
    callbacks = [*callbacks, BackupAndRestore(path, delete_checkpoint=False)]
    options = {"shuffle": False, "verbose": 0, "callbacks": callbacks}
    model.fit(given["x"], given["y"], batch_size=8, epochs=epochs, **options)
    return model


def backed_dropout():
    """States of seeds, and an optimizer inside another one."""
    layers = [MCDropout(0.3, seed=3), keras.layers.Dense(3)]
    return layers, DiscriminativeLearningRate("adam", min_factor=0.1), []


def backed_sparse():
    """Weights that have become random meanwhile."""
    layers = [SparseBayesDense(3, r_bayes=0.5, kl_weight=0.01)]
    return layers, "adam", [SaliencySelection(after_epoch=1)]


BACKED = {"dropout": backed_dropout, "sparse": backed_sparse}


@functools.cache
def served(path):
    return tf.saved_model.load(str(path))


def ask_export(path, given):
    """What TensorFlow alone reads from the SavedModel, and whether `path` agrees with it."""
    outputs = served(path.with_name("served")).serve(given["near"])
    outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
    check = verify_export(path, given["near"], outputs, tolerance=1e-5)
    return {"verified": np.array(sorted(check.differences)), **outputs}


class Batches(keras.utils.PyDataset):
    """Eight examples at a time; of `stop` batches, the process is killed."""

    def __init__(self, x, y, stop=None):
        super().__init__()
        self.x, self.y, self.stop = x, y, stop

    @property
    def num_batches(self):
        return -(-len(self.x) // 8)

    def __getitem__(self, i):
        if i == self.stop:
            raise KeyboardInterrupt
        rows = slice(8 * i, 8 * i + 8)
        return self.x[rows], self.y[rows]


def write_scores(path, given, stop=None):
    model, rule = model_of(path, "network"), fitted_of(path, "rule")
    detector = ood.load_detector(path.parents[1] / "detectors" / "Energy.npz", model)
    data = Batches(given["x"], given["y"], stop)
    return score_dataset(model, data, path, shard_size=10, rule=rule, ood=detector, verbose=0)


def ask_scores(path, given):
    """The rows of what was finished. Scores that were begun then are not gone on with.

    They do not tell whether all data are the same, but of the first batch alone.
    """
    if path.stem == "begun":
        with pytest.raises(ValueError, match="earlier version"):
            write_scores(path, given)
        return {}
    return read_scores(path)


# --- Tables ---------------------------------------------------------------------------------------


def write_subgroups(path, given):
    arrays = given["probs"], given["labels"], given["groups"]
    subgroup_report(fitted_of(path, "rule"), *arrays, target_risk=0.3).to_csv(path)


def write_corruptions(path, given):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    model.add(keras.layers.Softmax())
    model.compile(loss=CROSS_ENTROPY(), **EAGER)
    arrays = given["pictures"], np.arange(len(given["pictures"])) % 3
    corruption_report(model, *arrays, ["gaussian_noise"], (1, 5), verbose=0).to_csv(path)


def write_rejection(path, given):
    model = network()
    model.set_weights(model_of(path, "network").get_weights())
    data, options = (given["x"], given["y"]), {"batch_size": 20, "shuffle": False, "verbose": 0}
    evaluator = RejectionEvaluator(data, (0.4, 0.6), from_logits=True, verbose=0)
    model.fit(*data, epochs=2, callbacks=[evaluator], **options)
    evaluator.to_csv(path)


def write_predictions(path, given):
    """By the command line, which reads a model, a rule and a detector."""
    root, data = path.parents[1], path.with_suffix(".npz")
    np.savez(data, x=given["x"], y=given["y"])
    files = [root / "models/network.keras", data, path]
    files += ["--rule", root / "fitted/rule.json", "--ood", root / "detectors/Energy.npz"]
    assert cli.main(["predict", *map(str, files), "--quiet", "--overwrite"]) == 0
    data.unlink()


TABLES = {
    "subgroups.csv": write_subgroups,
    "corruptions.csv": write_corruptions,
    "rejection.csv": write_rejection,
    "predictions.csv": write_predictions,
}


def ask_table(path, given):
    """The columns of the table, written again: nothing in tfuq reads one."""
    header = path.read_text().splitlines()[0]
    TABLES[path.name](path, given)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    columns = zip(*rows[1:], strict=True)
    found = {name: numbers_or_texts(c) for name, c in zip(rows[0], columns, strict=True)}
    return {"header": np.array(header), "columns": np.array(rows[0]), **found}


def numbers_or_texts(cells):
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(cells)


# --- All ------------------------------------------------------------------------------------------

ASK = {
    "models": ask_model,
    "appended": ask_appended,
    "metrics": ask_metrics,
    "optimizers": ask_optimizer,
    "fitted": ask_fitted,
    "detectors": ask_detector,
    "ensembles": ask_ensemble,
    "snapshots": ask_snapshots,
    "backups": ask_backup,
    "exports": ask_export,
    "scores": ask_scores,
    "tables": ask_table,
}


def ask(root, name, given):
    """The answers of the file `<kind>/<name>` of the folder `root`."""
    keras.utils.set_random_seed(0)
    return ASK[name.split("/")[0]](root / name, given)


def copy_of(saved, folder):
    return shutil.copytree(saved, folder / "saved")


def probe():
    """Numbers by Keras, TensorFlow and NumPy alone, which tell one machine from another."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(9, 7)), rng.normal(size=(7, 5))
    single = tf.constant(x, "float32") @ tf.constant(w, "float32")
    drawn = tf.random.stateless_normal((20,), (1, 2), alg="philox")
    parts = [single, tf.nn.softmax(single), tf.tanh(single), drawn, tf.linalg.cholesky(x.T @ x)]
    parts += [x @ w, np.exp(x), np.linalg.eigh(x.T @ x)[1], np.linalg.svd(x)[1]]
    return row_of(parts)
