"""A backup that is there whole or not at all; what kills do to a training is in test_resume.py."""

import warnings

import keras
import numpy as np
import pytest

from tfuq.callbacks import BackupAndRestore
from tfuq.callbacks.backup import FILE, read_backup, write_backup

X, Y = np.random.default_rng(0).normal(size=(24, 4)), np.arange(24) % 3


def compiled(units=3, optimizer="adam"):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(units)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=True)
    return model


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.model.history.epoch[-1:] and batch:
            raise KeyboardInterrupt


def fit(model, *callbacks, epochs=4):
    model.fit(X, Y, 8, epochs=epochs, shuffle=False, callbacks=[*callbacks], verbose=0)
    return [np.asarray(v) for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("every", [1, 2])
def test_goes_on_as_if_nothing_had_happened(tmp_path, every):
    """Weights, moments, counts, and the noise of the dropout; interrupted in the fourth epoch."""
    expected = fit(compiled())
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), BackupAndRestore(tmp_path, every), Stop([2]))
    model = compiled()
    found = fit(model, BackupAndRestore(tmp_path, every))
    assert model.history.epoch == ([3] if every == 1 else [2, 3])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(tmp_path.iterdir()) == []


def test_file_may_stay_and_then_nothing_is_left_to_train(tmp_path, capsys):
    expected = fit(compiled(), BackupAndRestore(tmp_path, delete_checkpoint=False))
    model = compiled()
    found = fit(model, BackupAndRestore(tmp_path, delete_checkpoint=False, verbose=1))
    assert model.history.epoch == []
    assert "goes on with epoch 5" in capsys.readouterr().out
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_failing_write_leaves_the_last_backup(tmp_path, monkeypatch):
    variables = compiled().variables
    write_backup(tmp_path / FILE, variables, 3)
    before = (tmp_path / FILE).read_bytes()

    def fail(path, **arrays):
        path.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        write_backup(tmp_path / FILE, variables, 4)
    assert (tmp_path / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_other_precisions_survive(tmp_path):
    values = np.array([1.5, -2.25], "float32")
    kinds = ("float16", "bfloat16", "float64", "int32", "uint32", "bool")
    variables = [keras.Variable(values, dtype=kind, trainable=False) for kind in kinds]
    write_backup(tmp_path / FILE, variables, 7)
    arrays, epoch = read_backup(tmp_path / FILE, variables)
    assert epoch == 7
    for array, variable in zip(arrays, variables, strict=True):
        np.testing.assert_array_equal(array, keras.ops.convert_to_numpy(variable))


def spoil(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    spoiled = {
        "truncated": data[:middle],
        "empty": b"",
        "flipped": data[:300] + bytes([data[300] ^ 1]) + data[301:],
        "pickled": None,
    }[how]
    if spoiled is None:
        np.savez(path, state=np.array([{"epoch": 1}], object))
    else:
        path.write_bytes(spoiled)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "pickled"])
def test_damaged_file_is_told_and_changes_nothing(tmp_path, how):
    fit(compiled(), BackupAndRestore(tmp_path, delete_checkpoint=False), epochs=1)
    spoil(tmp_path / FILE, how)
    model = compiled()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"(?s)`backup_dir` must hold a backup\.npz.*remove the"):
        fit(model, BackupAndRestore(tmp_path))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"units": 4}, r"\[\[8, 3\], 'float32'\] in the file, \[\[8, 4\]"),
        ({"optimizer": "sgd"}, "variables in the file"),
    ],
)
def test_file_of_another_training_is_refused(tmp_path, other, message):
    fit(compiled(), BackupAndRestore(tmp_path, delete_checkpoint=False), epochs=1)
    with pytest.raises(ValueError, match=message):
        fit(compiled(**other), BackupAndRestore(tmp_path))


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="Argument `every` must be an integer"):
        BackupAndRestore(tmp_path, every=0)
    with pytest.raises(ValueError, match="Argument `verbose`"):
        BackupAndRestore(tmp_path, verbose=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Argument `backup_dir` must be a folder"):
        fit(compiled(), BackupAndRestore(tmp_path / "file"))
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match="Argument `model` must be built"):
        unbuilt.fit(X, X[:, :3], callbacks=[BackupAndRestore(tmp_path)], verbose=0)


# --- What Keras' callbacks remember -------------------------------------------------------------


class Scores(keras.callbacks.Callback):
    """Puts `score` into the logs, and kills the training in an epoch, if told to."""

    def __init__(self, scores, killed=None):
        super().__init__()
        self.scores, self.killed = scores, killed

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.killed:
            raise KeyboardInterrupt


def remembering(folder):
    kept = {"mode": "max", "save_best_only": True, "save_weights_only": True}
    return [
        keras.callbacks.EarlyStopping("score", mode="max", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("score", 0.5, patience=2, mode="max"),
        keras.callbacks.ModelCheckpoint(str(folder / "best.weights.h5"), "score", **kept),
    ]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("first", [True, False])
def test_the_best_epoch_before_the_kill_is_not_forgotten(tmp_path, first):
    """The resumed training ended with other weights than the undisturbed one."""
    scores = [1, 9, 2, 3, 4, 5]
    (tmp_path / "one").mkdir()
    expected = fit(compiled(), Scores(scores), *remembering(tmp_path / "one"), epochs=6)

    def callbacks(killed=None):
        others = [Scores(scores, killed), *remembering(tmp_path)]
        backup = BackupAndRestore(tmp_path / "backup")
        return [others[0], backup, *others[1:]] if first else [*others, backup]

    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), *callbacks(3), epochs=6)
    model = compiled()
    found = fit(model, *callbacks(), epochs=6)
    assert model.history.epoch == [3, 4]  # stopped after three epochs that were no better
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    names = [tmp_path / "one" / "best.weights.h5", tmp_path / "best.weights.h5"]
    best = [compiled() for _ in names]
    for each, name in zip(best, names, strict=True):
        each.optimizer.build(each.trainable_variables)
        each.load_weights(name)
    for one, other in zip(best[0].get_weights(), best[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("scores", [[1, 9, 2, 3, 4, 5], [1, 2, 9, 3, 2, 1]])
def test_a_training_that_was_over_ends_with_the_best_weights(tmp_path, scores):
    """Stopped, or at its end: the file stays, and the same `fit` gives the same weights."""

    def trained():
        stopping = keras.callbacks.EarlyStopping(
            "score", mode="max", patience=3, restore_best_weights=True
        )
        kept = BackupAndRestore(tmp_path, delete_checkpoint=False)
        model = compiled()
        return fit(model, Scores(scores), stopping, kept, epochs=6), model.history.epoch

    expected, _ = trained()
    found, epochs = trained()
    assert epochs == []
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_callbacks_than_before_are_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), BackupAndRestore(tmp_path), Stop([2]))
    both = [BackupAndRestore(tmp_path), keras.callbacks.EarlyStopping("loss", patience=9)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled().fit(X, Y, 8, epochs=4, callbacks=both, verbose=0)
    assert any("callbacks of the killed training were none" in str(each.message) for each in told)


def test_two_of_one_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one BackupAndRestore of one `backup_dir`"):
        fit(compiled(), BackupAndRestore(tmp_path), BackupAndRestore(str(tmp_path)))
