"""EfficientNet-Lite0 whose last stages have learned a set: a network as good as people use.

What the first stages give is computed once and kept; the last two, the head's convolution and a new
last layer train on it. Statistics of batches stay those of ImageNet, so that the whole network does
to an image what its two parts do one after the other.
"""

import hashlib
import os
import pathlib

import keras
import numpy as np

from evidence.features import BATCH, QUALITY, SIZE, one_codec, trunk

CUT = "block10_add"  # the last layer that stays as it is: stages 1 to 5
EPOCHS, RATE, DECAY, PIECE = 4, 5e-4, 1e-4, 2000


def copied(layers, kept, again):
    """Applies layers one after another to the tensors `kept` by name; `again(layer)` of each."""
    for layer in layers:
        names = [t._keras_history.operation.name for t in keras.tree.flatten(layer.input)]
        came = [kept[name] for name in names]
        kept[layer.name] = again(layer)(came if len(came) > 1 else came[0])
    return kept[layers[-1].name]


def parts_of(network, classes, cut=CUT):
    """The network in two: until `cut`, and a copy of what is after it, with a new last layer."""
    middle = network.get_layer(cut).output
    names = [layer.name for layer in network.layers]
    inputs = keras.Input(middle.shape[1:])
    fresh = {}

    def again(layer):
        fresh[layer.name] = type(layer).from_config(layer.get_config())
        return fresh[layer.name]

    after = network.layers[names.index(cut) + 1 :]
    x = copied(after, {cut: inputs}, again)
    upper = keras.Model(inputs, keras.layers.Dense(classes, name="classes")(x))
    for layer in after:
        fresh[layer.name].set_weights(layer.get_weights())
    return keras.Model(network.input, middle), upper


def set_statistics(model, is_trainable):
    """Batch normalization that is frozen uses, and keeps, the statistics that it has."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = is_trainable


def middle_of(first, images, cache, cut=CUT):
    """What the first stages give for images, float16, computed once."""
    sign = f"{cut}{SIZE}{QUALITY}{images.shape}".encode() + np.ascontiguousarray(images).tobytes()
    path = pathlib.Path(cache) / f"middle-{hashlib.sha256(sign).hexdigest()[:24]}.npy"
    if not path.is_file():
        found = [
            first.predict(one_codec(images[i : i + PIECE]), batch_size=BATCH, verbose=0)
            for i in range(0, len(images), PIECE)
        ]
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.concatenate(found).astype("float16"))
        partial.replace(path)
    return np.load(path)


def tuned(folder, cache, images, labels, seed):
    """A model of images (SIZE pixels, 0 to 255) to logits; the weights that train are in `cache`.

    Nothing of it is chosen by looking at a result: four epochs, one cosine.
    """
    first, upper = parts_of(trunk(folder), int(labels.max()) + 1)
    path = pathlib.Path(cache) / f"tuned-{len(images)}-{EPOCHS}-{seed}.weights.h5"
    set_statistics(upper, False)
    if path.is_file():
        upper.load_weights(path)
    else:
        x = middle_of(first, images, cache)
        keras.utils.set_random_seed(seed)
        steps = EPOCHS * -(-len(x) // BATCH)
        rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=DECAY)
        upper.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
        upper.fit(x, labels, batch_size=BATCH, epochs=EPOCHS, verbose=2)
        upper.save_weights(path)
    set_statistics(upper, True)
    cut = upper.input._keras_history.operation.name
    end = copied(upper.layers[1:], {cut: first.output}, lambda layer: layer)
    return keras.Model(first.input, end)
