"""A training with everything at once that is killed again and again, for test_training_kills.py.

    python training_kills_process.py FOLDER KILLS SEED

As resume_process.py, whose processes these are; the network is sparse and Bayesian, and becomes so
in the middle of the training. FOLDER gets `kills.json` too: what each kill left behind.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "callbacks"))

import keras
import numpy as np
import resume_process as trainings

from tfuq.callbacks import (
    SGDR,
    BackupAndRestore,
    KLAnnealing,
    SaliencySelection,
    SnapshotEnsemble,
)
from tfuq.layers import SparseBayesDense

EPOCHS, STEPS = trainings.EPOCHS, trainings.STEPS
SELECTED = 5  # epochs before the most salient weights become random
ANNEALED = 12  # epochs in which the weight of the KL divergence rises
GARBAGE = b"half a file"


def network():
    layers = [
        SparseBayesDense(24, activation="relu", r_bayes=0.2, kl_weight=1 / 32, seed=2),
        keras.layers.Dropout(0.2, seed=1),
        SparseBayesDense(3, r_bayes=0.3, kl_weight=1 / 32, seed=3),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, jit_compile=False)
    return model


class Steps(trainings.Rates):
    """Notes the weight of the KL divergence as well."""

    def on_train_batch_end(self, batch, logs=None):
        optimizer, layer = self.model.optimizer, self.model.layers[0]
        step, rate = int(optimizer.iterations), float(optimizer.learning_rate)
        beta = float(keras.ops.convert_to_numpy(layer.beta))
        os.write(self.file, f"{step} {rate.hex()} {beta.hex()}\n".encode())


def train(folder, keep):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(STEPS * 8, 4)), rng.integers(3, size=STEPS * 8)
    model = network()
    callbacks = [
        Steps(folder / "rates.txt"),
        KLAnnealing(0.0, 1.0, ANNEALED),
        SaliencySelection(after_epoch=SELECTED, scope="global"),
        SnapshotEnsemble(folder / "snapshots", keep),
        SGDR(0.1, 0.001, **trainings.CYCLES),
        BackupAndRestore(folder / "backup"),
    ]
    model.fit(x, y, 8, epochs=EPOCHS, shuffle=False, callbacks=callbacks, verbose=0)
    variables = {id(each): each for each in [*model.variables, *model.optimizer.variables]}.values()
    np.savez(folder / "last.npz", *[keras.ops.convert_to_numpy(each) for each in variables])


LEFT = []


def look(folder):
    """Reads the backup that a kill left, and leaves what one in the middle of a write would."""
    names = sorted(path.name for path in folder.glob("*/.unfinished-*"))
    backup = folder / "backup" / "backup.npz"
    epoch = None
    if backup.exists():
        with np.load(backup, allow_pickle=False) as file:  # all of it, against its checksums
            epoch = json.loads(bytes({name: file[name] for name in file.files}["state"]))["epoch"]
    LEFT.append({"half_written": names, "epoch": epoch})
    for name in ("backup/backup.npz", "snapshots/snapshots.json"):
        path = folder / name
        if path.parent.exists():
            path.with_name(".unfinished-" + path.name).write_bytes(GARBAGE)


if __name__ == "__main__":
    trainings.main(*sys.argv[1:], train=train, between=look)
    pathlib.Path(sys.argv[1], "kills.json").write_text(json.dumps(LEFT))
