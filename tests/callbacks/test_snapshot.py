"""What a cycle ends with is kept, whole, and comes back as an ensemble."""

import contextlib
import json
import os
import pathlib

import h5py
import keras
import numpy as np
import pytest
from contract import two_devices

from tfuq._models.train_step import announce_cycles
from tfuq.callbacks import SGDR, SnapshotEnsemble
from tfuq.callbacks._snapshot_files import MAX_BYTES, Snapshot, best, snapshot_name
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCDropout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.integers(3, size=16)
STEPS = 4  # an epoch
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SGD = keras.optimizers.SGD


def linear(optimizer=None, loss=LOGITS, **kwargs):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(optimizer or SGD(0.1), loss, jit_compile=False, **kwargs)
    model.optimizer.build(model.trainable_variables)
    return model


def train(callback, model, epochs, *, completed=None, first=0, per_batch=1, logs=(), size=1):
    """Calls `callback` as `fit` does; after `t` steps the bias of the model is `t`.

    `first` is the epoch to begin with, `size` the number of batches in an execution, `per_batch`
    the optimizer's steps in a batch, and `logs` those of each epoch.
    """
    callback.set_model(model)
    callback.on_train_begin()
    announce_cycles(model, callback, completed)  # last, whatever the order of the callbacks
    step = first * STEPS * per_batch
    for epoch in range(first, epochs):
        reach(model, step)
        callback.on_epoch_begin(epoch)
        for end in range(size, STEPS + 1, size):
            reach(model, step + end * per_batch)
            callback.on_train_batch_end(end - 1)
        step += STEPS * per_batch
        callback.on_epoch_end(epoch, logs[epoch] if logs else {})
    callback.on_train_end()
    return callback


def reach(model, step):
    model.optimizer.iterations.assign(int(step))
    model.layers[-1].bias.assign(np.full(3, step, "float32"))


def by_thirds(step):
    """Cycles of three steps."""
    return step // 3


def steps_of(callback):
    return [snapshot.step for snapshot in callback.snapshots]


def biases(directory):
    """What each snapshot in the directory holds, by its name, listed or not."""
    found = {}
    for path in sorted(pathlib.Path(directory).glob("cycle_*.weights.h5")):
        with h5py.File(path) as file:
            found[path.name] = file["layers/dense/vars/1"][0].item()
    return found


def listed(directory):
    return json.loads((pathlib.Path(directory) / "snapshots.json").read_text())["snapshots"]


def files_of(*pairs):
    """Names of files by `(cycle, step)`, and the step that each holds."""
    return {snapshot_name(cycle, step): step for cycle, step in pairs}


# --- In a training ----------------------------------------------------------------------------


class Weights(keras.callbacks.Callback):
    """Notes the weights after each step."""

    def on_train_begin(self, logs=None):
        self.after = {}

    def on_train_batch_end(self, batch, logs=None):
        self.after[int(self.model.optimizer.iterations)] = self.model.get_weights()


