"""The layer of what was fitted: objects of any class, structures, masks. The rest is contract."""

import keras
import numpy as np
import pytest
from keras import ops

from tfuq.layers import PostProcessing
from tfuq.selective import IsotonicCalibration, RejectionRule, TemperatureScaling

X = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")


@keras.saving.register_keras_serializable(package="users")
class Rounded:
    """What a user may write."""

    def __init__(self, digits):
        self.digits = digits

    def transform(self, probs):
        return ops.round(probs, self.digits)

    def get_config(self):
        return {"digits": self.digits}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def loaded_again(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras", safe_mode=True)


def test_takes_a_class_of_the_user(tmp_path):
    model = keras.Sequential([keras.Input((4,)), PostProcessing(Rounded(1))])
    np.testing.assert_allclose(model(X), np.round(X, 1), atol=1e-6)
    again = loaded_again(model, tmp_path)
    assert isinstance(again.layers[-1].method, Rounded)
    np.testing.assert_array_equal(again(X), model(X))


def test_methods_follow_one_another(tmp_path):
    """Calibrated, then decided on, under a policy of half precision."""
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((4,))
    outputs = PostProcessing(TemperatureScaling(2.0, from_logits=True))(inputs)
    rule = RejectionRule("confidence", 0.5, from_logits=True)
    model = keras.Model(inputs, PostProcessing(rule)(outputs))
    found = loaded_again(model, tmp_path).predict(X, verbose=0)
    probs = np.exp(X / 2) / np.exp(X / 2).sum(-1, keepdims=True)
    assert found["probabilities"].dtype == "float32"
    np.testing.assert_allclose(found["probabilities"], probs, atol=1e-3)  # inputs are float16
    np.testing.assert_array_equal(found["accept"], found["probabilities"].max(-1) >= 0.5)


def test_masks_stay():
    probs = keras.layers.Masking()(keras.Input((5, 3)))
    calibrated = PostProcessing(IsotonicCalibration([[0.5]] * 3, [[0.2]] * 3))(probs)
    assert calibrated._keras_mask is probs._keras_mask is not None


@pytest.mark.parametrize("method", [None, 1.5, {}, "temperature", np.round])
def test_refuses_what_cannot_transform(method):
    with pytest.raises((ValueError, TypeError)):
        PostProcessing(method)


def test_refuses_what_was_not_fitted():
    with pytest.raises(ValueError, match="TemperatureScaling must be fitted first"):
        PostProcessing(TemperatureScaling())(X)
