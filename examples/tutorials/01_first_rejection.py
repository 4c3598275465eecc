"""A first rejection
=================

::

    python examples/tutorials/01_first_rejection.py            # ten seconds
    python examples/tutorials/01_first_rejection.py --quick    # few epochs

A network reads handwritten digits. It refuses the digits that it is not sure of, so that at most 2
in 100 of its answers are wrong. This needs the extra `examples`.
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
# The data are 1,797 real digits of 8 x 8 pixels, in three parts: one for the network, one for the
# rule, and one to see whether the rule keeps its promise.
x, y = load_digits(return_X_y=True)
x = x / 16
order = np.random.default_rng(0).permutation(len(x))
train, fit, test = np.split(order, [500, 1200])

# %%
# Only the last layer changes: `MCSoftmaxDenseFA` instead of `Dense`.
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, activation="relu"),
        tfuq.layers.MCSoftmaxDenseFA(10, num_factors=3, logits_only=True),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
model.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)
accuracy = model.evaluate(x[test], y[test], verbose=0)[1]
print(f"accuracy without rejection: {accuracy:.3f}")

# %%
# Fit the rule to rows that the network was not trained on. The rule says what it promises.
found = tfuq.predictive.predict_uncertainty(model, x[fit])
rule = tfuq.selective.RejectionRule.fit(found, y[fit], target_risk=0.1 if QUICK else 0.02)
print(rule.describe())

# %%
# Does it hold? On the third part: the share of accepted digits, and how many of them are wrong.
new = tfuq.predictive.predict_uncertainty(model, x[test])
accepted = rule.accept(new)
wrong = new.label != y[test]
print(f"accepts {accepted.mean():.3f}; of the accepted {wrong[accepted].mean():.3f} are wrong")
print(f"of the rejected {wrong[~accepted].mean():.3f} would have been wrong")

# %%
# It refuses digits that a person would look at twice, too.
figure, axes = plt.subplots(2, 6, figsize=(8, 3), layout="constrained")
for row, rows in zip(axes, (np.flatnonzero(accepted), np.flatnonzero(~accepted)), strict=True):
    for ax, index in zip(row, rows[:6], strict=False):
        ax.imshow(x[test][index].reshape(8, 8), cmap="gray_r")
        ax.set_title(f"{new.label[index]} ({new.confidence[index]:.2f})", fontsize=9)
for ax in axes.ravel():
    ax.set_axis_off()
figure.suptitle("Accepted (above) and rejected (below): answer and confidence", fontsize=10)

# %%
# **What was learned.** Do not guess a threshold: labelled rows give it, with a promise. The next
# step is :doc:`a threshold that you can explain </how-to/choose-a-threshold>`.
