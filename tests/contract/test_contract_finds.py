"""The contract battery finds faults: each part here has one, and one check must fail on it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import LayerCase
from contract_callbacks import CALLBACK_CHECKS, CallbackCase
from contract_layers import LAYER_CHECKS, PLAIN_CHECKS, WAYS
from contract_metrics import METRIC_CHECKS, MetricCase
from keras import ops

register = keras.saving.register_keras_serializable("tests")


@register
class Fine(keras.layers.Layer):
    """A linear layer without faults; the others change one thing."""

    def __init__(self, units, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.scale = scale

    def build(self, input_shape):
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")

    def call(self, inputs):
        return self.scale * ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale}


@register
class LosesArgument(Fine):
    def get_config(self):
        config = super().get_config()
        del config["scale"]
        return config


@register
class MovesArgument(Fine):
    def get_config(self):
        return {**super().get_config(), "scale": self.scale + 1.0}


@register
class WrongSpec(Fine):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units + 1)


@register
class SeesTheBatch(Fine):
    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs - ops.mean(outputs, axis=0, keepdims=True)


@register
class ForgetsTheEmptyBatch(Fine):
    def call(self, inputs):
        return super().call(inputs) / (1.0 - ops.max(ops.abs(inputs)))


@register
class FlattensExtents(Fine):
    def call(self, inputs):
        return ops.reshape(super().call(inputs), (-1, self.units))


@register
class StopsGradients(Fine):
    def call(self, inputs):
        return ops.stop_gradient(super().call(inputs))


@register
class DrawsGlobally(Fine):
    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs + tf.cast(tf.random.normal(tf.shape(outputs)), outputs.dtype)


@register
class SetsGlobalSeed(Fine):
    def call(self, inputs):
        tf.random.set_seed(7)
        return super().call(inputs)


@register
class KerasDraws(Fine):
    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs + keras.random.normal(ops.shape(outputs), dtype=outputs.dtype)


@register
class HalfPrecisionWeights(Fine):
    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(shape, name="kernel", dtype=self.compute_dtype)


@register
class Overflows(Fine):
    def call(self, inputs):
        return super().call(inputs) * 1e5 / 1e5


@register
class HidesWeight(Fine):
    def build(self, input_shape):
        self.kernel = tf.Variable(tf.random.stateless_normal((input_shape[-1], self.units), (1, 2)))


@register
class NotCompiled(Fine):
    def call(self, inputs):
        outputs = super().call(inputs)
        return outputs if tf.executing_eagerly() else outputs + 1.0


FAULTY_LAYERS = [
    (LosesArgument, "config"),
    (MovesArgument, "config"),
    (WrongSpec, "output_spec"),
    (SeesTheBatch, "batches"),
    (ForgetsTheEmptyBatch, "batches"),
    (FlattensExtents, "unknown_extents"),
    (StopsGradients, "gradients"),
    (DrawsGlobally, "global_seeds"),
    (DrawsGlobally, "batches"),
    (SetsGlobalSeed, "global_seeds"),
    (KerasDraws, "global_seeds"),
    (HalfPrecisionWeights, "mixed_float16"),
    (Overflows, "mixed_float16"),
    (HidesWeight, "gradients"),
    (NotCompiled, "functional_plain"),
]


def must_fail(check, case):
    with pytest.raises((AssertionError, ValueError, TypeError, tf.errors.OpError)):
        check(case)


@pytest.mark.slow_cases(*WAYS)
@pytest.mark.parametrize("name", [*PLAIN_CHECKS, *WAYS])
def test_a_fine_layer_passes(name):
    LAYER_CHECKS[name](LayerCase("fine", Fine, {"units": 5, "scale": 2.0}))


@pytest.mark.parametrize("layer, name", FAULTY_LAYERS)
def test_a_faulty_layer_fails(layer, name):
    must_fail(LAYER_CHECKS[name], LayerCase("faulty", layer, {"units": 5, "scale": 2.0}))


@register
class LastBatch(keras.metrics.Metric):
    """Remembers the last batch only, and no weights."""

    def __init__(self, name="last", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.value = self.add_weight(shape=(), initializer="zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(ops.mean(y_pred * y_pred))

    def result(self):
        return self.value


@register
class Grows(LastBatch):
    """Keeps a variable per batch."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, y_pred)
        self.add_weight(shape=(), initializer="zeros", name="more")


@pytest.mark.parametrize(
    "metric, name",
    [(LastBatch, name) for name in ("weights", "batches", "in_function", "two_devices")]
    + [(LastBatch, "evaluates_plain"), (Grows, "state")],
)
def test_a_faulty_metric_fails(metric, name):
    must_fail(METRIC_CHECKS[name], MetricCase("faulty", metric))


class Meddles(keras.callbacks.Callback):
    """Says what it should, and moves the weights."""

    def on_epoch_end(self, epoch, logs=None):
        logs["said"] = 1.0
        self.model.set_weights([weight * 1.1 for weight in self.model.get_weights()])


class Silent(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["said"] = np.nan


@pytest.mark.parametrize("callback", [Meddles, Silent])
def test_a_faulty_callback_fails(callback):
    case = CallbackCase("faulty", lambda x, y: callback(), ("said",))
    must_fail(CALLBACK_CHECKS["functional_plain"], case)
