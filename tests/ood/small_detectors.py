"""One detector of each kind, on small data, and the model that they look at."""

import functools
import math

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from scipy import special

from tfuq import ood

RNG = np.random.default_rng(0)
Y = np.arange(40) % 3
X = (RNG.normal(size=(40, 5)) + 2 * RNG.normal(size=(3, 5))[Y]).astype("float32")
OTHER = (3 * RNG.normal(size=(21, 5))).astype("float32")

DETECTORS = {
    "MaxSoftmax": lambda: ood.MaxSoftmax(),
    "MaxLogit": lambda: ood.MaxLogit(),
    "Energy": lambda: ood.Energy(2.0),
    "Entropy": lambda: ood.Entropy(),
    "ODIN": lambda: ood.ODIN(10.0, 0.05),
    "Mahalanobis": lambda: ood.Mahalanobis("hidden"),
    "Mahalanobis (P+FE)": lambda: ood.Mahalanobis(layers=["hidden", None], epsilon=0.05),
    "RelativeMahalanobis": lambda: ood.RelativeMahalanobis(shrinkage=0.1),
    "KNN": lambda: ood.KNN(3),
    "ViM": lambda: ood.ViM(4),
    "ReAct": lambda: ood.ReAct(80, "max_softmax"),
    "GradNorm": lambda: ood.GradNorm(2.0),
    "GEN": lambda: ood.GEN(0.5, 2),
    "KLMatching": lambda: ood.KLMatching(),
    "SHE": lambda: ood.SHE(),
    "NNGuide": lambda: ood.NNGuide(3, "hidden"),
    "FDBD": lambda: ood.FDBD(),
    "ASH": lambda: ood.ASH(50),
    "SCALE": lambda: ood.SCALE(50, "max_softmax"),
    "DICE": lambda: ood.DICE(50),
    "ExGrad": lambda: ood.ExGrad(),
    "GAIA": lambda: ood.GAIA("a"),
    "Gram": lambda: ood.Gram(powers=(1, 2)),
    "MutualInformation": lambda: ood.MutualInformation(),
}
BY_LABELS = ("Mahalanobis", "Mahalanobis (P+FE)", "RelativeMahalanobis", "SHE", "Gram")
MOVING = ("ODIN", "Mahalanobis (P+FE)")  # inputs, so that features are not enough
LOGITS = ("MaxSoftmax", "MaxLogit", "Energy", "Entropy", "GEN", "KLMatching")
LAST = ("ViM", "ReAct", "GradNorm", "FDBD", "ASH", "SCALE", "DICE", "ExGrad")
PAIRS = ("SHE", "NNGuide", "Gram")  # of features and logits


def make_model(eager=True):
    # Before the layers, whose initializers draw their seeds; of each class some are right.
    keras.utils.set_random_seed(15)
    dense = [layers.Dense(6, "tanh", name="hidden"), layers.Dense(3, name="last")]
    model = keras.Sequential([keras.Input((5,)), *dense])
    model.run_eagerly = eager
    return of_logits(model)


MODEL = make_model()
TWO = (MODEL, make_model())
TWO[1].set_weights([1.5 * w for w in MODEL.get_weights()])


def stack_of(x):
    return special.softmax(np.stack([np.asarray(model(x)) for model in TWO]), axis=-1)


def model_of(name):
    return stack_of if name == "MutualInformation" else MODEL


def features_of(name, x):
    """What `fit_features` takes, from Keras alone."""
    hidden = np.asarray(MODEL.layers[0](x))
    if name == "MutualInformation":
        return stack_of(x)
    if name == "GAIA":  # of features that are the layer's own outputs
        probs = special.softmax(np.asarray(MODEL(x)), axis=1)
        slopes = (1 - 3 * probs) @ MODEL.layers[1].get_weights()[0].T
        return np.ones((len(x), 6)) / np.sqrt(np.abs(slopes).mean(1, keepdims=True))
    if name in PAIRS:
        return hidden, np.asarray(MODEL(x))
    return np.asarray(MODEL(x)) if name in LOGITS else hidden


@functools.cache
def fitted(name):
    """A detector that has learnt from `X`, one for all tests."""
    return DETECTORS[name]().fit(model_of(name), X, Y)


def refused(argument, call, *args, **options):
    with pytest.raises(ValueError, match=rf"(?s)Argument `{argument}` must .*Received: "):
        call(*args, **options)


class Batches(keras.utils.PyDataset):
    """Batches of 16 of arrays."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    @property
    def num_batches(self):
        return math.ceil(len(self.arrays[0]) / 16)

    def __getitem__(self, i):
        parts = tuple(array[16 * i : 16 * i + 16] for array in self.arrays)
        return parts if len(parts) > 1 else parts[0]


class Subclassed(keras.Model):
    """One layer after the other."""

    def __init__(self, first, second):
        super().__init__()
        self.parts = [first, second]

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x)
        return x
