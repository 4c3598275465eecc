"""Another hospital
================

::

    python examples/tutorials/05_another_hospital.py            # ten seconds
    python examples/tutorials/05_another_hospital.py --quick    # few epochs

A rule keeps its promise at home. Then noisier images come from another scanner. A test without
labels finds the shift, a table by hospital shows where the rule fails, and a monitor raises an
alarm as labels come in. This needs the extra `examples`.
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
# Digits again. The images "abroad" are test images with the noise of a worse scanner.
x, y = load_digits(return_X_y=True)
x = x / 16
rng = np.random.default_rng(0)
train, fit, test = np.split(rng.permutation(len(x)), [500, 1100])
abroad = np.clip(x[test] + rng.normal(0, 0.35, x[test].shape), 0, 1)

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
)
model.compile(
    keras.optimizers.Adam(0.005), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
model.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)
found = tfuq.predictive.predict_uncertainty(model, x[fit])
rule = tfuq.selective.RejectionRule.fit(found, y[fit], target_risk=0.1 if QUICK else 0.03)
print(rule.describe())

# %%
# At home the promise holds. Abroad the rule refuses more, and is still wrong too often.
for name, images in (("home", x[test]), ("abroad", abroad)):
    new = tfuq.predictive.predict_uncertainty(model, images)
    accepted, wrong = rule.accept(new), new.label != y[test]
    print(f"{name}: accepts {accepted.mean():.2f}, of these {wrong[accepted].mean():.3f} are wrong")

# %%
# Without labels: a test finds the shift, and estimates the accuracy abroad.
print(tfuq.selective.shift_report(model, (x[fit], y[fit]), abroad).to_markdown())

# %%
# With the labels of both places, a table shows where the rule fails.
everywhere = tfuq.predictive.predict_uncertainty(model, np.concatenate([x[test], abroad]))
places = np.repeat(["home", "abroad"], len(test))
labels = np.tile(y[test], 2)
print(tfuq.selective.subgroup_report(rule, everywhere.probs, labels, places).to_markdown())

# %%
# The monitor gets one labelled case after the other, and raises an alarm when chance no longer
# explains the errors. At home it stays silent.
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, images in (("home", x[test]), ("abroad", abroad)):
    new = tfuq.predictive.predict_uncertainty(model, images)
    monitor = rule.monitor()
    alarms = monitor.update(new, y[test]).alarms
    print(f"{name}: alarms {alarms}")
    errors = np.cumsum(rule.accept(new) & (new.label != y[test]))
    axis.plot(errors / np.maximum(np.cumsum(rule.accept(new)), 1), label=name)
axis.axhline(0.1 if QUICK else 0.03, color="gray", linestyle=":", label="promised at most")
axis.set(xlabel="cases", ylabel="wrong among the accepted")
axis.legend()

# %%
# **What was learned.** A promise holds only for data like those of the fit. Test new data for a
# shift, and watch the promise: ``rule.monitor()`` costs a line, and at most one stream in 20 has a
# false alarm.
