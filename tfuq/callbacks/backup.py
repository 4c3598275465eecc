"""Backup of a training that was killed, and its restoration to the bit."""

from __future__ import annotations

import contextlib
import io
import math
import pathlib
import warnings
from typing import Any

import keras
import numpy as np

from tfuq._arguments import PathLike, check_choice, check_integer, shown, told
from tfuq._files.reading import DAMAGE, check_fields, json_text, open_arrays, parsed
from tfuq._files.writing import prepare_folder, written_whole
from tfuq._models.train_step import build_optimizer, forget_functions, rebuild_optimizer
from tfuq._models.workers import from_chief, is_chief_of
from tfuq._version import __version__
from tfuq.callbacks._memory import REMEMBERING, has_stopped, kinds_of, memory_of, recall
from tfuq.callbacks._neighbours import check_alone, move_behind, others_of
from tfuq.callbacks.swag import SWAG
from tfuq.layers.sparse_bayes import sparse_bayes_layers

FILE = "backup.npz"
FORMAT = 1
_EXPANSION = 10  # indices, deviations and what an optimizer holds of both, for each weight
_FIELDS = ("tfuq", "keras", "format", "epoch", "random", "variables", "callbacks")
_PARTS = ("kernel", "bias")  # of a layer, whose weights may be random


# --- The file ---------------------------------------------------------------------------------


def write_backup(path, variables, epoch, random=(), callbacks=()):
    """Replaces the file at `path` at once by one with all variables and the next epoch's number.

    `random` are numbers of random weights, as `random_counts` gives them; `callbacks` those whose
    memory is kept.
    """
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    state = {
        "tfuq": __version__,
        "keras": keras.__version__,
        "format": FORMAT,
        "epoch": epoch,
        "random": list(random),
        "variables": [described(variable) for variable in variables],
    }
    stored = {f"variable_{i:06d}": _as_stored(array) for i, array in enumerate(arrays)}
    state["callbacks"], remembered = memory_of(callbacks)
    stored |= {name: _as_stored(array) for name, array in remembered.items()}
    text = np.frombuffer(json_text(state).encode(), "uint8")
    with written_whole(path) as unfinished:
        np.savez(unfinished, state=text, **stored)


def read_backup(path, variables, content=None):
    """The arrays of all variables, and the number of the epoch to go on with.

    `content` is what the file holds, if that is known already.
    """
    with _told(path), _opened(path, content) as file:
        state = _state(file)
        _check_variables(state["variables"], variables)
        arrays = [
            _from_stored(file[f"variable_{i:06d}"], variable)
            for i, variable in enumerate(variables)
        ]
    return arrays, state["epoch"]


def was_stopped(path, content):
    """Whether `EarlyStopping` had ended the training when the file was written."""
    with _told(path), _opened(path, content) as file:
        return has_stopped(_state(file).get("callbacks", []), file)


def read_memory(path, callbacks, content=None):
    """Gives `callbacks` back what they remembered; a warning says so if these were others."""
    with _told(path), _opened(path, content) as file:
        known = _state(file).get("callbacks", [])
        if not recall(callbacks, known, file):
            warnings.warn(
                f"BackupAndRestore: the callbacks of the killed training were {kinds_of(known)}, "
                "not those of now, which therefore begin to count anew.",
                stacklevel=3,
            )


def read_random(path, layers, content=None):
    """How many weights of each of the sparse Bayesian `layers` were random; None if not told."""
    with _told(path), _opened(path, content) as file:
        random = _state(file).get("random")
        if random is not None:
            _check_random(random, layers)
    return random


@contextlib.contextmanager
def _told(path):
    """Says of what is wrong with the file which it is, and what to do."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"Argument `backup_dir` must hold a {FILE} of this model and optimizer, or none: "
            "choose another folder, or remove the file, which begins the training anew. "
            f"Received: {str(path)!r} ({type(error).__name__}: {error})"
        ) from error


def _opened(path, content):
    content = path.read_bytes() if content is None else content
    return open_arrays(io.BytesIO(content))


def _state(file):
    state = parsed(bytes(file["state"]).decode("utf-8"))
    if state["format"] != FORMAT:
        raise ValueError(f"format {shown(state['format'])} instead of {FORMAT}")
    check_fields(state, _FIELDS)
    check_integer("epoch", state["epoch"], 0)
    return state


def random_counts(layers):
    """How many weights of each sparse Bayesian layer are random, which a selection may change."""
    return [{name: layer.num_bayesian(name) for name in _PARTS} for layer in layers]


def _check_random(random, layers):
    if len(random) != len(layers):
        raise ValueError(f"{len(random)} sparse Bayesian layers in the file, {len(layers)} here")
    for counts, layer in zip(random, layers, strict=True):
        for name in _PARTS:
            check_integer("random", counts[name], 0)
            weight = getattr(layer, name, None)
            if counts[name] > (0 if weight is None else math.prod(weight.shape)):
                raise ValueError(f"{counts[name]} random weights in {layer.name!r}, too many")


def described(variable):
    """Shape and dtype; names change when a model is built once more."""
    return [list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _check_variables(stored, variables):
    expected = [described(variable) for variable in variables]
    if stored != expected:
        pairs = zip(stored, expected, strict=False)
        differ = next((pair for pair in pairs if pair[0] != pair[1]), None)
        raise ValueError(
            f"{len(stored)} variables in the file, {len(expected)} here"
            if differ is None
            else f"variable {differ[0]} in the file, {differ[1]} here"
        )


def _as_stored(array):
    """NumPy's files know no bfloat16 and the like: their bits."""
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _from_stored(array, variable):
    dtype = keras.ops.convert_to_numpy(variable).dtype
    return array.view(dtype) if dtype.kind == "V" else array


