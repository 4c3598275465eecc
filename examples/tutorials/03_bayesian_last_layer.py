"""A Bayesian last layer on a trained network
==========================================

::

    python examples/tutorials/03_bayesian_last_layer.py            # ten seconds
    python examples/tutorials/03_bayesian_last_layer.py --quick    # few epochs

A trained network gets epistemic uncertainty in one pass over its training data, without further
training. It shows where more data would help. This needs the extra `examples`.
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
# A network that has seen the digits 0 to 4 often, and 5 to 9 five times each.
x, y = load_digits(return_X_y=True)
x = x / 16
order = np.random.default_rng(0).permutation(len(x))
rows, test = np.split(order, [1000])
rare = np.concatenate([rows[y[rows] == digit][:5] for digit in range(5, 10)])
train = np.concatenate([rows[y[rows] < 5], rare])

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
)
model.compile(
    keras.optimizers.Adam(0.003), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
model.fit(x[train], y[train], epochs=5 if QUICK else 40, verbose=0)

# %%
# Laplace: a Gaussian over the weights of the last layer. Everything else stays as it was.
bayesian = tfuq.convert.laplace_head(model, (x[train], y[train]))
found = tfuq.predictive.predict_uncertainty(bayesian, x[test])
plain = tfuq.predictive.predict_uncertainty(model, x[test])
print(f"accuracy: before {np.mean(plain.label == y[test]):.3f}, ", end="")
print(f"after {np.mean(found.label == y[test]):.3f}")

# %%
# The epistemic part is larger for the digits that it has rarely seen.
often, seldom = y[test] < 5, y[test] >= 5
for name, some in (("often seen", often), ("rarely seen", seldom)):
    print(f"{name}: epistemic {found.mutual_information[some].mean():.4f} nats, ", end="")
    print(f"aleatoric {found.expected_entropy[some].mean():.4f} nats")

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
bins = np.linspace(0, found.mutual_information.max(), 30)
for name, some in (("0 to 4: often seen", often), ("5 to 9: five times each", seldom)):
    axis.hist(found.mutual_information[some], bins, alpha=0.6, density=True, label=name)
axis.set(xlabel="epistemic uncertainty (nats)", ylabel="density")
axis.legend()

# %%
# **What was learned.** The epistemic part shows what the training set lacks, without training
# again. Its meaning and its limits: :doc:`/explanation/uncertainty`.
