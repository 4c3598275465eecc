"""From the notebook to a server
=============================

::

    python examples/tutorials/11_notebook_to_server.py            # ten seconds
    python examples/tutorials/11_notebook_to_server.py --quick    # few epochs

Export a model with its decision as a SavedModel, verify it, and call it as a server does: with
plain TensorFlow, without tfuq or Keras. This needs the extra `examples`.
"""

import pathlib
import sys
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import tfuq

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)

# %%
# In the notebook: a network and a rule.
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
train, fit, test = np.split(np.random.default_rng(0).permutation(len(x)), [500, 1200])
model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, activation="relu"),
        tfuq.layers.MCSoftmaxDenseFA(10, num_factors=3, logits_only=True),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.005), loss)
model.fit(x[train], y[train], epochs=5 if QUICK else 30, verbose=0)
found = tfuq.predictive.predict_uncertainty(model, x[fit])
rule = tfuq.selective.RejectionRule.fit(found, y[fit], target_risk=0.1 if QUICK else 0.03)

# %%
# The export holds the network, its uncertainty and the decision. `verify_export` compares it with
# the model.
folder = str(pathlib.Path(tempfile.mkdtemp()) / "served")
tfuq.export.export(model, folder, rule=rule)
expected = tfuq.predictive.predict_uncertainty(model, x[test])
tfuq.export.verify_export(folder, x[test], expected)

# %%
# On the server: only TensorFlow.
served = tf.saved_model.load(folder)
answer = served.serve(x[test])
print("it returns", sorted(answer))
accepted = answer["accept"].numpy()
wrong = answer["label"].numpy() != y[test]
print(f"accepts {accepted.mean():.3f}; of the accepted {wrong[accepted].mean():.3f} are wrong")

# %%
# A client might show this.
figure, axes = plt.subplots(1, 8, figsize=(9, 1.8), layout="constrained")
order = np.argsort(answer["confidence"].numpy())[:: len(test) // 8][:8]
for ax, index in zip(axes, order, strict=True):
    ax.imshow(x[test][index].reshape(8, 8), cmap="gray_r")
    label = answer["label"].numpy()[index]
    ax.set_title(f"{label}" if accepted[index] else f"({label}) ask", fontsize=9)
    ax.set_axis_off()

# %%
# **What was learned.** The decision travels with the model, and is the same there as here. For a
# whole server, which also monitors the promise, see ``examples/serving``.
