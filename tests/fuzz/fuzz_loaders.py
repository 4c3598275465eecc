"""Every public loader of JSON and npz files, as a function of bytes that may be anything.

What is read is used, too. Only a ValueError or an OSError may come out; a loader that answers, must
answer as the object would that somebody had made with these numbers.
"""

import io
import json
import pathlib
import shutil
import tempfile
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tfuq._files.reading import sealed
from tfuq.callbacks import SnapshotEnsemble
from tfuq.callbacks.backup import FILE, read_backup, write_backup
from tfuq.datasets import from_npz
from tfuq.ensembles import DeepEnsemble
from tfuq.ood import KNN, GradientDensity, Mahalanobis, MaxSoftmax, load_detector
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import (
    BetaCalibration,
    ConformalPredictor,
    DirichletCalibration,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
    VennAbersCalibration,
)

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), size=30)
LABELS = np.arange(30) % 3
CALIBRATIONS = {
    kind.__name__: kind
    for kind in (
        *(TemperatureScaling, VectorScaling, IsotonicCalibration),
        *(BetaCalibration, DirichletCalibration, VennAbersCalibration),
    )
}
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="tfuq_fuzz_"))
ENSEMBLE, SNAPSHOTS, SCORES = FOLDER / "ensemble", FOLDER / "snapshots", FOLDER / "scores"
MANIFESTS = {ENSEMBLE: "ensemble.json", SNAPSHOTS: "snapshots.json", SCORES: "_manifest.json"}


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    return model


# --- Loaders --------------------------------------------------------------------------------------


def written(data, name):
    path = FOLDER / name
    path.write_bytes(data)
    return path


def resealed(data):
    """A JSON object with the hash that belongs to it: as of an enemy, not of a broken disk."""
    try:
        content = json.loads(data)
        content.pop("sha256", None)
        return json.dumps(sealed(content)).encode()
    except (AttributeError, RecursionError, TypeError, ValueError):
        return data


def rule(data):
    found = RejectionRule.load(written(data, "rule.json"))
    found.accept(PROBS, ["a"] * 30 if found.by == "group" else None, unknown_group="reject")
    found.describe()


def rule_text(data):
    RejectionRule.from_json(data.decode("utf-8", "replace"))


def conformal(data):
    found = ConformalPredictor.load(written(data, "sets.json"))
    is_weighted = "weights" in found.fitted_to  # such one needs those of new examples
    found.predict_set(PROBS, weights=np.ones(len(PROBS)) if is_weighted else None)


def calibration(data):
    path = written(data, "calibration.json")
    for kind in CALIBRATIONS.values():
        if kind.__name__.encode() in data[:200]:
            kind.load(path).transform(PROBS)


def detector(data):
    found = load_detector(written(data, "detector.npz"))
    found.score_features(np.ones((2, 3)))
    found.threshold_at(0.9)


def dataset(data):
    try:
        for images, labels in from_npz(written(data, "data.npz"), None).take(2):
            np.asarray(images), np.asarray(labels)
    except tf.errors.InvalidArgumentError as error:  # TensorFlow's own, of a picture in the file
        if "JPEG" not in str(error) and "image" not in str(error):
            raise
        raise ValueError(str(error)) from error


def backup(data):
    read_backup(written(data, FILE), network_of_backup().variables)


def in_folder(folder, load):
    """A loader of a folder, whose list the bytes are."""

    def loaded(data):
        (folder / MANIFESTS[folder]).write_bytes(data)
        return load(folder)

    return loaded


def network_of_backup():
    if not hasattr(network_of_backup, "model"):
        network_of_backup.model = network()
    return network_of_backup.model


def members(load, seed):
    """A loader of npz files, of which the bytes are one member: with the checksum that it has."""
    names = [info.filename for info in zipfile.ZipFile(io.BytesIO(seed)).infolist()]

    def loaded(data):
        chosen = names[data[0] % len(names)] if data else None
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(made, "w") as new:
            for name in names:
                new.writestr(name, data[1:] if name == chosen else old.read(name))
        return load(made.getvalue())

    return loaded


def members_of(seed):
    """The contents of the members, as `members` takes them."""
    archive = zipfile.ZipFile(io.BytesIO(seed))
    return [bytes([i]) + archive.read(info) for i, info in enumerate(archive.infolist())]


# --- Good files -----------------------------------------------------------------------------------


def bytes_of(thing, name="seed"):
    path = FOLDER / f"{name}.tmp"
    thing.save(path)
    return path.read_bytes()


