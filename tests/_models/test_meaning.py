"""The declared meaning of outputs: who says it, who contradicts whom, and never the values."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfuq._models.meaning import Meaning, Reading, declared
from tfuq.convert import mc_dropout, replace_head, spectral_normalize
from tfuq.layers import MCSigmoidDenseFA, MCSoftmaxDenseFA, VBLLDense
from tfuq.selective import IsotonicCalibration, TemperatureScaling

LOGITS, PROBS, LABELS = Meaning(True, False), Meaning(False, False), Meaning(False, True)
LABEL_LOGITS = Meaning(True, True)
CE = keras.losses.SparseCategoricalCrossentropy
BCE = keras.losses.BinaryCrossentropy


def network(*layers, loss=None):
    model = keras.Sequential([keras.Input((4,)), *layers])
    if loss is not None:
        model.compile("sgd", loss)
    return model


def functional(layer, loss=None):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    if loss is not None:
        model.compile("sgd", loss)
    return model


class Subclassed(keras.Model):
    def __init__(self, head):
        super().__init__()
        self.body, self.head = kl.Dense(4), head

    def call(self, x):
        return self.head(self.body(x))


def vbll(units=3, **kwargs):
    return VBLLDense(units, kl_weight=0.1, **kwargs)


def isotonic():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 2)), rng.integers(2, size=40)
    return IsotonicCalibration(from_logits=True).fit(logits, labels)


SAID = {
    "caller": (lambda: network(kl.Dense(3)), {"from_logits": True}, LOGITS),
    "caller, labels": (
        lambda: network(kl.Dense(3)),
        {"from_logits": True, "multi_label": True},
        LABEL_LOGITS,
    ),
    "soft-max": (lambda: network(kl.Dense(3, "softmax")), {}, PROBS),
    "one sigmoid": (lambda: network(kl.Dense(1, "sigmoid")), {}, PROBS),
    "three sigmoids": (lambda: network(kl.Dense(3, "sigmoid")), {}, LABELS),
    "sigmoid maps": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), kl.Conv2D(2, 1, activation="sigmoid")]),
        {},
        LABELS,
    ),
    "soft-max layer": (lambda: network(kl.Dense(3), kl.Softmax()), {}, PROBS),
    "activation layer": (lambda: network(kl.Dense(3), kl.Activation("softmax")), {}, PROBS),
    "operation": (lambda: functional(lambda x: keras.ops.softmax(kl.Dense(3)(x))), {}, PROBS),
    "log soft-max": (lambda: network(kl.Dense(3, "log_softmax")), {}, LOGITS),
    "reshaped": (lambda: network(kl.Dense(6, "sigmoid"), kl.Reshape((2, 3))), {}, LABELS),
    "nested": (lambda: functional(network(kl.Dense(3, "softmax"))), {}, PROBS),
    "nested twice": (lambda: functional(functional(network(kl.Dense(3, "softmax")))), {}, PROBS),
    "average": (
        lambda: functional(
            lambda x: kl.Average()([kl.Dense(3, "softmax")(x), kl.Dense(3, "softmax")(x)])
        ),
        {},
        PROBS,
    ),
    "mc softmax": (lambda: network(MCSoftmaxDenseFA(3, 2, logits_only=True)), {}, LOGITS),
    "mc sigmoid": (lambda: network(MCSigmoidDenseFA(3, 2, logits_only=True)), {}, LABEL_LOGITS),
    "vbll": (lambda: network(vbll()), {}, LOGITS),
    "vbll labels": (lambda: network(vbll(likelihood="bernoulli")), {}, LABEL_LOGITS),
    "vbll tuple": (
        lambda: functional(vbll(logits_only=False)),
        {"output": "logits"},
        LOGITS,
    ),
    "loss": (lambda: network(kl.Dense(3), loss=CE(from_logits=True)), {}, LOGITS),
    "loss by name": (
        lambda: network(kl.Dense(3), loss="sparse_categorical_crossentropy"),
        {},
        PROBS,
    ),
    "binary loss": (lambda: network(kl.Dense(3), loss=BCE(from_logits=True)), {}, LABEL_LOGITS),
    "loss in a dict": (
        lambda: functional(kl.Dense(3, name="a"), loss={"a": CE(from_logits=True)}),
        {},
        LOGITS,
    ),
    "layer before loss": (lambda: network(kl.Dense(2, "softmax"), loss="mse"), {}, PROBS),
    "two exclusive classes under a binary loss": (
        lambda: network(kl.Dense(2, "softmax"), loss="binary_crossentropy"),
        {},
        PROBS,
    ),
    "calibrated logits": (
        lambda: TemperatureScaling(2.0, from_logits=True).append_to(network(kl.Dense(3))),
        {},
        LOGITS,
    ),
    "calibrated labels": (
        lambda: TemperatureScaling(2.0, from_logits=True, multi_label=True).append_to(
            network(kl.Dense(3), loss=BCE(from_logits=True))
        ),
        {},
        LABEL_LOGITS,
    ),
    "calibrated by steps": (lambda: isotonic().append_to(network(kl.Dense(2))), {}, PROBS),
    "a copy": (
        lambda: mc_dropout(network(kl.Dropout(0.5), kl.Dense(3), loss=CE(from_logits=True))),
        {},
        LOGITS,
    ),
    "a copy of a copy": (
        lambda: spectral_normalize(
            mc_dropout(network(kl.Dense(4), kl.Dropout(0.5), kl.Dense(3), loss=BCE()))
        ),
        {},
        LABELS,
    ),
    "subclassed": (lambda: Subclassed(kl.Dense(3, "softmax")), {}, PROBS),
    "subclassed, our head": (lambda: Subclassed(vbll(likelihood="bernoulli")), {}, LABEL_LOGITS),
}


@pytest.mark.parametrize("make, given, expected", SAID.values(), ids=SAID)
def test_who_says_it(make, given, expected):
    found = declared(make(), **given, batch=np.zeros((2, 4), "float32"))
    assert (found.is_logits, found.multi_label) == (expected.is_logits, expected.multi_label)


def test_what_a_copy_is_compiled_with_comes_first_and_a_new_head_knows_nothing():
    model = network(kl.Dropout(0.5), kl.Dense(3), loss=CE(from_logits=True))
    copy = mc_dropout(model)
    copy.compile("sgd", CE(from_logits=False))
    assert not declared(copy).is_logits
    with pytest.raises(ValueError, match="from_logits"):
        declared(replace_head(model, kl.Dense(3, name="new")))


REFUSED = {
    "nobody": (lambda: network(kl.Dense(3)), {}, "from_logits"),
    "nobody, one output": (lambda: network(kl.Dense(1)), {}, "from_logits"),
    "nobody, subclassed": (lambda: Subclassed(kl.Dense(3)), {}, "from_logits"),
    "a regression": (lambda: network(kl.Dense(1), loss="mse"), {}, "is one for numbers"),
    "a regression, by class": (
        lambda: network(kl.Dense(3), loss=keras.losses.Huber()),
        {},
        "is one for numbers",
    ),
    "probabilities called logits": (
        lambda: network(kl.Dense(3, "softmax")),
        {"from_logits": True},
        "from_logits",
    ),
    "logits called probabilities": (lambda: network(vbll()), {"from_logits": False}, "from_logits"),
    "logits under a loss of probabilities": (
        lambda: network(vbll(), loss="sparse_categorical_crossentropy"),
        {},
        "from_logits",
    ),
    "probabilities under a loss of logits": (
        lambda: network(kl.Dense(3, "softmax"), loss=CE(from_logits=True)),
        {},
        "from_logits",
    ),
    "labels called classes": (
        lambda: network(kl.Dense(3, "sigmoid")),
        {"multi_label": False},
        "multi_label",
    ),
}


@pytest.mark.parametrize("make, given, match", REFUSED.values(), ids=REFUSED)
def test_who_contradicts(make, given, match):
    with pytest.raises(ValueError, match=match):
        declared(make(), **given, batch=np.zeros((2, 4), "float32"))


def test_values_say_nothing():
    """0.3 of a linear output is no probability, whatever the rest of the batch looks like."""
    model = network(kl.Dense(1, kernel_initializer="zeros", bias_initializer="ones"))
    with pytest.raises(ValueError, match="from_logits"):
        declared(model, batch=np.zeros((2, 4), "float32"))


@pytest.mark.parametrize("probs", [[[0.9, 0.9]], [[-0.2, 1.2]], [[3.0, 1.0]]])
def test_outputs_that_are_no_probabilities_are_refused(probs):
    with pytest.raises(ValueError, match="from_logits"):
        Reading(None, False, False).checked(np.asarray(probs, "float32"))


def test_what_is_unknown_is_no_fault():
    probs = np.array([[np.nan, np.nan], [0.25, 0.75]], "float32")
    assert Reading(None, False, False).checked(probs) is probs


def test_fields_keep_their_names_after_loading(tmp_path):
    """Keras loads a functional model with a named tuple as output as one with a list."""
    model = functional(vbll(logits_only=False))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    assert not hasattr(loaded(x), "_fields")
    pairs = [(Reading("logits", None, None).known(each), each) for each in (model, loaded)]
    np.testing.assert_array_equal(*[reading.probs(each, x) for reading, each in pairs])
    inputs = keras.Input((4,))
    named = keras.Model(inputs, [kl.Dense(2, "softmax", name=name)(inputs) for name in "ab"])
    assert np.all(Reading("b", None, None).known(named).select(named, x) == named(x)[1])


def test_a_variance_is_no_logit():
    """In a `Sequential` model as in others, only the field that is asked for counts."""
    model = network(vbll(logits_only=False))
    assert declared(model, "logits").is_logits
    with pytest.raises(ValueError, match="from_logits"):
        declared(model, "variance")
