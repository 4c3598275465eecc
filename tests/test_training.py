"""The recipe of rapid training: what it chooses, what it leaves, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfuq
from tfuq._models.train_step import optimizer_chain
from tfuq.optimizers import DiscriminativeLearningRate
from tfuq.training import epochs_of, rapid_fit


def data(count=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def compiled(optimizer=None, **kwargs):
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = optimizer or keras.optimizers.SGD(momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False, **kwargs)
    return model


QUICK = {"batch_size": 12, "verbose": 0}


@pytest.mark.parametrize(
    "arguments, expected",
    [((3, 1, 2), 7), ((3, 1, 1), 3), ((2, 0.5, 1), 1), ((2, 0.5, 2, 0.25), 2), ((3, 0.1, 1), 1)],
)
def test_epochs_hold_all_cycles(arguments, expected):
    assert epochs_of(*arguments) == expected


@pytest.mark.filterwarnings("ignore:The range test ended")
def test_recipe_is_its_parts(tmp_path, capsys):
    """The same weights as when the public parts are put together by hand."""
    x, y = data()
    keras.utils.set_random_seed(1)
    model = compiled()
    start = model.get_weights()
    history = rapid_fit(
        model,
        (x, y),
        (x, y),
        num_cycles=2,
        snapshots=tmp_path / "kept",
        shuffle=False,
        range_test={"num_steps": 30},
        batch_size=12,
        verbose=2,
    )
    said = capsys.readouterr().out
    assert f"{history.range_test.suggestion:.3g} by the range test" in said
    assert "log, 0.01" in said and "patience 2" in said and "3 epochs" in said

    byhand = compiled(DiscriminativeLearningRate(keras.optimizers.SGD(momentum=0.9)))
    byhand.set_weights(start)
    found = tfuq.lr_range_test(byhand, (x, y), num_steps=30, batch_size=12, shuffle=False)
    assert found.suggestion == history.range_test.suggestion
    schedule = tfuq.callbacks.SGDR(found.suggestion, cycle_mult=2)
    kept = tfuq.callbacks.SnapshotEnsemble(tmp_path / "byhand")
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    expected = byhand.fit(
        *(x, y, 12, 3, 0),
        callbacks=[schedule, kept, stopping],
        validation_data=(x, y),
        shuffle=False,
    )
    for name in ("loss", "val_loss", "learning_rate"):
        assert history.history[name] == expected.history[name]
    for ours, theirs in zip(model.get_weights(), byhand.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(history.snapshots.paths) == 2
    stack = history.snapshots.ensemble().predict(x)
    np.testing.assert_array_equal(stack, kept.ensemble().predict(x))


@pytest.mark.slow
def test_learns_from_every_form_of_data():
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            rows = slice(12 * index, 12 * index + 12)
            return x[rows], y[rows]

    expected = None
    for train in ((x, y), dataset, Batches()):
        keras.utils.set_random_seed(2)
        options = {"max_learning_rate": 0.1, "num_cycles": 1, "shuffle": False, **QUICK}
        model = compiled()
        history = rapid_fit(model, train, **options)
        assert history.range_test is None and history.snapshots is None
        assert "val_loss" not in history.history
        expected = expected or history.history["loss"]
        np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-6)


@pytest.mark.slow
def test_optimizer_is_new_and_configured_as_before():
    x, y = data()
    model = compiled(keras.optimizers.AdamW(0.5, weight_decay=0.03, beta_1=0.7))
    model.fit(x, y, verbose=0)
    options = {"max_learning_rate": 0.01, "num_cycles": 1, "layer_rates": "thirds", **QUICK}
    rapid_fit(model, (x, y), **options)
    outer = model.optimizer
    assert isinstance(outer, DiscriminativeLearningRate) and outer.scheme == "thirds"
    inner = outer.inner_optimizer
    assert isinstance(inner, keras.optimizers.AdamW)
    assert (inner.beta_1, inner.weight_decay) == (0.7, 0.03)
    assert int(outer.iterations) == 4  # of this training alone
    rapid_fit(model, (x, y), **{**options, "layer_rates": "log"})
    assert model.optimizer.scheme == "thirds"  # what the model was compiled with stays
    assert not isinstance(model.optimizer.inner_optimizer, DiscriminativeLearningRate)


def test_without_rates_by_layer_the_optimizer_is_plain():
    x, y = data()
    model = compiled()
    rapid_fit(model, (x, y), max_learning_rate=0.1, num_cycles=1, layer_rates=None, **QUICK)
    assert type(model.optimizer) is keras.optimizers.SGD


@pytest.mark.slow_cases("mixed_float16")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_while_it_trains(policy, tmp_path):
    x, y = data()
    model = compiled()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((model.layers[0].compute_dtype, type(model.optimizer).__name__))

    options = {"max_learning_rate": 0.1, "num_cycles": 1, "mixed_precision": policy, **QUICK}
    history = rapid_fit(model, (x, y), callbacks=[Look()], **options)
    outer = "LossScaleOptimizer" if policy == "mixed_float16" else "DiscriminativeLearningRate"
    assert set(seen) == {(policy.removeprefix("mixed_"), outer)}
    assert np.isfinite(history.history["loss"]).all()
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    assert isinstance(model.optimizer, DiscriminativeLearningRate)
    model.save(tmp_path / "model.keras")  # with an optimizer that fits the model
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    again.fit(x, y, verbose=0)


@pytest.mark.slow
def test_stops_early_with_the_best_weights():
    x, y = data()
    model = compiled()
    history = rapid_fit(
        model,
        (x, y),
        (x, 1 - y),  # the better it learns, the worse
        max_learning_rate=0.5,
        num_cycles=8,
        cycle_mult=1,
        patience=2,
        **QUICK,
    ).history
    assert len(history["loss"]) == 3
    assert model.evaluate(x, 1 - y, verbose=0)[0] == pytest.approx(history["val_loss"][0], abs=1e-5)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"num_cycles": 0}, "num_cycles"),
        ({"mixed_precision": "float16"}, "mixed_precision"),
        ({"epochs": 3}, "epochs"),
        ({"cycle_length": 0}, "cycle_length"),
        ({"cycle_mult": 0.5}, "cycle_mult"),
        ({"max_learning_rate": -1.0}, "max_learning_rate"),
        ({"max_learning_rate": 0.1, "min_learning_rate": 0.2}, "m.._learning_rate"),
        ({"layer_rates": "cubic", "max_learning_rate": 0.1}, "scheme"),
        ({"min_factor": 0.0, "max_learning_rate": 0.1}, "min_factor"),
        ({"groups": {"tail*": 0.1}, "max_learning_rate": 0.1}, "groups"),
    ],
)
def test_bad_arguments_stop_at_the_door(options, name):
    model = compiled()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"(?s)Argument `{name}`.*Received"):
        rapid_fit(model, data(), **{**QUICK, **options})
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_model_must_be_built_and_compiled():
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    unbuilt.compile("sgd", "mse")
    uncompiled = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for model in (unbuilt, uncompiled, "model"):
        with pytest.raises(ValueError, match="`model` must be a Keras model that is built and"):
            rapid_fit(model, data(), **QUICK)


# --- What the optimizer, the data and `fit` say reaches all parts ------------------------------


def excluded(made):
    inner = optimizer_chain(made.optimizer)[-1]
    return [not inner._use_weight_decay(weight) for weight in made.weights]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("by", ["names", "variables"])
def test_exclusions_from_weight_decay_stay(by, tmp_path):
    x, y = data()
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    model = compiled(optimizer)
    if by == "names":
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        expected = [False, True, False, True]
    else:
        optimizer.exclude_from_weight_decay(var_list=model.weights[:1])
        expected = [True, False, False, False]
    options = {"max_learning_rate": 0.01, "num_cycles": 1, "snapshots": tmp_path, **QUICK}
    history = rapid_fit(model, (x, y), **options)
    assert excluded(model) == expected
    for member in history.snapshots.ensemble():  # copies of the model
        assert excluded(member) == expected


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("wrapped", [False, True])
def test_cycles_set_the_rate_in_place_of_a_schedule(wrapped):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.3, 10, 0.9)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.8)
    if wrapped:
        optimizer = DiscriminativeLearningRate(optimizer, scheme="thirds")
    model = compiled(optimizer)
    history = rapid_fit(model, data(), max_learning_rate=0.1, num_cycles=1, **QUICK)
    assert history.history["learning_rate"][0] < 0.1
    inner = model.optimizer.inner_optimizer
    assert isinstance(inner.learning_rate, keras.Variable) and inner.momentum == 0.8
    assert model.optimizer.scheme == ("thirds" if wrapped else "log")


@pytest.mark.slow_cases("None")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("policy", [None, "mixed_float16"])
def test_an_error_leaves_the_optimizer_that_was(policy):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("failed")

    model, (x, y) = compiled(), data()
    before = model.optimizer
    options = {"max_learning_rate": 0.1, "mixed_precision": policy, **QUICK}
    for wrong in ({"groups": {"tail*": 0.1}}, {"callbacks": [Fails()]}):
        with pytest.raises((ValueError, RuntimeError)):
            rapid_fit(model, (x, y), **options, **wrong)
        assert model.optimizer is before and model.get_compile_config()["optimizer"] is not None
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    model.fit(x, y, verbose=0)
    assert model.optimizer is before and int(before.iterations) == 2


OPEN_ENDED = {"num_steps": 25, "stop": 1e4}  # far enough to see the loss grow


class OwnCompile(keras.Model):
    """Its `compile` takes an argument that is not Keras'."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)

    def compile(self, optimizer, own_loss, *, strength):
        super().compile(optimizer, own_loss, jit_compile=False)
        self.strength = strength


