"""The training of many models, in this process or in others."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import sys
import tempfile
import types

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.batches import repeated
from tfuq._models.optimizers import exclude, exclusions_of
from tfuq._models.train_step import build_optimizer
from tfuq._random.global_state import seeded

_COMPILED = {name: getattr(keras.Model, name) for name in ("compile", "compile_from_config")}
_DATA = ("x", "y", "sample_weight", "validation_data")


@dataclasses.dataclass(frozen=True)
class Task:
    """The training of one member, and, in other processes, the files it goes through."""

    number: int
    seed: int
    arguments: dict
    callbacks: object
    model: str | None = None
    data: str | None = None
    noise: tuple = ()
    exclusions: object = None  # from weight decay, which a file of a model does not keep
    imports: object = None  # a function whose module registers what the model is made of

    def train(self, model, verbose):
        """Trains `model`, and leaves the random state as it was."""
        with seeded(self.seed):
            arguments = dict(self.arguments)
            if callable(arguments["x"]):
                arguments |= _unpacked(arguments["x"](self.number))
            arguments["x"] = repeated(arguments["x"], arguments.get("steps_per_epoch"))
            made = self.callbacks(self.number) if callable(self.callbacks) else self.callbacks
            return model.fit(**arguments, callbacks=made, verbose=verbose)


@dataclasses.dataclass(frozen=True)
class _Array:
    """Stands in the arguments of a task for an array in its file."""

    key: str


def _unpacked(data):
    """What a user gives as `x` alone, as arguments of Keras' `fit`."""
    if not isinstance(data, tuple):
        return {"x": data}
    found = dict(zip(_DATA, keras.utils.unpack_x_y_sample_weight(data), strict=False))
    return {name: value for name, value in found.items() if value is not None}


def fit_arguments(x, y, fit_kwargs):
    """Arguments of Keras' `fit`; `x` may still be a function of the member's number."""
    if callable(x) and y is not None:
        raise ValueError(
            "Argument `y` must be None if `x` is a function: it returns the labels as well. "
            f"Received: y of type {type(y).__name__}"
        )
    if isinstance(x, types.GeneratorType):
        raise ValueError(
            "Argument `x` must be data that can be read once per member, or a function that "
            f"returns them. Received: x={shown(x)}, a generator"
        )
    data = _unpacked(x) if y is None else {"x": x, "y": y}
    return {**data, **fit_kwargs}


def write_model(model, path):
    """Saves a model as it is; its optimizer built, because Keras does not load it otherwise."""
    if getattr(model, "optimizer", None) is not None:
        build_optimizer(model)
    model.save(path)


def stored(tasks, members, folder, build_model):
    """The tasks with models and arrays in files of `folder`."""
    arrays, arguments = {}, dict(tasks[0].arguments)
    for name in set(_DATA) & set(arguments):
        arguments[name] = keras.tree.map_structure(
            lambda leaf, name=name: _store(leaf, name, arrays), arguments[name]
        )
    data = os.path.join(folder, "data.npz")
    np.savez(data, **arrays)
    done = []
    for task, member in zip(tasks, members, strict=True):
        model = os.path.join(folder, f"member_{task.number:03d}.keras")
        write_model(member, model)
        files = {"model": model, "data": data, "noise": _noise(member), "imports": build_model}
        files["exclusions"] = _exclusions(member)
        done.append(dataclasses.replace(task, arguments=arguments, **files))
    return done


def _store(leaf, name, arrays):
    if leaf is None or callable(leaf) or isinstance(leaf, keras.utils.PyDataset):
        return leaf
    array = None if isinstance(leaf, tf.data.Dataset) else np.asarray(leaf)
    if array is None or array.dtype.hasobject:
        raise ValueError(
            f"Argument `{name}` must be arrays, a PyDataset or a function that returns data, to go "
            f"to other processes. Received: {name} of type {type(leaf).__name__}"
        )
    key = f"array_{len(arrays)}"
    arrays[key] = array
    return _Array(key)


def train_stored(task):
    """Runs in another process: trains the model in the task's file, and says how it went."""
    with np.load(task.data) as arrays:
        arguments = keras.tree.map_structure(
            lambda leaf: arrays[leaf.key] if isinstance(leaf, _Array) else leaf, task.arguments
        )
    model = _loaded(task.model, task.noise, task.exclusions)
    history = dataclasses.replace(task, arguments=arguments).train(model, verbose=0)
    write_model(model, task.model)
    return history.history, history.epoch, history.params, _noise(model)


