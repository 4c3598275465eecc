"""Attention with random projections, or with dropout that takes part in draws of the network.

Not in the contract battery, whose layers take one input; conversions to it, draws and files are in
tests/convert/test_kinds_of_layers.py.
"""

import keras
import numpy as np
import pytest

from tfuq import layers

X = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
CASES = {
    "variational": (layers.MultiHeadAttentionVariational, {"kl_weight": 1e-6, "use_gate": True}),
    "dropout": (layers.MCMultiHeadAttention, {"dropout": 0.2, "seed": 1}),
}


def model_of(kind, options):
    x = keras.Input((5, 6))
    attended = kind(2, 3, **options)(x, x)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling1D()(attended)))


@pytest.mark.slow_cases("variational")
@pytest.mark.parametrize("kind, options", CASES.values(), ids=CASES)
def test_trains_and_repeats(kind, options):
    model = model_of(kind, options)
    before = model.predict(X, verbose=0)
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, jit_compile=False)
    history = model.fit(X, np.arange(4) % 3, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    layer = kind(2, 3, **options)
    assert layer.compute_output_shape((4, 5, 6), (4, 5, 6)) == layer(X, X).shape


def test_kl_is_that_of_all_projections_and_their_noise_is_not_the_same():
    layer = layers.MultiHeadAttentionVariational(2, 3, kl_weight=0.5, seed=3)
    layer(X, X, training=True)
    parts = [layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense]
    assert len(layer.losses) == 4
    expected = 0.5 * sum(float(part.kl_divergence()) for part in parts)
    np.testing.assert_allclose(sum(map(float, layer.losses)), expected, rtol=1e-6)
    assert len({part.seed for part in parts}) == 4


@pytest.mark.parametrize(
    "options, message",
    [({}, "`kl_weight` is required"), ({"kl_weight": 1, "estimator": "x"}, "`estimator` must be")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        layers.MultiHeadAttentionVariational(2, 3, **options)