@pytest.mark.slow_cases("True")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("is_first", [True, False])
def test_with_sgdr(is_first, tmp_path):
    """Cycles of 0.75, 1.5 and 3 epochs of four steps end at 3, 9 and 21, wherever SGDR stands."""
    weights, schedule = Weights(), SGDR(0.1, cycle_length=0.75, cycle_mult=2)
    snapshots = SnapshotEnsemble(tmp_path / "deep" / "er", keep=2, monitor="val_acc")
    callbacks = [snapshots, schedule] if is_first else [schedule, snapshots]
    model = linear(metrics=["acc"])
    data = {"validation_data": (X, Y), "batch_size": 16 // STEPS, "epochs": 6, "verbose": 0}
    history = model.fit(X, Y, callbacks=[*callbacks, weights], **data).history
    ends = [(1, 3, 0), (2, 9, 2), (3, 21, 5)]
    expected = [
        Snapshot(snapshot_name(cycle, step), cycle, step, epoch, history["val_acc"][epoch])
        for cycle, step, epoch in ends
    ]
    assert snapshots.snapshots == best(expected, 2, 1)
    assert snapshots.paths == [tmp_path / "deep" / "er" / s.file for s in snapshots.snapshots]
    for member, step in zip(snapshots.ensemble(), steps_of(snapshots), strict=True):
        for found, known in zip(member.get_weights(), weights.after[step], strict=True):
            np.testing.assert_array_equal(found, known)


def test_a_cycle_ends_within_an_execution(tmp_path):
    """Executions end at steps 2, 4, 6 and so on, cycles at 3, 6, 9 and 12."""
    callback = train(SnapshotEnsemble(tmp_path), linear(), 3, completed=by_thirds, size=2)
    assert steps_of(callback) == [4, 6, 10, 12]
    assert biases(tmp_path) == files_of((1, 4), (2, 6), (3, 10), (4, 12))


def test_several_cycles_end_within_an_execution(tmp_path):
    """The third and fourth cycles end in one execution, as the first and second do."""
    every_two = lambda step: step // 2  # noqa: E731
    callback = train(SnapshotEnsemble(tmp_path), linear(), 2, completed=every_two, size=4)
    assert [(s.cycle, s.step) for s in callback.snapshots] == [(2, 4), (4, 8)]


def test_optimizer_steps_count_not_batches(tmp_path):
    """As with accumulated gradients: two batches a step."""
    callback = SnapshotEnsemble(tmp_path)
    train(callback, linear(), 4, completed=by_thirds, per_batch=0.5)
    assert steps_of(callback) == [3, 6]
    assert [snapshot.epoch for snapshot in callback.snapshots] == [1, 2]


def test_the_optimizer_is_asked_only_where_a_cycle_may_end(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        SnapshotEnsemble,
        "_step",
        lambda self: asked.append(0) or int(self.model.optimizer.iterations),
    )
    train(SnapshotEnsemble(tmp_path), linear(), 10, completed=lambda step: step // 20)
    assert len(asked) == 3  # in the beginning, and after steps 20 and 40


def test_every_so_many_epochs(tmp_path):
    """It needs no cycles, and does not mind them."""
    callback = train(SnapshotEnsemble(tmp_path, every=2), linear(), 5, completed=by_thirds)
    expected = [Snapshot(snapshot_name(c, 8 * c), c, 8 * c, 2 * c - 1) for c in (1, 2)]
    assert callback.snapshots == expected


def test_neither_cycles_nor_epochs(tmp_path):
    with pytest.raises(ValueError, match=r"`every` must.*SGDR.*Received: every=None"):
        linear().fit(X, Y, callbacks=[SnapshotEnsemble(tmp_path)], verbose=0)


def test_no_cycle_ends(tmp_path):
    callback = train(SnapshotEnsemble(tmp_path), linear(), 2, completed=lambda step: 0)
    assert callback.snapshots == [] and callback.paths == []
    with pytest.raises(ValueError, match=r"`directory` must hold snapshots: train until"):
        callback.ensemble()


def test_says_what_it_writes(tmp_path, capsys):
    train(SnapshotEnsemble(tmp_path, every=1, verbose=1), linear(), 1)
    assert f"Epoch 1: SnapshotEnsemble wrote {tmp_path}" in capsys.readouterr().out


@pytest.mark.slow
def test_on_two_devices(tmp_path):
    with two_devices().scope():
        model = linear()
    callback = train(SnapshotEnsemble(tmp_path), model, 2, completed=by_thirds)
    assert biases(tmp_path) == files_of((1, 3), (2, 6))
    assert [member.layers[-1].bias.numpy()[0] for member in callback.ensemble()] == [3, 6]


# --- Which stay -------------------------------------------------------------------------------


def test_the_latest_stay(tmp_path):
    """The last m, as Huang et al. average them."""
    callback = train(SnapshotEnsemble(tmp_path, keep=2), linear(), 3, completed=by_thirds)
    assert biases(tmp_path) == files_of((3, 9), (4, 12))
    assert [entry["file"] for entry in listed(tmp_path)] == list(files_of((3, 9), (4, 12)))
    assert steps_of(callback) == [9, 12]


VALUES = [0.5, 0.2, 0.9, float("nan"), 0.2, 0.7]


@pytest.mark.parametrize(
    "mode, keep, epochs",
    [
        ("min", 2, [1, 4]),  # of equals the later
        ("min", 1, [4]),
        ("max", 3, [0, 2, 5]),
        ("auto", 2, [1, 4]),
        ("max", 5, [0, 1, 2, 4, 5]),  # without the one that is no number
        ("min", None, range(6)),
    ],
)
def test_the_best_stay(mode, keep, epochs, tmp_path):
    logs = [{"val_loss": value} for value in VALUES]
    callback = SnapshotEnsemble(tmp_path, keep, "val_loss", mode=mode, every=1)
    train(callback, linear(), len(VALUES), logs=logs)
    assert [snapshot.epoch for snapshot in callback.snapshots] == list(epochs)
    assert [entry["epoch"] for entry in listed(tmp_path)] == list(epochs)
    assert len(biases(tmp_path)) == len(epochs)
    finite = [None if np.isnan(VALUES[epoch]) else VALUES[epoch] for epoch in epochs]
    assert [snapshot.value for snapshot in callback.snapshots] == finite


def test_values_come_with_the_end_of_the_epoch(tmp_path):
    """Until then the snapshot stays, beside those that it may replace."""
    callback = SnapshotEnsemble(tmp_path, 1, "loss")
    model = linear()
    train(callback, model, 1, completed=by_thirds, logs=[{"loss": 1.0}])
    callback.on_epoch_begin(1)
    reach(model, 6)
    callback.on_train_batch_end(1)
    assert [entry["value"] for entry in listed(tmp_path)] == [1.0, None]
    callback.on_epoch_end(1, {"loss": 2.0})
    assert steps_of(callback) == [3] and biases(tmp_path) == files_of((1, 3))


def test_values_that_are_not_there(tmp_path):
    """What can never come is an error at once, the rest when it is needed; no weights are lost."""
    match = r"`monitor` must.*\['loss', 'val_loss'\].*monitor='val_acc' in epoch 0"
    logs = [{"loss": 1.0, "val_loss": 1.0}]
    callback = SnapshotEnsemble(tmp_path, 2, "val_acc")
    with pytest.raises(ValueError, match=match):
        train(callback, linear(), 1, completed=lambda step: 0, logs=logs)
    with pytest.raises(ValueError, match=match):
        train(callback, linear(), 1, completed=by_thirds, logs=logs)
    assert biases(tmp_path) == files_of((1, 3))
    with pytest.raises(ValueError, match=r"`monitor` must.*'confusion'"):
        rows = [{"confusion": np.ones(2)}]
        train(SnapshotEnsemble(tmp_path, 2, "confusion", every=1), linear(), 1, logs=rows)


def test_validation_in_some_epochs(tmp_path):
    """Cycles of eight steps: every second epoch, as `validation_freq=2`."""
    logs = [{"loss": 1.0}, {"loss": 1.0, "val_loss": 0.5}] * 2
    callback = SnapshotEnsemble(tmp_path, 2, "val_loss")
    train(callback, linear(), 4, completed=lambda step: step // 8, logs=logs)
    assert [snapshot.value for snapshot in callback.snapshots] == [0.5, 0.5]


def test_what_is_better_is_unknown(tmp_path):
    callback = SnapshotEnsemble(tmp_path, 2, "learning_rate", every=1)
    with pytest.raises(ValueError, match=r"`mode` must be 'min' or 'max'.*mode='auto'"):
        train(callback, linear(), 1, logs=[{"learning_rate": 1.0}])


# --- Resumed ----------------------------------------------------------------------------------


def test_a_resumed_training_keeps_what_it_had(tmp_path):
    """Killed after epoch 3, it goes on from epoch 2: step 8."""
    train(SnapshotEnsemble(tmp_path, keep=3), linear(), 3, completed=by_thirds)
    assert biases(tmp_path) == files_of((2, 6), (3, 9), (4, 12))
    model, callback = linear(), SnapshotEnsemble(tmp_path, keep=3)
    train(callback, model, 2, completed=by_thirds, first=2)  # no epoch: nothing is written
    assert biases(tmp_path) == files_of((2, 6), (3, 9), (4, 12))
    train(callback, model, 3, completed=lambda step: step // 4, first=2)
    assert steps_of(callback) == [6, 12]  # what came after step 8 is forgotten
    assert biases(tmp_path) == files_of((2, 6), (3, 12))


def test_another_training_in_the_directory(tmp_path):
    """The old snapshots stay until there is a new one, and never join it."""
    train(SnapshotEnsemble(tmp_path), linear(), 3, completed=by_thirds)
    callback = train(SnapshotEnsemble(tmp_path), linear(), 1, completed=lambda step: 0)
    assert callback.snapshots == [] and len(biases(tmp_path)) == 4
    train(callback, linear(), 1, completed=lambda step: step // 4)
    assert steps_of(callback) == [4] and biases(tmp_path) == files_of((1, 4))


def test_values_are_resumed(tmp_path):
    """And one that was killed before the end of its epoch gets its value at the end of that."""
    logs = [{"loss": value} for value in (3.0, 1.0, 2.0)]
    train(SnapshotEnsemble(tmp_path, 2, "loss"), linear(), 2, completed=by_thirds, logs=logs)
    model = linear()
    callback = SnapshotEnsemble(tmp_path, 2, "loss")
    train(callback, model, 2, completed=by_thirds, first=2)
    reach(model, 8)
    callback.on_epoch_begin(2)
    reach(model, 9)
    callback.on_train_batch_end(0)  # killed
    resumed = SnapshotEnsemble(tmp_path, 2, "loss")
    resumed.set_model(model)
    resumed.on_train_begin()
    resumed.on_epoch_begin(2)  # at step 9, as with `save_freq` in `BackupAndRestore`
    resumed.on_epoch_end(2, logs[2])
    assert [(s.step, s.value) for s in resumed.snapshots] == [(6, 1.0), (9, 2.0)]
    other = train(
        SnapshotEnsemble(tmp_path, 2, "acc", mode="max"),
        model,
        4,
        completed=by_thirds,
        first=3,
        logs=[{}] * 3 + [{"acc": 0.5}],
    )
    assert [(s.step, s.value) for s in other.snapshots] == [(9, None), (15, 0.5)]


# --- Whole or not at all ----------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def watched(folder, monkeypatch):
    """Gives a list that gets what is in `folder` whenever that changes: what a kill would leave."""
    states = [contents(folder)]

    def note():
        if contents(folder) != states[-1]:
            states.append(contents(folder))

    def between(function):
        def wrapper(*args, **kwargs):
            note()
            done = function(*args, **kwargs)
            note()
            return done

        return wrapper

    def in_halves(path, text, encoding):
        with open(path, "w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
            file.flush()
            note()
            file.write(text[len(text) // 2 :])

    def bytes_in_halves(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            note()
            file.write(data[len(data) // 2 :])

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, between(getattr(os, name)))
        patch.setattr(pathlib.Path, "write_text", in_halves)
        patch.setattr(pathlib.Path, "write_bytes", bytes_in_halves)
        yield states


def test_every_moment_is_whole(tmp_path, monkeypatch):
    """Two more snapshots: whenever a kill comes, it leaves a list of whole ones, and all heals."""
    first, model = tmp_path / "first", linear()
    train(SnapshotEnsemble(first, keep=2), model, 2, completed=by_thirds)
    with watched(first, monkeypatch) as states:
        train(SnapshotEnsemble(first, keep=2), model, 3, completed=by_thirds, first=2)
    seen = []
    for number, state in enumerate(states):
        left = tmp_path / f"left_{number}"
        left.mkdir()
        for name, data in state.items():
            (left / name).write_bytes(data)
        seen.append(tuple(entry["step"] for entry in listed(left)))
        held = biases(left)
        assert all(held[entry["file"]] == entry["step"] for entry in listed(left))
        resumed = train(SnapshotEnsemble(left, keep=2), model, 3, completed=by_thirds, first=2)
        assert steps_of(resumed) == [9, 12]
        assert contents(left).keys() == {*files_of((3, 9), (4, 12)), "snapshots.json"}
        assert biases(left) == files_of((3, 9), (4, 12))
    assert list(dict.fromkeys(seen)) == [(3, 6), (6, 9), (9, 12)]
    assert len(seen) > 15  # parts of files, halves of lists, names


def test_an_error_while_writing_leaves_the_last_good(tmp_path, monkeypatch):
    """As on a full disk."""
    train(SnapshotEnsemble(tmp_path), linear(), 1, completed=by_thirds)
    before = contents(tmp_path)

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        if "cycle" in self.name:
            raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    callback = SnapshotEnsemble(tmp_path)
    with pytest.raises(OSError, match="No space"):
        train(callback, linear(), 2, completed=by_thirds, first=1)
    assert contents(tmp_path) == before
    assert steps_of(callback) == [3]


def test_other_files_stay(tmp_path):
    (tmp_path / "cycle_mine_step_one.weights.h5").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    train(SnapshotEnsemble(tmp_path, keep=1), linear(), 2, completed=by_thirds)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "cycle_mine_step_one.weights.h5").exists()


# --- The ensemble -----------------------------------------------------------------------------


def nested():
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu"), MCDropout(0.5)])
    hidden = inner(inputs) + inputs
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inner(hidden)))
    return keras.Model(inputs, outputs)


@keras.saving.register_keras_serializable("test_snapshot")
class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Opaque(keras.Model):
    """Nobody knows what it was made with."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        return self.dense(x)


def subclassed():
    model = Subclassed(3)
    model(X)
    return model


def randomized(model):
    model.set_weights([np.abs(RNG.normal(size=w.shape)) for w in model.get_weights()])


@pytest.mark.slow_cases("nested-float32")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("make, policy", [(nested, "float32"), (subclassed, "mixed_float16")])
def test_copies_of_the_model(make, policy, tmp_path):
    """They are at the snapshots, however the model goes on; they save, and can be trained on."""
    keras.config.set_dtype_policy(policy)
    model = make()
    model.compile("adam", LOGITS, run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    callback, expected = SnapshotEnsemble(tmp_path / "snapshots", every=1), []
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        randomized(model)
        model.optimizer.iterations.assign(epoch + 1)
        expected.append(np.array(model(X)))
        callback.on_epoch_end(epoch)
    randomized(model)
    ensemble = callback.ensemble()
    found = [np.array(member(X)) for member in ensemble]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    probs = keras.ops.softmax(np.array(expected, "float32"))  # the loss says: logits
    np.testing.assert_allclose(ensemble.predict(X), probs, rtol=1e-5)
    assert [int(member.optimizer.iterations) for member in ensemble] == [1, 2]
    ensemble.save(tmp_path / "ensemble")
    loaded = DeepEnsemble.load(tmp_path / "ensemble")
    np.testing.assert_allclose(loaded.predict(X), probs, rtol=1e-5)
    ensemble.fit(X, Y, verbose=0)


def test_models_that_cannot_be_copied(tmp_path):
    model = Opaque(keras.layers.Dense(3))
    model.compile("sgd", LOGITS, run_eagerly=True)
    callback = SnapshotEnsemble(tmp_path, every=1)
    model.fit(X, Y, callbacks=[callback], verbose=0)
    with pytest.raises(ValueError, match=r"`build_model` must.*get_config.*build_model=None"):
        callback.ensemble()

    def build_model():
        made = Opaque(keras.layers.Dense(3))
        made(X)
        return made

    expected = np.array(model(X))
    for ensemble in (callback.ensemble(build_model), SnapshotEnsemble.load(tmp_path, build_model)):
        np.testing.assert_allclose(ensemble.members[0](X), expected, rtol=1e-6)


def nameless(y_true, y_pred):
    return keras.ops.sum(y_pred, axis=-1)


class OwnCompile(keras.Sequential):
    def compile(self, rate):
        super().compile(SGD(rate), nameless, run_eagerly=True)


def test_copies_of_what_is_not_registered(tmp_path):
    """Keras finds neither the class nor the loss by their names."""
    model = OwnCompile([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(0.1)
    callback = train(SnapshotEnsemble(tmp_path, every=1), model, 1)
    member = callback.ensemble().members[0]
    assert member.loss is nameless and member.optimizer is not model.optimizer
    assert model.compiled


def test_keras_reads_the_files(tmp_path):
    """Each is what `model.save_weights` writes, and continues the training."""
    callback = train(SnapshotEnsemble(str(tmp_path)), linear(), 2, completed=by_thirds)
    model = linear()
    model.load_weights(callback.paths[1])
    assert model.layers[-1].bias.numpy()[0] == int(model.optimizer.iterations) == 6
    assert len(DeepEnsemble.from_checkpoints(callback.paths, linear)) == 2


# --- Bad input --------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    train(SnapshotEnsemble(tmp_path), linear(), 2, completed=by_thirds)
    return tmp_path


@pytest.mark.parametrize("part", [0, 10, 96, 0.5, 0.99])
def test_truncated_files(written, part):
    path = written / snapshot_name(1, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data)) if isinstance(part, float) else part])
    with pytest.raises(ValueError, match=r"`directory` must hold the files.*'cycle_001"):
        SnapshotEnsemble.load(written, linear)


def test_missing_files(written):
    (written / snapshot_name(1, 3)).unlink()
    with pytest.raises(ValueError, match=r"`directory` must hold the files.*'cycle_001"):
        SnapshotEnsemble.load(written, linear)


def test_nothing_to_load(tmp_path):
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"must hold snapshots.*with none"):
            SnapshotEnsemble.load(directory, linear)
    with pytest.raises(ValueError, match=r"`build_model` must be a function"):
        train(SnapshotEnsemble(tmp_path), linear(), 1, completed=by_thirds)
        SnapshotEnsemble.load(tmp_path, None)


def manifest(**changes):
    entry = {"file": snapshot_name(1, 3), "cycle": 1, "step": 3, "epoch": 0, "value": None}
    return json.dumps({"format": 1, "monitor": None, "snapshots": [{**entry, **changes}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 2, "monitor": null, "snapshots": []}',
        '{"format": 1, "monitor": null, "snapshots": [1]}',
        "[" * 100_000,
        "\xff",
        manifest(file="../" + snapshot_name(1, 3)),
        manifest(file="/tmp/" + snapshot_name(1, 3)),
        manifest(file="other.weights.h5"),
        manifest(file=None),
        manifest(step=-3),
        manifest(cycle="1"),
        manifest(epoch=0.5),
        manifest(value=float("nan")),
        manifest(value="0.5"),
        manifest(value=10**400),
        manifest(more=1),
        " " * (MAX_BYTES + 1) + manifest(),
    ],
    ids=range(20),
)
def test_bad_manifests(text, written):
    """They are never read, nor overwritten."""
    (written / "snapshots.json").write_text(text, encoding="latin-1")
    match = r"(?s)`directory` must hold a snapshots.json.*another directory.*Received: directory="
    with pytest.raises(ValueError, match=match):
        SnapshotEnsemble.load(written, linear)
    with pytest.raises(ValueError, match=match):
        train(SnapshotEnsemble(written), linear(), 1, completed=by_thirds)
    assert biases(written) == files_of((1, 3), (2, 6))


def test_unwritable_directories(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    match = r"`directory` must be a folder that can be written to.*Received: directory="
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=match):
            train(SnapshotEnsemble(path, every=1), linear(), 1)

    def refuse(self, data):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)  # root may write where others may not
    with pytest.raises(ValueError, match=match + ".*Permission denied"):
        train(SnapshotEnsemble(tmp_path, every=1), linear(), 1)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name, values",
    [
        ("directory", (None, 3, "")),
        ("keep", (0, -1, 1.5, "2", True)),
        ("monitor", (3, "", ["loss"])),
        ("mode", ("best", None)),
        ("every", (0, 1.5, "2", True)),
        ("verbose", (2, None)),
    ],
)
def test_bad_arguments(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received: {name}="):
            SnapshotEnsemble(**{"directory": "folder", name: value})


def test_arguments_that_would_be_ignored():
    with pytest.raises(ValueError, match=r"`mode` must be 'auto' unless `monitor`.*mode='min'"):
        SnapshotEnsemble("folder", mode="min")


@pytest.mark.slow_product
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("swapping", [False, True])
def test_averaged_weights_are_kept_where_the_optimizer_averages(tmp_path, every, swapping):
    """The last snapshot is what `fit` ends with; it held the raw weights."""
    model = linear(SGD(0.5, use_ema=True, ema_momentum=0.9))
    raw = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raw.append(self.model.get_weights())

    snapshots = SnapshotEnsemble(tmp_path, every=every)
    first = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if swapping else []
    model.fit(X, Y, 4, 2, 0, callbacks=[*first, SGDR(0.5), snapshots, Look()])
    last = snapshots.ensemble().members[-1]
    for found, expected, raw_one in zip(
        last.get_weights(), model.get_weights(), raw[-1], strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert not np.allclose(found, raw_one, rtol=1e-3)


def test_two_of_them_in_one_directory_are_refused(tmp_path):
    both = [SnapshotEnsemble(tmp_path, every=1), SnapshotEnsemble(str(tmp_path), every=2)]
    with pytest.raises(ValueError, match="one SnapshotEnsemble of one `directory`"):
        linear().fit(X, Y, callbacks=both, verbose=0)
    both[1] = SnapshotEnsemble(tmp_path / "others", every=1)
    linear().fit(X, Y, callbacks=both, verbose=0)
