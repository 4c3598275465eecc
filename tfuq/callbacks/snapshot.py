"""Snapshots of the weights where cycles of the learning rate end, as an ensemble."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfuq._arguments import PathLike, check_choice, check_integer, shown, told
from tfuq._files.reading import DAMAGE, check_fingerprint, check_weights, fingerprint
from tfuq._files.writing import prepare_folder, written_whole
from tfuq._models.changes import clone_uncompiled
from tfuq._models.optimizers import exclude, exclusions_of
from tfuq._models.train_step import completed_cycles
from tfuq._models.workers import is_chief_of
from tfuq.callbacks._kept_state import averaged
from tfuq.callbacks._neighbours import check_alone, others_of
from tfuq.callbacks._snapshot_files import (
    MANIFEST,
    Snapshot,
    best,
    delete_unlisted,
    latest,
    read_fingerprints,
    read_manifest,
    snapshot_name,
    write_manifest,
)
from tfuq.ensembles import DeepEnsemble


def direction_of(model, monitor, mode):
    """1 if more of `monitor` is better, -1 if less is, as Keras' own callbacks decide."""
    if mode != "auto":
        return 1 if mode == "max" else -1
    stopping = keras.callbacks.EarlyStopping(monitor)
    stopping.set_model(model)
    try:
        stopping._set_monitor_op()
    except ValueError as error:
        raise ValueError(
            f"Argument `mode` must be 'min' or 'max' for monitor={shown(monitor)}, "
            "because Keras does "
            "not know which is better. Received: mode='auto'"
        ) from error
    return 1 if stopping.monitor_op(1.0, 0.0) else -1


class _Memory(io.BytesIO):
    """A file in memory, under a name as Keras wants it for weights."""

    def __str__(self):
        return "memory.weights.h5"


def _weights_of(model):
    """What `model.save_weights` writes. HDF5 does not survive a full disk, and kills the training.

    So a disk never sees HDF5, only bytes.
    """
    memory = _Memory()
    model.save_weights(memory)
    return memory.getbuffer()


def _has_finite_weights(model):
    return all(np.isfinite(keras.ops.convert_to_numpy(w)).all() for w in model.weights)


# --- The ensemble -----------------------------------------------------------------------------


def read_ensemble(directory, snapshots, build_model):
    """The models of `snapshots`, as `DeepEnsemble`."""
    if not snapshots:
        raise ValueError(
            "Argument `directory` must hold snapshots: train until a cycle ends. "
            f"Received: directory={str(directory)!r} with none"
        )
    paths = [directory / snapshot.file for snapshot in snapshots]
    known = read_fingerprints(directory)
    for path in paths:
        _check_whole(directory, path, known.get(path.name))
    return DeepEnsemble.from_checkpoints(paths, build_model)


def _check_whole(directory, path, fingerprint):
    """Raises ValueError if `path` is missing, cut off or altered."""
    try:
        if fingerprint is not None:
            check_fingerprint(path, fingerprint)
        check_weights(path)
    except DAMAGE as error:
        raise ValueError(
            f"Argument `directory` must hold the files that its {MANIFEST} lists: restore the one "
            "that cannot be read, or pass the paths of the others to "
            "`tfuq.ensembles.DeepEnsemble.from_checkpoints`. Received: "
            f"directory={str(directory)!r}, in it {path.name!r} ({error})"
        ) from error


def untrained_copy(model):
    """A model of the same structure, compiled with the same loss and a new optimizer."""
    try:
        copy = clone_uncompiled(model)
        optimizer = model.optimizer.from_config(model.optimizer.get_config())
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            "Argument `build_model` must be a function that returns a new, built model, because "
            "Keras cannot copy this one by its `get_config`. "
            f"Received: build_model=None with {shown(model)} ({type(error).__name__}: {error})"
        ) from error
    if not copy.built:
        raise ValueError(
            "Argument `build_model` must be a function that returns a new, built model, because "
            "the shapes of this one do not follow from its `get_config`. "
            f"Received: build_model=None with {shown(model)}"
        )
    how = {"run_eagerly": model.run_eagerly, "jit_compile": model.jit_compile}
    # The model's own `compile` may take other arguments.
    keras.Model.compile(copy, optimizer, getattr(model, "loss", None), **how)
    exclude(copy.optimizer, copy, exclusions_of(model))
    return copy


