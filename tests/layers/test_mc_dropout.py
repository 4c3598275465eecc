"""Dropout whose masks are draws: what it drops, when, and for whom."""

import keras
import numpy as np
import pytest

from tfuq._random.draws import one_draw
from tfuq.layers import MCDropout


def ones(*shape):
    return np.ones(shape, "float32")


def test_prediction_is_that_of_the_mean_network():
    np.testing.assert_array_equal(MCDropout(0.5, seed=1)(ones(8, 50)), ones(8, 50))


def test_thinned_prediction_drops_the_same_for_all_examples_and_repeats():
    layer = MCDropout(0.5, seed=1, predictive="thinned")
    found = np.asarray(layer(ones(8, 50)))
    assert set(np.unique(found)) == {0.0, 2.0}
    assert np.all(found == found[:1])
    np.testing.assert_array_equal(layer(ones(8, 50)), found)
    np.testing.assert_array_equal(layer(ones(3, 50)), found[:3])
    other = MCDropout(0.5, seed=2, predictive="thinned")
    assert np.any(np.asarray(other(ones(8, 50))) != found)


def test_a_fixed_mask_without_a_seed_is_saved():
    layer = MCDropout(0.5, predictive="thinned")
    again = MCDropout.from_config(layer.get_config())
    np.testing.assert_array_equal(layer(ones(2, 50)), again(ones(2, 50)))


def test_configurations_of_version_0_1_load():
    config = MCDropout(0.5, seed=1).get_config()
    del config["predictive"]
    assert MCDropout.from_config(config).predictive == "mean"


def test_training_drops_the_fraction_for_each_example():
    layer = MCDropout(0.3, seed=1)
    found = np.asarray(layer(ones(200, 100), training=True))
    # Six standard deviations of a binomial share: a correct layer fails 1 seed in 5e8.
    share = np.mean(found == 0)
    assert abs(share - 0.3) < 6 * np.sqrt(0.3 * 0.7 / found.size)
    np.testing.assert_allclose(found[found > 0], 1 / 0.7, rtol=1e-6)
    assert np.any(found[0] != found[1])
    assert np.any(np.asarray(layer(ones(200, 100), training=True)) != found)


def test_resample_draws_a_new_mask_for_each_prediction():
    layer = MCDropout(0.5, resample=True)
    assert np.any(np.asarray(layer(ones(2, 50))) != np.asarray(layer(ones(2, 50))))


def test_draws_follow_their_seed():
    layer = MCDropout(0.5)

    def draw(number):
        with one_draw([0, number]):
            return np.asarray(layer(ones(2, 50)))

    np.testing.assert_array_equal(draw(3), draw(3))
    assert np.any(draw(3) != draw(4))


@pytest.mark.parametrize("training", [False, True])
def test_noise_shape(training):
    layer = MCDropout(0.5, noise_shape=(None, 1, None), seed=1, predictive="thinned")
    found = np.asarray(layer(ones(4, 6, 30), training=training))
    assert np.all(found == found[:, :1])
    assert np.any(found == 0)


def test_rate_zero_keeps_all():
    np.testing.assert_array_equal(MCDropout(0.0)(ones(2, 3)), ones(2, 3))


@pytest.mark.parametrize("rate", [1, 1.0, 1.5, -0.1])
def test_bad_rate(rate):
    with pytest.raises(ValueError, match=f"rate.*Received: rate={rate}"):
        MCDropout(rate)


def test_bad_predictive():
    with pytest.raises(ValueError, match="Argument `predictive` must"):
        MCDropout(0.5, predictive="median")


def test_bad_seed():
    with pytest.raises(ValueError, match="Argument `seed` must"):
        MCDropout(0.5, seed=-1)


def test_config_round_trip():
    layer = MCDropout(0.4, noise_shape=(None, 1, None), resample=True, seed=3, predictive="thinned")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()
