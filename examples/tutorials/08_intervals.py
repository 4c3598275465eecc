"""Regression with intervals
=========================

::

    python examples/tutorials/08_intervals.py            # ten seconds
    python examples/tutorials/08_intervals.py --quick    # few epochs

How far will the disease progress within a year? A number alone helps little; an interval that holds
the truth 9 times in 10 helps more. This needs the extra `examples`.
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

import tfuq

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# 442 real patients, ten measurements each.
x, y = load_diabetes(return_X_y=True, scaled=True)
x = x / x.std(axis=0)
train, fit, test = np.split(np.random.default_rng(0).permutation(len(x)), [220, 330])

# %%
# The last layer gives a mean and a standard deviation for each patient.
model = keras.Sequential(
    [
        keras.Input((10,)),
        keras.layers.Dense(32, activation="relu"),
        tfuq.layers.NormalDense(1),
    ]
)
scale = y[train].mean()
model.compile(keras.optimizers.Adam(0.01), tfuq.losses.NegativeLogLikelihood())
model.fit(x[train], y[train] / scale, epochs=5 if QUICK else 40, verbose=0)

# %%
# First the network's own 90 % interval: does it hold the truth often enough?
found = tfuq.predictive.predict_uncertainty(model, x[test])
lower, upper = found.interval(0.9)
truth = y[test, None] / scale
held = (lower <= truth) & (truth <= upper)
print(f"its own interval holds {held.mean():.3f} of the test patients")

# %%
# The conformal interval is widened or narrowed on other patients, until it holds 90 % of them.
known = tfuq.predictive.predict_uncertainty(model, x[fit])
options = {"alpha": 0.1, "method": "normalized"}
wide = tfuq.selective.ConformalRegressor.fit(known, y[fit] / scale, **options)
lower, upper = wide.interval(found)
held = (lower <= truth) & (truth <= upper)
print(f"the conformal interval holds {held.mean():.3f}")
print(wide.describe())

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
order = np.argsort(found.mean[:, 0])
axis.fill_between(
    np.arange(len(test)), scale * lower[order, 0], scale * upper[order, 0], alpha=0.3, label="90 %"
)
axis.plot(scale * found.mean[order, 0], label="mean")
axis.plot(y[test][order], ".", label="truth")
axis.set(xlabel="patients, by predicted mean", ylabel="progression after a year")
axis.legend()

# %%
# **What was learned.** A network that overfits is too sure of its numbers. Patients that it has not
# seen correct that, for any network, without training again.
