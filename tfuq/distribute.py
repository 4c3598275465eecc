"""Training on several machines, which Keras 3 alone cannot do, and ensembles trained by Ray."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import public_dir, shown
from tfuq._models.workers import is_chief_of, joined, read_cluster, spans_machines, task_is_chief

__all__ = ["RayExecutor", "is_chief", "multi_worker"]
__dir__ = public_dir(__all__)

# Versions of Keras whose source was read: all of them have the fault.
KNOWN = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
ISSUE = "https://github.com/keras-team/keras/issues/20585"


class _Probe(tf.distribute.MultiWorkerMirroredStrategy):
    """Stands for a strategy of several machines, and notes over which axes Keras reduces."""

    def __init__(self):  # not the parent's: it would join a cluster
        self._extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True)
        self.axes = []

    def reduce(self, reduce_op, value, axis):
        self.axes.append(axis)
        return value

    def scope(self):
        return contextlib.nullcontext()

    def experimental_local_results(self, value):
        return value.values if isinstance(value, _Batch) else (value,)


class _Batch(tf.distribute.DistributedValues):
    """Stands for a batch of which each device has a part."""

    def __init__(self, *values):
        self._parts = values

    @property
    def values(self):
        return self._parts


def averages_over_examples(trainer):
    """Whether Keras takes the logs, which are scalars, for batches, and averages over axis 0."""
    probe = _Probe()
    trainer.reduce_per_replica(np.float32(1), probe, "auto")
    return 0 in probe.axes


def reduces_the_batch(trainer):
    """Whether Keras adds up the batch of all machines, only to know its shape."""
    probe, built = _Probe(), []
    model = types.SimpleNamespace(
        _distribute_strategy=probe,
        distribute_strategy=probe,
        _symbolic_build=lambda iterator=None, data_batch=None: built.append(data_batch),
    )
    part = np.zeros((2, 3), "float32")
    batch = (_Batch(part, part),)
    build = trainer.TensorFlowTrainer._maybe_symbolic_build
    try:
        build(model, iterator=[(0, 1, iter([batch]))])
    except ValueError:  # before Keras 3.11 there was one number beside the data
        build(model, iterator=[(0, iter([batch]))])
    return bool(probe.axes) or any(isinstance(v, _Batch) for v in keras.tree.flatten(built))


FAULTS = {
    "reduce_per_replica": averages_over_examples,
    "_maybe_symbolic_build": reduces_the_batch,
}


def find_faults(trainer, version):
    """Names of the functions of Keras' trainer that fail on several machines, as they behave.

    Raises RuntimeError if `version` is none whose source is known, unless nothing is at fault.
    """
    found, odd = [], None
    for name, is_at_fault in FAULTS.items():
        try:
            found += [name] if is_at_fault(trainer) else []
        except Exception as error:  # whatever a future Keras does with what stands for a strategy
            odd = error
    is_known = ".".join(str(version).split(".")[:2]) in KNOWN
    if odd is not None or (found and not is_known):
        raise _unknown(version) from odd
    return found


def _unknown(version):
    return RuntimeError(
        f"`tfuq.distribute.multi_worker` corrects Keras {', '.join(KNOWN)} for several machines, "
        f"and does nothing where Keras is mended ({ISSUE}). Received: Keras {version}, which is "
        "neither: take one of these versions, or a newer tfuq"
    )


def keras_trainer():
    """The module where Keras trains with TensorFlow. Private, so that it may be gone one day."""
    try:
        from keras.src.backend.tensorflow import trainer
    except ImportError as error:
        raise _unknown(keras.__version__) from error
    return trainer


# --- What stands in its place -----------------------------------------------------------------


def corrected_reduce(original):
    """Averages each number over the replicas, whatever its shape."""

    @functools.wraps(original)
    def reduce_per_replica(values, strategy, reduction):
        op = {"auto": "MEAN", "mean": "MEAN", "sum": "SUM"}.get(reduction)
        if op is None or not spans_machines(strategy):
            return original(values, strategy, reduction)
        return keras.tree.map_structure(lambda v: strategy.reduce(op, v, axis=None), values)

    return reduce_per_replica


def corrected_build(original):
    """Takes the shapes from the first device's part of the batch."""

    @functools.wraps(original)
    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self._distribute_strategy
        if iterator is None or not spans_machines(strategy):
            return original(self, iterator=iterator, data_batch=data_batch)
        for *_, batches in iterator:
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], next(batches)
            )
            break
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)

    return _maybe_symbolic_build


class _Restores(keras.callbacks.Callback):
    """Reads the backup when training begins, and leaves the writing to the chief."""

    def __init__(self, backup):
        super().__init__()
        self.backup = backup

    def on_train_begin(self, logs=None):
        self.backup.set_model(self.model)
        self.backup.on_train_begin(logs)


