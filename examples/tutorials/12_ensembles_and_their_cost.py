"""Ensembles and their cost
========================

::

    python examples/tutorials/12_ensembles_and_their_cost.py            # a minute
    python examples/tutorials/12_ensembles_and_their_cost.py --quick    # two members

Several networks, trained independently, know more than one, and cost as many trainings. What do
they gain here, and what does a second or a fifth member add? This needs the extra `examples`.
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tfuq

QUICK = "--quick" in sys.argv
MEMBERS = 2 if QUICK else 8
keras.utils.set_random_seed(0)

# %%
# Few training images, so that there is something to gain.
x, y = load_digits(return_X_y=True)
x = x / 16
train, test = np.split(np.random.default_rng(0).permutation(len(x)), [200])


def build():
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, jit_compile=False)
    return model


ensemble = tfuq.ensembles.DeepEnsemble(build, num_members=MEMBERS, seed=0)
ensemble.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)

# %%
# The stack of predictions is `(members, examples, classes)`. We evaluate the first 1, 2, ...
# members. The cost of training and of an answer grows with their number.
stack = ensemble.predict(x[test])
figures = []
for count in range(1, MEMBERS + 1):
    probs = stack[:count].mean(axis=0)
    nll = tfuq.metrics.negative_log_likelihood(y[test], probs)
    figures.append((np.mean(probs.argmax(-1) == y[test]), nll))
    print(f"{count} members: accuracy {figures[-1][0]:.3f}, NLL {nll:.3f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, column, label in zip(axes, (0, 1), ("accuracy", "NLL (nats)"), strict=True):
    ax.plot(range(1, MEMBERS + 1), [row[column] for row in figures], "o-")
    ax.set(xlabel="members: cost of training and prediction", ylabel=label)

# %%
# If the members disagree, the answer is wrong more often.
found = tfuq.predictive.decompose(stack)
wrong = found.label != y[test]
epistemic = found.mutual_information
print(f"disagreement of right answers {epistemic[~wrong].mean():.3f} nats, ", end="")
print(f"of wrong ones {epistemic[wrong].mean():.3f}")

# %%
# **What was learned.** The first members gain most. Before you pay for five, look at what two gain.
