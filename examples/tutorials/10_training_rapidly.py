"""Training rapidly
================

::

    python examples/tutorials/10_training_rapidly.py            # half a minute
    python examples/tutorials/10_training_rapidly.py --quick    # one cycle

Which learning rate? One call tests a range, trains in cycles, and keeps the network at the end of
each cycle: an ensemble for the price of one training. This needs the extra `examples`.
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tfuq

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
x, y = load_digits(return_X_y=True)
x = x / 16
train, val, test = np.split(np.random.default_rng(0).permutation(len(x)), [900, 1200])
model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(momentum=0.9), loss, metrics=["accuracy"])

# %%
# The range test trains with growing rates, and then restores everything.
found = tfuq.lr_range_test(model, (x[train], y[train]), stop=1e4, num_steps=100)
print(f"suggested learning rate: {found.suggestion:.3g}")
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis = found.plot(ax=axis)

# %%
# Everything in one call; each cycle is twice as long as the one before.
history = tfuq.training.rapid_fit(
    model,
    (x[train], y[train]),
    (x[val], y[val]),
    num_cycles=2 if QUICK else 4,
    snapshots="tutorial_output/cycles",
    range_test={"stop": 1e4},
    verbose=0,
)
ensemble = history.snapshots.ensemble()
one = np.mean(model.predict(x[test], verbose=0).argmax(-1) == y[test])
several = np.mean(ensemble.predict(x[test]).mean(axis=0).argmax(-1) == y[test])
print(f"accuracy of the last network {one:.3f}, of the ensemble of cycles {several:.3f}")

# %%
# **What was learned.** You need not guess the rate, and the ensemble costs only memory. If a few
# epochs are enough for a good network, its snapshots are much alike, and gain little.
