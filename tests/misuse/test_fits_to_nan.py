"""Data with NaN behind the first batch, in all that reads data once to fit something.

A `relu` may make 0 of NaN, so that neither features nor outputs tell it.
"""

import keras
import numpy as np
import pytest

from tfuq import callbacks, convert, ood, selective

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
NAN = np.where(np.arange(64)[:, None] < 40, X, np.float32("nan"))


def network(*hidden):
    dense = keras.layers.Dense(16, "relu")
    layers = [keras.Input((6,)), dense, *hidden, keras.layers.Dense(3, "softmax")]
    model = keras.Sequential(layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def swag(x):
    found = callbacks.SWAG(data=x, start=0.0)
    network(keras.layers.BatchNormalization()).fit(X, Y, epochs=2, verbose=0, callbacks=[found])


FITS = {
    "laplace_head": lambda x: convert.laplace_head(network(), (x, Y)),
    "saliency": lambda x: convert.saliency(network(), (x, Y)),
    "SWAG": swag,
    "Mahalanobis": lambda x: ood.Mahalanobis().fit(network(), x, Y),
    "shift_report": lambda x: selective.shift_report(network(), X, x),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", FITS)
def test_refused(name, counts):
    with pytest.raises(ValueError, match="NaN or infinity in the batch from example 32 on"):
        FITS[name](NAN)
    counts("misuse rows, refused")
