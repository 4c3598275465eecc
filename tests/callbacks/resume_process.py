"""A training that is killed again and again, beside one that is not, for test_resume.py.

    python resume_process.py FOLDER KILLS SEED

Each training is a fork of this process, which has imported TensorFlow but not run it, and begins at
once. In FOLDER, `whole` and `killed` get the rates of all steps, the snapshots and the last
weights; `after_0`, `after_1` and so on the snapshots as each kill left them.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

from tfuq.callbacks import SGDR, BackupAndRestore, SnapshotEnsemble

EPOCHS, STEPS = 24, 4
CYCLES = {"cycle_length": 0.75, "cycle_mult": 2}  # they end at steps 3, 9, 21, 45 and 93
KEEP = 3
PATIENCE = 600  # seconds after which a training that hangs ends itself


class Rates(keras.callbacks.Callback):
    """Notes steps and rates in a file, as bits, and each as it happens."""

    def __init__(self, path):
        super().__init__()
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        step, rate = int(optimizer.iterations), float(optimizer.learning_rate)
        os.write(self.file, f"{step} {rate.hex()}\n".encode())


def train(folder, keep):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(STEPS * 8, 4)), rng.integers(3, size=STEPS * 8)
    hidden = [keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.2, seed=1)]
    model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, jit_compile=False)
    callbacks = [
        Rates(folder / "rates.txt"),
        SnapshotEnsemble(folder / "snapshots", keep),
        SGDR(0.1, 0.001, **CYCLES),
        BackupAndRestore(folder / "backup"),
    ]
    model.fit(x, y, 8, epochs=EPOCHS, shuffle=False, callbacks=callbacks, verbose=0)
    model.save_weights(folder / "last.weights.h5")
    np.save(folder / "noise.npy", hidden[1].seed_generator.state.numpy())


def forked(train, folder, keep):
    """Starts `train(folder, keep)` in a new process, and returns its id."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child:
        return child
    signal.alarm(PATIENCE)
    try:
        train(folder, keep)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(child):
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a training ended with status {status}")


def has_ended(child):
    """Whether there is nothing left of `child` to kill."""
    found, status = os.waitpid(child, os.WNOHANG)
    if status:
        sys.exit(f"a training ended with status {status}")
    return found == child


def killed(train, folder, rng):
    """Kills a training a random number of steps, and some fraction of one, after it begins.

    Returns whether it was still there.
    """
    child = forked(train, folder, KEEP)
    rates, steps, rest = folder / "rates.txt", rng.randrange(1, 4 * STEPS), rng.uniform(0, 0.01)

    def count():
        return rates.read_bytes().count(b"\n") if rates.exists() else 0

    target = count() + steps
    while count() < target:
        if has_ended(child):
            return False
        time.sleep(0.0005)
    time.sleep(rest)
    if has_ended(child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(folder, kills, seed, train=train, between=lambda folder: None):
    """Trains once in peace and once not; `between(folder)` is called after each kill."""
    folder, rng = pathlib.Path(folder), random.Random(int(seed))
    finish(forked(train, folder / "whole", None))
    done = 0
    while done < int(kills):
        if killed(train, folder / "killed", rng):
            with contextlib.suppress(FileNotFoundError):  # before the first cycle is over
                shutil.copytree(folder / "killed" / "snapshots", folder / f"after_{done}")
            between(folder / "killed")
            done += 1
    finish(forked(train, folder / "killed", KEEP))


if __name__ == "__main__":
    main(*sys.argv[1:])
