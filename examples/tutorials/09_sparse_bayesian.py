"""Sparse Bayesian networks
========================

::

    python examples/tutorials/09_sparse_bayesian.py            # half a minute
    python examples/tutorials/09_sparse_bayesian.py --quick    # few epochs

The weights of a trained network with the largest gradients become random; all others stay as they
are. How many are needed? This needs the extra `examples`.
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tfuq

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)
SHARES = (0.05,) if QUICK else (0.01, 0.05, 0.2)

# %%
# A network, trained as usual on 300 digits.
x, y = load_digits(return_X_y=True)
x = x / 16
train, test = np.split(np.random.default_rng(0).permutation(len(x)), [300])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
trained = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
)
trained.compile(keras.optimizers.Adam(0.003), loss)
trained.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)


# %%
# NLL measures the probabilities, AURC how well the ranking by confidence finds the errors. Lower is
# better for both.
def judge(model):
    found = tfuq.predictive.predict_uncertainty(model, x[test])
    nll = tfuq.metrics.negative_log_likelihood(y[test], found.probs)
    return np.mean(found.label == y[test]), nll, tfuq.selective.aurc(found.probs, y[test])


figures = {"none": judge(trained)}
for share in SHARES:
    sparse = tfuq.convert.sparse_bayesian(
        trained, (x[train], y[train]), loss, r_bayes=share, kl_weight=1 / len(train)
    )
    sparse.compile(keras.optimizers.Adam(0.003), loss)
    sparse.fit(x[train], y[train], epochs=2 if QUICK else 30, verbose=0)
    figures[f"{100 * share:g} %"] = judge(sparse)
for name, (accuracy, nll, aurc) in figures.items():
    print(f"{name} random: accuracy {accuracy:.3f}, NLL {nll:.3f}, AURC {aurc:.4f}")

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, column, label in zip(axes, range(3), ("accuracy", "NLL (nats)", "AURC"), strict=True):
    ax.bar(list(figures), [row[column] for row in figures.values()])
    ax.set(xlabel="random weights", ylabel=label)

# %%
# **What was learned.** One seed and one data set show how it is done, not which share is best; for
# that see the tables with three seeds in ``benchmarks/README.md``. The network also trained longer,
# which explains a part of any gain.