def _num_bytes(variable):
    array_type = keras.ops.convert_to_numpy(variable).dtype
    return math.prod(variable.shape) * array_type.itemsize


# --- The callback -----------------------------------------------------------------------------


@told
class BackupAndRestore(keras.callbacks.Callback):
    """Resumes a killed training exactly where it was.

    After each epoch, one file, `backup_dir/backup.npz`, receives everything that training changes:
    the weights, the optimizer's state, and the random states of the layers. The file is replaced at
    once: a process that is killed at any moment, even while it writes, leaves the last backup or
    the new one, never a part. Call the same `fit` again: it starts at the epoch after the backup
    and repeats what was done of that epoch. With data that come in the same order (`shuffle=False`,
    or shuffled by the number of the epoch), the weights in the end are the same to the bit as
    without the interruption.

    `keras.callbacks.BackupAndRestore` differs: it writes two files, one after the other, so a kill
    between them resumes with one epoch too many, and a kill inside one cannot resume; and it does
    not keep random states (dropout starts from its seed again).

    The file also holds the memory of `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau`
    (the best value and its weights, the epochs that they have waited), and they continue with it;
    this callback runs after them, whatever the order of the callbacks. Those of `tfuq` (`SGDR`,
    `KLAnnealing`, `GradualUnfreezing`, `SnapshotEnsemble`) need only the epoch and the optimizer's
    count of steps. The file does not hold the history of earlier epochs, or the memory of other
    callbacks.

    On several machines (`tfuq.distribute.multi_worker`) only the chief has the file; it sends the
    file to the others when training begins. All machines need the callback.

    Args:
        backup_dir: Folder for the file, one for each training.
        every: Epochs between backups.
        delete_checkpoint: Whether to delete the file when training has ended. If it stays, the same
            `fit` trains no further.
        verbose: 1 prints a line when a training goes on.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the model is not
            built, the folder cannot be written to, or the file is damaged or that of another model.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import BackupAndRestore

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x, y, epochs=3, callbacks=[BackupAndRestore("backup")], verbose=0)
    ```

    See also: `tfuq.callbacks.SnapshotEnsemble`.
    """

    def __init__(
        self,
        backup_dir: PathLike,
        every: int = 1,
        *,
        delete_checkpoint: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        check_integer("every", every, 1)
        check_choice("verbose", verbose, (0, 1))
        self.backup_dir = backup_dir
        self.every = every
        self.delete_checkpoint = delete_checkpoint
        self.verbose = verbose
        self._resumed = None  # content of the file that the training goes on from, at first

    @property
    def _path(self):
        return pathlib.Path(self.backup_dir) / FILE

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "Argument `model` must be built before `fit`, for BackupAndRestore: call it on a "
                f"batch, or give it an `Input`. Received: model={shown(self.model)}"
            )
        if self._writes:
            prepare_folder("backup_dir", self.backup_dir)
        content = self._content()
        if content is not None:
            self._make_room(content)
        build_optimizer(self.model)
        self._resumed = content
        check_alone(self, "it would be written twice", "backup_dir")
        move_behind(self, (*REMEMBERING, SWAG))
        if content is None:
            return
        variables = self._variables()
        arrays, epoch = read_backup(self._path, variables, content)
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        if was_stopped(self._path, content):
            epoch = max(epoch, self.params["epochs"])
        self.model._initial_epoch = epoch  # where `fit` looks, as Keras' own callback sets it
        if self.verbose:
            print(f"\nBackupAndRestore: goes on with epoch {epoch + 1}, from {self._path}")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._recall()  # all callbacks have begun, and forgotten

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._writes and (epoch + 1) % self.every == 0:
            random = random_counts(sparse_bayes_layers(self.model))
            remembering = others_of(self, REMEMBERING)
            write_backup(self._path, self._variables(), epoch + 1, random, remembering)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._recall():  # no epoch was left
            for stopping in others_of(self, keras.callbacks.EarlyStopping):
                stopping.on_train_end(logs)  # brings back the best weights
        if self._writes and self.delete_checkpoint:
            self._path.unlink(missing_ok=True)

    def _recall(self):
        """Gives the other callbacks their memory back, once; whether there was any to give."""
        content, self._resumed = self._resumed, None
        if content is not None:
            read_memory(self._path, others_of(self, REMEMBERING), content)
        return content is not None

    @property
    def _writes(self):
        return is_chief_of(self.model.distribute_strategy)

    def _content(self):
        """What the file of the chief holds; None without one."""
        is_there = self._writes and self._path.exists()
        content = self._read_bytes() if is_there else None
        return from_chief(self.model.distribute_strategy, content)

    def _read_bytes(self):
        """The file, unless it is larger than a selection of random weights can make it."""
        copies = _EXPANSION + len(others_of(self, REMEMBERING))  # each may keep the best weights
        most = 2**24 + copies * sum(_num_bytes(variable) for variable in self._variables())
        with _told(self._path):
            size = self._path.stat().st_size
            if size > most:
                raise ValueError(f"{size} bytes, where at most {most} are to be expected")
            return self._path.read_bytes()

    def _make_room(self, content):
        """Gives sparse Bayesian layers the random weights that a selection had chosen."""
        model, layers = self.model, sparse_bayes_layers(self.model)
        random = read_random(self._path, layers, content)
        if random is None or random == random_counts(layers):
            return
        with model.distribute_strategy.scope():
            for layer, counts in zip(layers, random, strict=True):
                for name, count in counts.items():
                    layer.resize(count, name)
            if model.optimizer.built:
                rebuild_optimizer(model.optimizer, model.trainable_variables)
            forget_functions(model, self)

    def _variables(self):
        """All that training changes, each once."""
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return list({id(variable): variable for variable in variables}.values())
