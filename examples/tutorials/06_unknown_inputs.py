"""Inputs that the model does not know
===================================

::

    python examples/tutorials/06_unknown_inputs.py            # ten seconds
    python examples/tutorials/06_unknown_inputs.py --quick    # few epochs

A network that knows the digits 0 to 7 gets an 8 or a 9. It must answer with one of its eight
classes; a detector says that the input is unknown. This needs the extra `examples`.
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
# The training set has no eights and nines.
x, y = load_digits(return_X_y=True)
x = x / 16
known = np.random.default_rng(0).permutation(np.flatnonzero(y < 8))
train, val, test = np.split(known, [800, 1100])
strange = np.flatnonzero(y >= 8)

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(8)]
)
model.compile(
    keras.optimizers.Adam(0.005), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
model.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)

# %%
# Four detectors. A larger score means a stranger input. The AUROC says how often a strange input
# scores above a familiar one: 0.5 is chance, 1 is always.
scores = {}
is_strange = np.repeat([0, 1], [len(test), len(strange)])
for detector in (
    tfuq.ood.KNN(),
    tfuq.ood.Mahalanobis(),
    tfuq.ood.MaxSoftmax(),
    tfuq.ood.Energy(),
):
    name = type(detector).__name__
    detector.fit(model, x[train], y[train])
    scores[name] = detector.score(x[test]), detector.score(x[strange])
    print(f"{name}: AUROC {tfuq.metrics.auroc(is_strange, np.concatenate(scores[name])):.3f}")

# %%
# A threshold for the last one, the energy: 95 % of the familiar validation images pass it.
threshold = detector.threshold_at(tpr=0.95, x=x[val])
print(f"familiar inputs stopped: {detector.detect(x[test]).mean():.3f}")
print(f"strange inputs stopped: {detector.detect(x[strange]).mean():.3f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, name in zip(axes, ("KNN", "Energy"), strict=True):
    for label, values in zip(("0 to 7", "8 and 9"), scores[name], strict=True):
        ax.hist(values, 30, alpha=0.6, density=True, label=label)
    ax.set(title=name, xlabel="score: larger is stranger")
axes[0].legend()

# %%
# **What was learned.** A soft-max always answers, and can be sure of nonsense. The best detector
# depends on the data: compare several on the strange inputs that you expect, as above.
