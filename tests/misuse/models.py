"""Small networks for the misuse table: heads, losses and activations, right and wrong."""

import functools

import keras
import numpy as np
from keras import layers as kl

from tfuq.layers import (
    DenseVariational,
    LastLayerLaplace,
    MCDropout,
    MCSigmoidDenseFA,
    MCSoftmaxDenseFA,
    VBLLDense,
    VBLLGenerativeDense,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.random((24, 6, 6, 1)).astype("float32")
CLASSES, BINARY = np.arange(24) % 3, np.arange(24) % 2
LABELS = RNG.integers(0, 2, (24, 3))
FROM_LOGITS = {"from_logits": True}
FEW = {"num_factors": 2, "test_mc_samples": 16, "logits_only": True}


def network(*head, loss=None):
    """A small convolutional network that ends in the layers `head`."""
    keras.utils.set_random_seed(1)
    body = [kl.Conv2D(4, 3, activation="relu"), kl.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((6, 6, 1)), *body, *head])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def exclusive(**options):
    return keras.losses.SparseCategoricalCrossentropy(**options)


def independent(**options):
    return keras.losses.BinaryCrossentropy(**options)


# Nobody says what these are, or two sides contradict each other: no entry point may answer.
WRONG = {
    "linear, not compiled": lambda: network(kl.Dense(3)),
    "one linear output, not compiled": lambda: network(kl.Dense(1)),
    "three numbers under mse": lambda: network(kl.Dense(3), loss="mse"),
    "one number under mse": lambda: network(kl.Dense(1), loss="mse"),
    "one number under Huber": lambda: network(kl.Dense(1), loss=keras.losses.Huber()),
    "ReLU outputs, not compiled": lambda: network(kl.Dense(3, "relu")),
    "soft-max under a loss of logits": lambda: network(
        kl.Dense(3, "softmax"), loss=exclusive(**FROM_LOGITS)
    ),
    "sigmoid under a loss of logits": lambda: network(
        kl.Dense(1, "sigmoid"), loss=independent(**FROM_LOGITS)
    ),
    "VBLLDense under a loss by name": lambda: network(
        VBLLDense(3, kl_weight=0.1), loss="sparse_categorical_crossentropy"
    ),
    "MCSoftmaxDenseFA under a loss by name": lambda: network(
        MCSoftmaxDenseFA(3, **FEW), loss="sparse_categorical_crossentropy"
    ),
    "random weights under mse": lambda: network(DenseVariational(1, kl_weight=0.1), loss="mse"),
    "random weights, not compiled": lambda: network(DenseVariational(3, kl_weight=0.1)),
}
# These are known; each is read the same way by every entry point.
RIGHT = {
    "soft-max": lambda: network(kl.Dense(3, "softmax")),
    "soft-max layer": lambda: network(kl.Dense(3), kl.Softmax()),
    "soft-max under mse": lambda: network(kl.Dense(3, "softmax"), loss="mse"),
    "logits by the loss": lambda: network(kl.Dense(3), loss=exclusive(**FROM_LOGITS)),
    "VBLLDense": lambda: network(VBLLDense(3, kl_weight=0.1)),
    "VBLLGenerativeDense": lambda: network(VBLLGenerativeDense(3, kl_weight=0.1)),
    "LastLayerLaplace": lambda: network(LastLayerLaplace(3)),
    "MCSoftmaxDenseFA": lambda: network(MCSoftmaxDenseFA(3, **FEW)),
    "dropout before logits": lambda: network(
        MCDropout(0.3), kl.Dense(3), loss=exclusive(**FROM_LOGITS)
    ),
}
RIGHT_BINARY = {
    "one sigmoid": lambda: network(kl.Dense(1, "sigmoid")),
    "one logit by the loss": lambda: network(kl.Dense(1), loss=independent(**FROM_LOGITS)),
}
RIGHT_LABELS = {
    "three sigmoids": lambda: network(kl.Dense(3, "sigmoid")),
    "three logits by the loss": lambda: network(kl.Dense(3), loss=independent(**FROM_LOGITS)),
    "VBLLDense of labels": lambda: network(VBLLDense(3, kl_weight=0.1, likelihood="bernoulli")),
    "MCSigmoidDenseFA": lambda: network(MCSigmoidDenseFA(3, **FEW)),
}
MAKERS = {**WRONG, **RIGHT, **RIGHT_BINARY, **RIGHT_LABELS}


@functools.cache
def made(name):
    """The network `name`, made once."""
    return MAKERS[name]()


@functools.cache
def twin(name):
    """Another network with the weights of `name`."""
    again = MAKERS[name]()
    again.set_weights(made(name).get_weights())
    return again


def labels_of(name):
    """Labels of the kind that the network `name` predicts."""
    if name in RIGHT_LABELS:
        return LABELS
    return BINARY if made(name).output_shape[-1] == 1 else CLASSES


def expected_probs(name):
    """What plain Keras says of the network `name`: the reference for every entry point."""
    outputs = made(name).predict(IMAGES, verbose=0)
    if outputs.shape[-1] > 1 and name not in RIGHT_LABELS:
        is_known = np.allclose(outputs.sum(-1), 1, atol=1e-4) and (outputs >= 0).all()
        return outputs if is_known else keras.ops.convert_to_numpy(keras.ops.softmax(outputs))
    is_sigmoid = "sigmoid" in name and "MC" not in name
    return outputs if is_sigmoid else keras.ops.convert_to_numpy(keras.ops.sigmoid(outputs))