def test_models_whose_compile_takes_arguments_of_its_own():
    model, (x, y) = OwnCompile(), data()
    model(x[:1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, strength=3)
    history = rapid_fit(model, (x, y), num_cycles=1, range_test=OPEN_ENDED, **QUICK)
    assert model.strength == 3 and history.range_test is not None
    assert isinstance(model.optimizer, DiscriminativeLearningRate)


def rare(count=48):
    x, _ = data(count)
    return x, (np.arange(count) % 12 == 0).astype("int32")


@pytest.mark.slow
def test_range_test_knows_the_weights():
    """As when `lr_range_test` is told of them; before, it was not."""
    x, y = rare()
    weights = {0: 0.01, 1: 5.0}
    sample_weight = np.where(y == 1, 5.0, 0.01)
    keras.utils.set_random_seed(3)
    model = compiled()
    options = {"num_cycles": 1, "layer_rates": None, "range_test": OPEN_ENDED, **QUICK}
    expected = tfuq.lr_range_test(
        model, (x, y), batch_size=12, class_weight=weights, shuffle=False, **OPEN_ENDED
    )
    plain = tfuq.lr_range_test(model, (x, y), batch_size=12, shuffle=False, **OPEN_ENDED)
    assert not np.allclose(plain.losses[:5], expected.losses[:5], rtol=1e-2)
    start = model.get_weights()
    for given in ({"class_weight": weights}, {"sample_weight": sample_weight}):
        model.set_weights(start)
        found = rapid_fit(model, (x, y), shuffle=False, **given, **options).range_test
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def of_unknown_length(count=48):
    dataset = tf.data.Dataset.from_tensor_slices(data(count))
    return dataset.filter(lambda x, y: True).batch(12)


def test_no_epoch_trains_on_nothing():
    """Of unknown length with the true number of steps: the second epoch had a loss of 0."""
    known = tf.data.Dataset.from_tensor_slices(data()).batch(12)
    losses = []
    for dataset, steps in ((known, None), (of_unknown_length(), 4)):
        keras.utils.set_random_seed(4)
        options = {"max_learning_rate": 0.1, "num_cycles": 2, "steps_per_epoch": steps, **QUICK}
        history = rapid_fit(compiled(), dataset, **options)
        losses.append(history.history["loss"])
        assert len(history.schedule.steps) == 12
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_length_that_nobody_says_stops_before_the_range_test():
    model = compiled()
    before = model.optimizer
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given for data whose length"):
        rapid_fit(model, of_unknown_length(), **QUICK)
    assert model.optimizer is before and not before.built


@pytest.mark.parametrize(
    "given, name",
    [
        ({"y": np.zeros(48)}, "y"),
        ({"validation_data": data()}, "validation_data"),
        ({"sample_weight": np.ones(48)}, "sample_weight"),
    ],
)
def test_arguments_of_fit_that_would_be_lost(given, name):
    x, y = data()
    train = (x, y, np.ones(48)) if name == "sample_weight" else (x, y)
    with pytest.raises(ValueError, match=f"Argument `{name}` must be"):
        rapid_fit(compiled(), train, **given, **QUICK)


@pytest.mark.slow
def test_range_test_on_the_validation_loss():
    x, y = data()
    options = {"num_cycles": 1, "layer_rates": None, **QUICK}
    test = {**OPEN_ENDED, "validation_data": (x, 1 - y)}
    found = rapid_fit(compiled(), (x, y), range_test=test, **options).range_test
    assert found.losses[15] > found.losses[0]  # the better it learns, the worse there