WRITERS = ("ModelCheckpoint", "OrbaxCheckpoint", "CSVLogger", "TensorBoard")


def without_writers(callbacks):
    """The callbacks of a process that is not the chief: those of Keras that write stay out."""
    names = [name for name in WRITERS if hasattr(keras.callbacks, name)]
    writers = tuple(getattr(keras.callbacks, name) for name in names)
    kept = [each for each in callbacks if not isinstance(each, writers)]
    backup = keras.callbacks.BackupAndRestore
    return [_Restores(each) if isinstance(each, backup) else each for each in kept]


def corrected_list(original):
    """Leaves files to the chief."""

    @functools.wraps(original)
    def __init__(self, callbacks=None, *args, model=None, **kwargs):
        if callbacks and model is not None and not is_chief_of(model.distribute_strategy):
            callbacks = without_writers(keras.tree.flatten(callbacks))
        return original(self, callbacks, *args, model=model, **kwargs)

    return __init__


# --- The context ------------------------------------------------------------------------------


class _Corrections:
    """What is put into Keras while somebody needs it, once, and put back after the last of them."""

    def __init__(self):
        self.lock = threading.RLock()
        self.count = 0
        self.undo = None

    def enter(self):
        with self.lock:
            if self.count == 0:
                self.undo = _correct_keras()
            self.count += 1

    def leave(self):
        with self.lock:
            self.count -= 1
            if self.count == 0:
                self.undo.close()


_CORRECTIONS = _Corrections()
_MADE = []  # the strategy of this process: TensorFlow joins a cluster once


def _correct_keras():
    """Puts the corrections in; closing what it returns takes them out."""
    trainer = keras_trainer()
    places = {
        "reduce_per_replica": (trainer, corrected_reduce),
        "_maybe_symbolic_build": (trainer.TensorFlowTrainer, corrected_build),
    }
    chosen = [(name, *places[name]) for name in find_faults(trainer, keras.__version__)]
    chosen.append(("__init__", keras.callbacks.CallbackList, corrected_list))
    with contextlib.ExitStack() as undo:
        for name, place, correct in chosen:
            original = getattr(place, name)
            setattr(place, name, correct(original))
            undo.callback(setattr, place, name, original)
        return undo.pop_all()


def _strategy_of_this_process():
    """The strategy in whose scope this is, or that of TF_CONFIG; without one, TensorFlow's."""
    if tf.distribute.has_strategy() or read_cluster() is None:
        return tf.distribute.get_strategy()
    if not _MADE:
        if joined():
            return None
        _MADE.append(tf.distribute.MultiWorkerMirroredStrategy())
    return _MADE[0]


@contextlib.contextmanager
def multi_worker(strategy: tf.distribute.Strategy | None = None) -> Iterator[None]:
    """Lets `fit`, `evaluate` and `predict` of Keras 3 run on several machines.

    Keras 3 fails under `tf.distribute.MultiWorkerMirroredStrategy` at two places
    (keras-team/keras#20585): to learn the shapes of the data it adds up the batches of all
    machines, and it averages the loss and the metrics, which are scalars, over their axis 0. This
    context corrects both, for such strategies only; other trainings in this process are not
    touched. It tests whether Keras has the faults. A mended version is left alone; an unknown
    version that has the faults is refused.

    The same script runs on each machine, with the environment variable `TF_CONFIG` (JSON) saying
    which machines there are and which of them this is: `{"cluster": {"worker": ["10.0.0.1:12345",
    "10.0.0.2:12345"]}, "task": {"type": "worker", "index": 0}}`. Without it the script trains on
    one machine. Enter the context before TensorFlow has computed anything, and train, evaluate and
    predict inside it: Keras traces its functions when they first run.

    What to know:

    - Batch sizes are of all machines together. With the same arrays, order and weights, they end
      where one machine ends that trains with the whole batches. A batch that cannot be divided
      evenly (the last one) counts as Keras has it: the mean of the machines' means.
    - Arrays are divided among the machines. To shuffle them, begin with the same
      `keras.utils.set_random_seed` everywhere, or each machine takes its part of an order of its
      own. Of other data each machine reads what `tf.data.Options.distribute_options` says.
    - All machines take part in each step. What computes with the model (`evaluate`, `predict`,
      `tfuq.callbacks.RejectionEvaluator`) has to run on all of them, not on one alone.
    - Only the chief writes files: `tfuq.callbacks.BackupAndRestore` and `SnapshotEnsemble`, and, in
      this context, `ModelCheckpoint`, `CSVLogger`, `TensorBoard` and `BackupAndRestore` of Keras.
      Ask `is_chief` before you write yourself.
    - A machine that is lost ends the training of all. Start all of them again, each with
      `tfuq.callbacks.BackupAndRestore`: they go on with the epoch after the last backup. It needs
      no shared disk, because the chief sends its backup to the others; Keras' own one does.
    - Leave `jit_compile` at `"auto"`.

    Args:
        strategy: A `tf.distribute.Strategy` that you made. By default the one in whose scope this
            is, or a `MultiWorkerMirroredStrategy` of `TF_CONFIG`. If you made one and do not pass
            it, the context gives None.

    Yields:
        The strategy, in whose scope the model is to be built and compiled.

    Raises:
        ValueError: If `strategy` is something else, or `TF_CONFIG` is not as described.
        RuntimeError: If the version of Keras is neither known nor mended.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.distribute import is_chief, multi_worker
    from tfuq.layers import VBLLDense

    x, y = np.random.rand(64, 4), np.random.randint(3, size=64)
    with multi_worker() as strategy:
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), VBLLDense(3, kl_weight=1 / 64)])
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        if is_chief(strategy):
            model.save("model.keras")
    ```

    See also: `tfuq.distribute.is_chief`, `tfuq.callbacks.BackupAndRestore`.
    """
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        raise ValueError(
            "Argument `strategy` must be a tf.distribute.Strategy. "
            f"Received: strategy={shown(strategy)}"
        )
    _CORRECTIONS.enter()
    try:
        yield strategy or _strategy_of_this_process()
    finally:
        _CORRECTIONS.leave()


