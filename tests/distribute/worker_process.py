"""Machines on 127.0.0.1 that train one model together, for test_distribute.py.

    python worker_process.py FOLDER WORKERS KILLS SEED (brief|whole)

This process imports TensorFlow and does not run it; each worker is a fork of it, and so begins at
once. Worker i writes what it found to `FOLDER/worker_i.npz`, and its files to `FOLDER/files` (which
all share) and `FOLDER/files_i`. One more process, `single`, does the same without TF_CONFIG.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import time
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("TF_CONFIG", None)

import keras
import numpy as np
import tensorflow as tf

from tfuq import layers
from tfuq.callbacks import (
    SGDR,
    BackupAndRestore,
    KLAnnealing,
    RejectionEvaluator,
    SnapshotEnsemble,
)
from tfuq.distribute import is_chief, multi_worker

PATIENCE = 600  # seconds after which a worker that hangs ends itself
EXAMPLES, BATCH, EPOCHS = 32, 8, 4


# --- What they train --------------------------------------------------------------------------


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, 4)).astype("float32")
    return x, (x[:, 0] > 0) + (x[:, 1] > 0).astype("int32")


def build():
    """A variational layer's KL, a last layer's closed bound, a heteroscedastic head; no noise."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    body = keras.layers.Dense(6, "tanh")(inputs)
    bound = layers.VBLLDense(3, kl_weight=0.1, name="bound")(body)
    draws = {"train_mc_samples": 4, "test_mc_samples": 8, "share_samples_across_batch": True}
    head = layers.MCSoftmaxDenseFA(3, num_factors=1, logits_only=True, name="head", **draws)(body)
    model = keras.Model(inputs, {"bound": bound, "head": head})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = {"bound": ["accuracy"], "head": [keras.metrics.SparseCategoricalAccuracy("hits")]}
    model.compile(keras.optimizers.Adam(0.05), {"bound": loss, "head": loss}, metrics=metrics)
    return model


class Notes(keras.callbacks.Callback):
    """Writes a line after each step, and waits a little: kills find a training that goes on."""

    def __init__(self, path, pause):
        super().__init__()
        self.path, self.pause = path, pause

    def on_train_batch_end(self, batch, logs=None):
        with open(self.path, "a") as file:
            file.write("step\n")
        time.sleep(self.pause)


def train(strategy, shared, own, whole, pause=0.0):
    with strategy.scope():
        model = build()
    x, y = data()
    labels = {"bound": y, "head": y}
    shared.mkdir(exist_ok=True), own.mkdir(exist_ok=True)
    rejection = RejectionEvaluator((x, labels), [0.4], output="bound", from_logits=True, verbose=0)
    callbacks = [
        rejection,
        SGDR(0.05, 0.001, cycle_length=1),
        KLAnnealing(duration=2),
        SnapshotEnsemble(shared / "snapshots"),
        SnapshotEnsemble(own / "snapshots"),
        keras.callbacks.ModelCheckpoint(own / "best.keras"),
        keras.callbacks.CSVLogger(own / "log.csv"),
        Notes(own / "steps.txt", pause),
        BackupAndRestore(own / "backup", delete_checkpoint=False),
    ]
    callbacks += [keras.callbacks.TensorBoard(own / "board")] if whole else []
    epochs = EPOCHS if whole else 2
    fit = model.fit(
        x, labels, BATCH, epochs, 0, callbacks, validation_data=(x, labels), shuffle=False
    )
    found = {f"history/{name}": values for name, values in fit.history.items()}
    found |= {f"evaluate/{k}": v for k, v in judged(model, x, labels, EXAMPLES).items()}
    found |= {f"rest/{k}": v for k, v in judged(model, x, labels, EXAMPLES - 3).items()}
    predicted = model.predict(x[:-3], BATCH, 0)
    found |= {f"predict/{name}": value for name, value in predicted.items()}
    found |= {f"weights/{i:02d}": w for i, w in enumerate(model.get_weights())}
    paths = [len(c.paths) for c in callbacks if isinstance(c, SnapshotEnsemble)]
    return {**found, "begins": fit.epoch[0] if fit.epoch else epochs, "snapshots": paths}