def read_trained(task, answer):
    """Keras' history of a member, and in it the model, from what `train_stored` answered."""
    history = keras.callbacks.History()
    history.history, history.epoch, params, noise = answer
    history.set_params(params)
    history.set_model(_loaded(task.model, noise, task.exclusions))
    history.model.history = history
    return history


def _noise(model):
    """Where the noise of each random layer stands: a `.keras` file does not keep that."""
    return tuple(state.numpy() for state in _noise_states(model))


def _noise_states(model):
    return [v for v in model.variables if v.name == "seed_generator_state"]


def _exclusions(model):
    return None if getattr(model, "optimizer", None) is None else exclusions_of(model)


def _loaded(path, noise, exclusions):
    model = keras.models.load_model(path)
    if exclusions is not None:
        exclude(model.optimizer, model, exclusions)
    for state, value in zip(_noise_states(model), noise, strict=True):
        state.assign(value)
    return model


def train_elsewhere(tasks, members, build_model, workers, executor, verbose):
    """Keras' history of each member, trained in other processes; `history.model` is the result."""
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="tfuq-"))
        tasks = stored(tasks, members, folder, build_model)
        pool = executor or opened.enter_context(process_pool(workers))
        futures = [pool.submit(train_stored, task) for task in tasks]
        try:
            _wait_for(futures, verbose)
        finally:
            for future in futures:
                future.cancel()
            concurrent.futures.wait(futures)  # before their files go
        answers = [future.result() for future in futures]
        return [read_trained(*pair) for pair in zip(tasks, answers, strict=True)]


def _wait_for(futures, verbose):
    """Waits for the training of all members; raises what the first of them raises."""
    for future in concurrent.futures.as_completed(futures):
        future.result()
        if verbose:
            print(f"Member {futures.index(future) + 1} of {len(futures)} is trained")


def process_pool(workers):
    """New Python processes: a fork of one that has run TensorFlow hangs."""
    return concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_share_threads,
        initargs=(workers,),
    )


def _share_threads(workers):
    """Gives each of the processes its part of the processor."""
    with contextlib.suppress(RuntimeError):  # too late if the user's script has run TensorFlow
        share = max(1, (os.cpu_count() or 1) // workers)
        tf.config.threading.set_intra_op_parallelism_threads(share)


# --- Checks -----------------------------------------------------------------------------------


def check_executor(executor, workers):
    """Raises ValueError unless `executor` is None, or one of processes and alone."""
    if executor is None:
        return
    is_thread = isinstance(executor, concurrent.futures.ThreadPoolExecutor)
    if is_thread or not isinstance(executor, concurrent.futures.Executor):
        raise ValueError(
            "Argument `executor` must be a concurrent.futures.Executor of processes: threads share "
            f"their random numbers. Received: executor={shown(executor)}"
        )
    if workers != 1:
        raise ValueError(
            f"Argument `workers` must be 1 beside an executor. Received: workers={workers}"
        )


def check_portable(task, build_model):
    """Raises ValueError unless another process can import the functions."""
    functions = {"build_model": build_model, "x": task.arguments["x"], "callbacks": task.callbacks}
    for name, function in functions.items():
        if callable(function):
            _check_importable(name, function)
        elif name == "callbacks" and function is not None:
            raise ValueError(
                "Argument `callbacks` must be a function of the member's number that returns a "
                "list, when members train in other processes. Received: "
                f"callbacks={shown(function)}"
            )


def check_compiles(members):
    """Raises ValueError unless Keras compiles the members again when it loads them."""
    for number, member in enumerate(members):
        kind, usual = type(member), keras.Model
        if (
            kind.compile is usual.compile
            or kind.compile_from_config is not usual.compile_from_config
        ):
            continue
        raise ValueError(
            "Argument `workers` must be 1, and `executor` None, for models whose own `compile` "
            "Keras cannot repeat from a file: write `get_compile_config` and "
            f"`compile_from_config`. Received: member {number}, {shown(member)}"
        )


def _check_importable(name, function):
    inner = function.func if isinstance(function, functools.partial) else function
    name_of_module = getattr(inner, "__module__", None)
    module = found = sys.modules.get(name_of_module)
    for part in getattr(inner, "__qualname__", "?").split("."):
        found = getattr(found, part, None)
    is_interactive = name_of_module == "__main__" and not hasattr(module, "__file__")
    if found is not inner or is_interactive:
        raise ValueError(
            f"Argument `{name}` must be a function that other processes can import, defined at the "
            f"top of a module and not in a notebook or another function. "
            f"Received: {name}={shown(function)}"
        )