def is_chief(strategy: tf.distribute.Strategy | None = None) -> bool:
    """Whether this process is the one that writes files.

    Of several machines that is the chief, or the first worker if `TF_CONFIG` names no chief;
    otherwise it is this process.

    Args:
        strategy: The `tf.distribute.Strategy` of the model. By default the one in whose scope this
            is, and otherwise what `TF_CONFIG` says.

    Returns:
        True or False.

    Raises:
        ValueError: If `strategy` is something else, or `TF_CONFIG` is not as `multi_worker` has it.

    Example:

    >>> from tfuq.distribute import is_chief
    >>> is_chief()
    True

    See also: `tfuq.distribute.multi_worker`.
    """
    if strategy is None and not tf.distribute.has_strategy():
        found = read_cluster()
        return found is None or task_is_chief(*found)
    strategy = strategy or tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.Strategy):
        raise ValueError(
            "Argument `strategy` must be a tf.distribute.Strategy. "
            f"Received: strategy={shown(strategy)}"
        )
    return is_chief_of(strategy)


# --- Ensembles over machines ------------------------------------------------------------------


class RayExecutor(concurrent.futures.Executor):
    """The workers of Ray as an executor, for `tfuq.ensembles.DeepEnsemble.fit`.

    Ray is optional (`pip install "tfuq[ray]"`). What is submitted goes to `ray.remote`; Ray itself
    is started and stopped by whoever uses it, or started here on this machine. The workers have to
    see the temporary folder of this process (TMPDIR), on a disk that all share if they run on other
    machines, and to import the same modules. Dask needs no such class: `client.get_executor()`.

    Args:
        **options: What `ray.remote` takes for each task, such as `num_cpus`, `num_gpus` (which a
            graphics card for each member needs), `max_retries` or `runtime_env`.

    Raises:
        ImportError: If Ray is not installed.
        RuntimeError: If something is submitted after `shutdown`.

    Example:

    ```python
    from tfuq.distribute import RayExecutor


    def train(ensemble, x, y, callbacks):  # as `DeepEnsemble.fit` takes any executor
        with RayExecutor(num_cpus=1) as executor:  # after `ray.init()`
            return ensemble.fit(x, y, epochs=10, executor=executor, callbacks=callbacks)
    ```

    See also: `tfuq.ensembles.DeepEnsemble`, `tfuq.distribute.multi_worker`.
    """

    def __init__(self, **options: Any) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                'RayExecutor needs Ray, which is not installed: pip install "tfuq[ray]"'
            ) from error
        self._ray = ray
        self._options = options
        self._pending = set()
        self._is_open = True
        if not ray.is_initialized():
            ray.init(include_dashboard=False)

    def submit(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future:
        """Starts `function(*args, **kwargs)` in a worker.

        Returns:
            `concurrent.futures.Future`. It counts as running at once: it cannot be cancelled.
        """
        if not self._is_open:
            raise RuntimeError("RayExecutor was shut down: make a new one")
        remote = self._ray.remote(function)
        remote = remote.options(**self._options) if self._options else remote
        answer = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)
        found = remote.remote(*args, **kwargs).future()
        found.add_done_callback(functools.partial(_pass_on, answer))
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes nothing more; waits for what runs, unless `wait` is False. Ray goes on."""
        self._is_open = False
        if wait:
            concurrent.futures.wait(list(self._pending))


def _pass_on(answer, found):
    """Gives `answer` what `found` has: the result, or the error with its own type."""
    error = found.exception()
    if error is None:
        answer.set_result(found.result())
    else:
        answer.set_exception(error)