def judged(model, x, labels, count):
    some = {name: values[:count] for name, values in labels.items()}
    return model.evaluate(x[:count], some, BATCH, 0, return_dict=True)


def keras_backup(strategy, shared):
    """Keras' own backup, on a disk that all share: a training that stops, and one that goes on."""

    class Stop(Exception):
        pass

    def stop(epoch, logs):
        if epoch == 1:
            raise Stop

    for ends in (False, True):
        with strategy.scope():
            model = build()
        x, y = data()
        callbacks = [keras.callbacks.BackupAndRestore(shared / "keras")]
        if not ends:
            callbacks.append(keras.callbacks.LambdaCallback(on_epoch_end=stop))
        try:
            fit = model.fit(x, {"bound": y, "head": y}, BATCH, 3, 0, callbacks, shuffle=False)
        except Stop:
            continue
    return {"keras/begins": fit.epoch[0], "keras/loss": fit.history["loss"]}


# --- The processes ----------------------------------------------------------------------------


def free_ports(count):
    opened = [socket.socket() for _ in range(count)]
    for each in opened:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


def work(folder, name, ports, whole, pause):
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as conftest
    if ports is not None:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": int(name)}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    shared = folder / ("single" if ports is None else "files")
    with multi_worker() as strategy:
        found = train(strategy, shared, folder / f"files_{name}", whole, pause)
        if whole and not pause:
            found |= keras_backup(strategy, shared)
        found["chief"] = [is_chief(), is_chief(strategy)]
    np.savez(folder / f"worker_{name}.npz", **found)


def forked(folder, name, *args):
    child = os.fork()
    if child:
        return child
    signal.alarm(PATIENCE)
    try:
        work(folder, name, *args)
        os._exit(0)
    except BaseException:
        (folder / f"error_{name}.txt").write_text(traceback.format_exc())
        os._exit(1)


def started(folder, count, whole, pause=0.0):
    ports = free_ports(count)
    return [forked(folder, str(index), ports, whole, pause) for index in range(count)]


def ended(children, grace):
    """Waits for all of them; where one failed, the others have so many seconds to end as well.

    Returns the exit statuses of those that failed by themselves.
    """
    waiting, failed, until = set(children), [], None
    while waiting:
        child, status = os.waitpid(-1, 0 if until is None else os.WNOHANG)
        waiting.discard(child)
        if child and status:
            failed.append(status)
            until = until or time.monotonic() + grace
        if until is not None and time.monotonic() > until:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            break
        time.sleep(0.01 if until is not None else 0)
    return failed


def steps_in(folder):
    paths = sorted(folder.glob("files_[0-9]*/steps.txt"))
    return sum(path.read_text().count("\n") for path in paths)


def killed(folder, count, rng):
    """Kills one worker, of any index, while all of them train; the others then fail, or are ended.

    Returns its index, and how many of the others failed by themselves.
    """
    wanted = steps_in(folder) + count * rng.choice([6, 7])  # in the second epoch of this start
    children = started(folder, count, True, pause=0.05)
    until = time.monotonic() + PATIENCE
    while steps_in(folder) < wanted:
        time.sleep(0.005)
        if time.monotonic() > until:
            for child in children:
                os.kill(child, signal.SIGKILL)
            sys.exit("the workers do not train")
    victim = rng.randrange(count)
    os.kill(children[victim], signal.SIGKILL)
    return victim, len(ended(children, grace=10)) - 1


def main(folder, count, kills, seed, whole):
    """`count` workers beside a process alone, after so many kills of one of them each."""
    folder, count, rng = pathlib.Path(folder), int(count), random.Random(int(seed))
    done = []
    for number in range(int(kills)):
        done.append(killed(folder, count, rng))
        shutil.copytree(folder / "files_0" / "backup", folder / f"after_{number}")
        for path in folder.glob("error_*.txt"):  # of those that lost a peer
            path.unlink()
    pause = 0.05 if done else 0.0
    children = [forked(folder, "single", None, whole == "whole", pause)]
    if ended([*children, *started(folder, count, whole == "whole", pause)], grace=1):
        sys.exit("\n".join(path.read_text() for path in folder.glob("error_*.txt")))
    (folder / "kills.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