def npz(**arrays):
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def fitted_rules():
    fit = RejectionRule.fit
    yield fit(PROBS, LABELS, target_coverage=0.5)
    yield fit(PROBS, LABELS, "margin", target_coverage=0.5, by="class")
    yield fit(PROBS, LABELS, "entropy", costs={"error": 5, "rejection": 1})
    groups = ["a", "b"] * 15
    yield fit(PROBS, LABELS, target_coverage=0.5, by="group", groups=groups)
    yield fit(PROBS, LABELS, loss={"error": 0.9, "false negatives of 1": 0.9})


def fitted_detectors():
    features = RNG.normal(size=(36, 3))
    yield MaxSoftmax().fit_features(features)
    yield KNN(3).fit_features(features)
    yield Mahalanobis().fit_features(features, np.arange(36) % 3)
    yield GradientDensity().fit_features(np.square(features))
    thresholded = KNN(2).fit_features(features)
    thresholded.threshold_at(0.9)
    yield thresholded


def folders():
    """Writes the folders, and gives their lists."""
    model = network()
    DeepEnsemble.from_models([model], seed=3).save(ENSEMBLE)
    x, callback = RNG.normal(size=(6, 4)), SnapshotEnsemble(SNAPSHOTS, every=1)
    model.fit(x, np.arange(6) % 3, epochs=2, verbose=0, callbacks=[callback])
    score_dataset(model, x.astype("float32"), SCORES, shard_size=3, verbose=0)
    for folder, name in MANIFESTS.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(sorted(path.name for path in folder.iterdir()))
        yield (folder / name).read_bytes()


def make_targets():
    """`{name: (loader of bytes, good files)}`."""
    rules = [bytes_of(each) for each in fitted_rules()]
    sets = [
        bytes_of(ConformalPredictor.fit(PROBS, LABELS, score, alpha=0.3, **more))
        for score, more in (
            *(("lac", {}), ("aps", {}), ("raps", {"penalty": 0.1, "k_reg": 1})),
            ("lac", {"weights": np.linspace(0.5, 2, len(PROBS))}),
        )
    ]
    scalings = [bytes_of(kind().fit(PROBS, LABELS)) for kind in CALIBRATIONS.values()]
    detectors = [bytes_of(each) for each in fitted_detectors()]
    images = RNG.integers(256, size=(4, 5, 5, 3), dtype="uint8")
    jpeg = [tf.io.encode_jpeg(image).numpy() for image in images]
    offsets = np.cumsum([0, *map(len, jpeg)])
    data = [npz(x=images, y=np.arange(4)), npz(images=images[..., 0] / 255.0, labels=np.eye(4))]
    stored = npz(bytes=np.frombuffer(b"".join(jpeg), "uint8"), offsets=offsets, y=np.arange(4))
    write_backup(FOLDER / FILE, network_of_backup().variables, 3)
    targets = {
        "rule": (rule, rules),
        "rule resealed": (lambda data: rule(resealed(data)), rules),
        "rule text": (rule_text, [r.to_json().encode() for r in fitted_rules()]),
        "conformal": (conformal, sets),
        "conformal resealed": (lambda data: conformal(resealed(data)), sets),
        "calibration": (calibration, scalings),
        "calibration resealed": (lambda data: calibration(resealed(data)), scalings),
        "detector": (detector, detectors),
        "data": (dataset, [*data, stored]),
        "data members": (members(dataset, data[0]), members_of(data[0])),
        "jpeg members": (members(dataset, stored), members_of(stored)),
        "backup": (backup, [(FOLDER / FILE).read_bytes()]),
    }
    for number, seed in enumerate(detectors):
        targets[f"detector members {number}"] = members(detector, seed), members_of(seed)
    loads = {
        ENSEMBLE: DeepEnsemble.load,
        SNAPSHOTS: lambda folder: SnapshotEnsemble.load(folder, network),
        SCORES: read_scores,
    }
    for (folder, load), seed in zip(loads.items(), folders(), strict=True):
        loader = in_folder(folder, load)
        targets[folder.name] = loader, [seed]
        targets[f"{folder.name} resealed"] = _resealing(loader), [seed]
    return targets


def _resealing(loader):
    return lambda data: loader(resealed(data))


def accepts(loader, data):
    """Whether a loader takes the bytes; False if it refuses, and any other error comes out."""
    try:
        loader(data)
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError) or not str(error):
            raise AssertionError("an error that does not say what is wrong") from error
        return False
    return True


def clean_up():
    shutil.rmtree(FOLDER, ignore_errors=True)
