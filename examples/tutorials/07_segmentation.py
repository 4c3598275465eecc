"""Segmentation with uncertainty
=============================

::

    python examples/tutorials/07_segmentation.py            # half a minute
    python examples/tutorials/07_segmentation.py --quick    # few epochs

A photograph of coins: which pixels show a coin? A network learns from the left half, and says for
each pixel of the right half how sure it is. This needs the extra `examples`.
"""

import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage import data, filters

import tfuq

QUICK = "--quick" in sys.argv
keras.utils.set_random_seed(0)
SIZE = 32

# %%
# A local threshold of the smoothed picture gives the labels, with holes filled. They are imperfect
# at the edges, which the network cannot know.
image = data.coins()[:288, :384].astype("float32") / 255
smooth = filters.gaussian(image, 2)
mask = ndimage.binary_fill_holes(smooth > filters.threshold_local(smooth, 151))


def pieces(rows, columns):
    """Squares of the picture and of its mask that begin at these rows and columns."""
    corners = [(r, c) for r in rows for c in columns]
    x = np.stack([image[r : r + SIZE, c : c + SIZE] for r, c in corners])[..., None]
    return x, np.stack([mask[r : r + SIZE, c : c + SIZE] for r, c in corners]).astype("int32")


x_train, y_train = pieces(range(0, 257, 8), range(0, 161, 16))
x_test, y_test = pieces(range(0, 288, SIZE), range(192, 384, SIZE))

# %%
# Dropout takes part in draws of the network: `MCDropout` instead of `Dropout`.
model = keras.Sequential(
    [
        keras.Input((SIZE, SIZE, 1)),
        keras.layers.Conv2D(16, 5, padding="same", activation="relu"),
        keras.layers.Conv2D(16, 5, padding="same", dilation_rate=2, activation="relu"),
        tfuq.layers.MCDropout(0.2),
        keras.layers.Conv2D(2, 1),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.003), loss)
model.fit(x_train, y_train, epochs=1 if QUICK else 10, verbose=0)

# %%
found = tfuq.predictive.predict_uncertainty(model, x_test, num_samples=4 if QUICK else 20)
right = found.label == y_test
sure = found.predictive_entropy < np.median(found.predictive_entropy)
print(f"pixels right: all {right.mean():.3f}, of the surer half {right[sure].mean():.3f}")


def whole(values):
    """The squares side by side again."""
    rows, columns = 288 // SIZE, 192 // SIZE
    return values.reshape(rows, columns, SIZE, SIZE).swapaxes(1, 2).reshape(288, 192)


figure, axes = plt.subplots(1, 4, figsize=(9, 3.6), layout="constrained")
shown = {
    "picture": whole(x_test[..., 0]),
    "answer": whole(found.label),
    "wrong": whole(~right),
    "entropy (nats)": whole(found.predictive_entropy),
}
for ax, (name, values) in zip(axes, shown.items(), strict=True):
    ax.imshow(values, cmap="gray" if name == "picture" else "viridis")
    ax.set(title=name, xticks=[], yticks=[])

# %%
# **What was learned.** Uncertainty is largest at the edges, where the errors are. So a person needs
# to check only a few pixels.