@told
class SnapshotEnsemble(keras.callbacks.Callback):
    """Keeps the weights of each cycle of the learning rate: one training, several models.

    At the end of a cycle of the learning rate the model is in a minimum; then the rate jumps up,
    and the next cycle leads to another minimum. The callback writes the weights at the end of each
    cycle of `tfuq.callbacks.SGDR` or, with `every`, after that many epochs. `ensemble()` returns a
    `tfuq.ensembles.DeepEnsemble` that averages their predictions, and so does
    `SnapshotEnsemble.load(directory, build_model)` at any later time.

    A cycle may end within an epoch. With `steps_per_execution` above 1 the weights are those at the
    end of the execution in which the cycle ended, and several cycles that end in one execution make
    one snapshot.

    The directory holds a file `.weights.h5` for each snapshot, as `model.save_weights` writes it
    (with the state of the optimizer; where that averages the weights, `use_ema=True`, these are the
    averaged ones, as at the end of `fit`), and `snapshots.json`, which lists them. Each file
    appears whole or not at all, and an old one goes when the list no longer has it: a process that
    is killed, at whatever moment, leaves a list of whole snapshots. The directory must be the
    callback's own, and one process at a time writes to it.

    A resumed training (`keras.callbacks.BackupAndRestore`) keeps the snapshots up to the step where
    it resumes, and writes the later ones again. Snapshots of later steps, from the killed run or
    from another training in this directory, are dropped when the first new one is written. Put this
    callback before `BackupAndRestore`, so that a backup has its snapshots already.

    On several machines (`tfuq.distribute.multi_worker`) only the chief writes. To know what it
    wrote before, and to read the files, the others need a disk that all share.

    Formula:
        p(y | x) = 1/m sum_{i=0}^{m-1} p(y | x, w_{M-i})                     (Huang et al. 2017)
    with w_t the weights at the end of cycle t of M, and m = `keep`.

    Args:
        directory: Path of the folder, made if it is not there.
        keep: How many snapshots stay: the latest ones, or, with `monitor`, the best. `None`: all.
        monitor: Name in the logs, such as `"val_loss"`. The value of a snapshot is that at the end
            of the epoch in which its cycle ended.
        mode: `"min"` or `"max"`: which values of `monitor` are better. `"auto"`: as Keras decides
            by the name and the compiled metrics.
        every: Number of epochs between two snapshots, whatever the learning rate does. `None`: the
            cycles of `SGDR` decide.
        verbose: 1 prints a line for each snapshot. Weights that hold NaN are no member: a warning
            says so, and nothing is written.

    Attributes:
        snapshots: List of `Snapshot`, named tuples with `file`, `cycle`, `step`, `epoch` and
            `value`, in the order of their steps: those that this training has written or goes on
            with. Empty before it.
        paths: List of the paths of their files.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the directory
            cannot be written to or holds a broken list, or there are neither cycles nor `every`.
            At the end of an epoch: if its logs do not have `monitor`.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import SGDR, SnapshotEnsemble

    x, y = np.random.rand(32, 4), np.random.randint(3, size=32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    snapshots = SnapshotEnsemble("snapshots", keep=3)
    cycles = SGDR(0.1, cycle_length=1, cycle_mult=2)
    model.fit(x, y, epochs=7, callbacks=[cycles, snapshots], verbose=0)
    ensemble = snapshots.ensemble()  # of the weights after epochs 1, 3 and 7
    print(ensemble.evaluate(x, y))
    ```

    References:
        - Huang, Li, Pleiss, Liu, Hopcroft and Weinberger, "Snapshot Ensembles: Train 1, Get M for
          Free", ICLR 2017.

    See also: `tfuq.callbacks.SGDR`, `tfuq.ensembles.DeepEnsemble`, `tfuq.training.rapid_fit`.
    """

    def __init__(
        self,
        directory: PathLike,
        keep: int | None = None,
        monitor: str | None = None,
        *,
        mode: str = "auto",
        every: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        _check_path(directory)
        if keep is not None:
            check_integer("keep", keep, 1)
        _check_monitor(monitor, mode)
        if every is not None:
            check_integer("every", every, 1)
        check_choice("verbose", verbose, (0, 1))
        self.directory = directory
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self.every = every
        self.verbose = verbose
        self._snapshots = []
        self._fingerprints = {}  # of the files, by their names
        self._stale = set()  # files of later steps than where the training goes on
        self._without_value = set()  # files whose epoch has not ended
        self._completed = None  # of the cycles, as a function of the step
        self._cycles = 0
        self._most = 0  # steps, if each batch since the count was asked for was one: no more
        self._batch = -1
        self._epoch = None

    @property
    def snapshots(self) -> list[Snapshot]:
        return list(self._snapshots)

    @property
    def paths(self) -> list[pathlib.Path]:
        return [self._folder / snapshot.file for snapshot in self._snapshots]

    def ensemble(self, build_model: Callable[[], keras.Model] | None = None) -> DeepEnsemble:
        """The models at the snapshots.

        Args:
            build_model: Function without arguments that returns a new, built model of the kind
                that was trained. By default copies of that, compiled with its loss and an optimizer
                like its own; a subclassed model needs `get_config` for that.

        Returns:
            `tfuq.ensembles.DeepEnsemble`, in the order of the steps.

        Raises:
            ValueError: If there are no snapshots, their files cannot be read, or Keras cannot copy
                the model.
        """
        make = build_model or functools.partial(untrained_copy, self.model)
        ensemble = read_ensemble(self._folder, self._snapshots, make)
        ensemble.build_model = build_model  # the copies are no function of other processes
        return ensemble

    @classmethod
    def load(cls, directory: PathLike, build_model: Callable[[], keras.Model]) -> DeepEnsemble:
        """The models at the snapshots that `directory` lists, without the training.

        Args:
            directory: Path of the folder.
            build_model: Function without arguments that returns a new, built model of the kind
                that was trained.

        Returns:
            `tfuq.ensembles.DeepEnsemble`, in the order of the steps.

        Raises:
            ValueError: If there are no snapshots, or their list or files cannot be read.
        """
        _check_path(directory)
        directory = pathlib.Path(directory)
        return read_ensemble(directory, read_manifest(directory)[0], build_model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._epoch = None
        check_alone(self, "each deletes the files of the other", "directory")
        if not self._writes:
            return
        prepare_folder("directory", self._folder)
        read_manifest(self._folder)  # which may be broken

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._epoch is None:  # all callbacks have begun: SGDR counts, weights are restored
            self._begin()
        self._epoch = epoch
        self._batch = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._most += batch - self._batch
        self._batch = batch
        if self._completed is not None and self._completed(self._most) > self._cycles:
            self._most = self._step()
            cycles = self._completed(self._most)
            if cycles > self._cycles:
                self._cycles = cycles
                self._save(cycles, self._most)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.every is not None and (epoch + 1) % self.every == 0:
            self._save((epoch + 1) // self.every, self._step())
        if self.monitor is not None:
            self._compare(epoch, logs or {})

    @property
    def _folder(self):
        return pathlib.Path(self.directory)

    def _step(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    @property
    def _writes(self):
        return is_chief_of(self.model.distribute_strategy)

    def _begin(self):
        self._completed = None if self.every else completed_cycles(self.model, self)
        if self.every is None and self._completed is None:
            raise ValueError(
                "Argument `every` must be a number of epochs, unless the callback "
                "`tfuq.callbacks.SGDR` trains the model in cycles. Received: every=None without it"
            )
        self._most = step = self._step()
        self._cycles = 0 if self._completed is None else self._completed(step)
        listed, monitor = read_manifest(self._folder)
        self._snapshots = [snapshot for snapshot in listed if snapshot.step <= step]
        self._stale = {snapshot.file for snapshot in listed if snapshot.step > step}
        self._fingerprints = read_fingerprints(self._folder)
        if monitor == self.monitor:
            self._without_value = {s.file for s in self._snapshots if s.value is None}
        else:
            self._without_value = set()
            self._snapshots = [s._replace(value=None) for s in self._snapshots]

    def _save(self, cycle, step):
        if not _has_finite_weights(self.model):
            warnings.warn(
                f"Epoch {self._epoch + 1}: SnapshotEnsemble wrote no snapshot, because weights are "
                "NaN or infinite.",
                stacklevel=2,
            )
            return
        new = Snapshot(snapshot_name(cycle, step), cycle, step, self._epoch)
        if self._writes:
            if new.file in self._stale:  # else a kill leaves the old file's hash in the list
                self._list()
            with self._averaged(), written_whole(self._folder / new.file) as path:
                path.write_bytes(_weights_of(self.model))
                self._fingerprints[new.file] = fingerprint(path)
        others = [snapshot for snapshot in self._snapshots if snapshot.file != new.file]
        self._snapshots = [*others, new]
        self._without_value.add(new.file)
        if self.keep is not None and self.monitor is None:
            self._snapshots = latest(self._snapshots, self.keep)
        self._publish()
        if self.verbose and self._writes:
            print(f"\nEpoch {self._epoch + 1}: SnapshotEnsemble wrote {self._folder / new.file}")

    def _averaged(self):
        """A context in which the model has its averaged weights, if it does not have them now."""
        swapping = others_of(self, keras.callbacks.SwapEMAWeights)
        has_them = any(each._ema_weights_in_model for each in swapping)
        return contextlib.nullcontext() if has_them else averaged(self.model)

    def _compare(self, epoch, logs):
        """Gives the snapshots of this epoch their value, now that it is known."""
        due = {s.file for s in self._snapshots if s.epoch == epoch} & self._without_value
        self._check_logs(epoch, logs, due)
        if due:
            self._without_value -= due
            value = float(logs[self.monitor])
            value = value if math.isfinite(value) else None
            self._snapshots = [
                s._replace(value=value) if s.file in due else s for s in self._snapshots
            ]
            if self.keep is not None:
                direction = direction_of(self.model, self.monitor, self.mode)
                self._snapshots = best(self._snapshots, self.keep, direction)
            self._publish()

    def _check_logs(self, epoch, logs, due):
        """Raises ValueError if `monitor` is missing where it is needed, or can never be there."""
        validated = any(name.startswith("val_") for name in logs)
        expected = due or validated or not self.monitor.startswith("val_")
        if expected and np.ndim(logs.get(self.monitor, ())):
            raise ValueError(
                "Argument `monitor` must name a number in the logs of each epoch in which a cycle "
                f"ends, here {sorted(logs)}. "
                f"Received: monitor={shown(self.monitor)} in epoch {epoch}"
            )

    def _list(self):
        write_manifest(self._folder, self._snapshots, self.monitor, self._fingerprints)
        self._stale = set()

    def _publish(self):
        if self._writes:
            self._list()
            delete_unlisted(self._folder, self._snapshots)


# --- Checks -----------------------------------------------------------------------------------


def _check_path(directory):
    if not isinstance(directory, (str, os.PathLike)) or not str(directory):
        raise ValueError(
            "Argument `directory` must be the path of a folder. "
            f"Received: directory={shown(directory)}"
        )


def _check_monitor(monitor, mode):
    if monitor is not None and (not isinstance(monitor, str) or not monitor):
        raise ValueError(
            "Argument `monitor` must be a name in the logs, or None. "
            f"Received: monitor={shown(monitor)}"
        )
    check_choice("mode", mode, ("auto", "min", "max"))
    if mode != "auto" and monitor is None:
        raise ValueError(
            "Argument `mode` must be 'auto' unless `monitor` is given. "
            f"Received: mode={shown(mode)} with monitor=None"
        )
