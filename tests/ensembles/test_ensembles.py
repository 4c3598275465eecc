"""Ensembles: trained apart, read together, saved and served as one."""

import concurrent.futures
import functools
import os
import pathlib
import random

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

import tfuq
from tfuq import metrics
from tfuq.ensembles import DeepEnsemble
from tfuq.predictive import decompose

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(units=3, activation=None, loss=LOGITS, optimizer="adam"):
    layers = [keras.layers.Dropout(0.2), keras.layers.Dense(units, activation=activation)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer, loss, run_eagerly=True)
    return model


def build():
    return dense()


def linear():
    """Without dropout, whose noise `.keras` files start anew."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", LOGITS, jit_compile=False)
    return model


def heteroscedastic():
    head = tfuq.layers.MCSoftmaxDenseFA(3, num_factors=1, logits_only=True)
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile("sgd", LOGITS, jit_compile=False)
    return model


def x_of(count=20):
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32")


def y_of(count=20):
    return np.random.default_rng(1).integers(3, size=count)


def made(num_members=2, seed=0, make=build):
    return DeepEnsemble(make, num_members, seed=seed)


def fitted(ensemble, **kwargs):
    ensemble.fit(x_of(), y_of(), batch_size=4, verbose=0, **kwargs)
    return ensemble


def weights(ensemble):
    return [array for member in ensemble for array in member.get_weights()]


def assert_same(found, expected, **kwargs):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-6, "atol": 1e-7, **kwargs})


class Inline(concurrent.futures.Executor):
    """Runs in this process what others would run: the same files, without the time to start."""

    def submit(self, function, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def refused(argument, call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert f"`{argument}`" in message, message
    assert "must" in message and "Received: " in message, message


# --- Random numbers ---------------------------------------------------------------------------


def test_members_differ_and_repeat_with_the_seed():
    ensemble = made(3)
    kernels = [member.get_weights()[0] for member in ensemble]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    assert_same(weights(made(3)), weights(ensemble), rtol=0, atol=0)
    assert_same(weights(made(2)), weights(ensemble)[:4], rtol=0, atol=0)
    assert not np.array_equal(weights(made(3, seed=1))[0], kernels[0])


def test_training_repeats_with_the_seed():
    first = weights(fitted(made(1)))
    keras.utils.set_random_seed(99)
    again = made(1)
    assert_same(weights(fitted(again)), first, rtol=0, atol=0)
    other = DeepEnsemble.from_models(made(1).members, seed=1)
    assert not np.allclose(weights(fitted(other))[0], first[0])


def draw():
    numpy = np.random.rand()  # noqa: NPY002 (what it is about)
    return [random.random(), numpy, *keras.random.normal((2,)), float(tf.random.normal(()))]


def draws(count):
    return [draw() for _ in range(count)]


def test_random_state_is_left_as_it_was():
    keras.utils.set_random_seed(3)
    expected = draws(4)
    keras.utils.set_random_seed(3)
    found = draws(2)
    fitted(made())
    np.testing.assert_array_equal(found + draws(2), expected)


def test_random_state_is_left_when_building_fails():
    keras.utils.set_random_seed(3)
    expected = draws(1)
    keras.utils.set_random_seed(3)
    with pytest.raises(RuntimeError, match="no memory"):
        made(make=failing)
    np.testing.assert_array_equal(draws(1), expected)


def failing():
    raise RuntimeError("no memory")


@pytest.mark.parametrize("shuffle", [True, False])
def test_members_shuffle_their_own_way(shuffle):
    models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), LOGITS, jit_compile=False)
    first, second = fitted(DeepEnsemble.from_models(models), shuffle=shuffle)
    same = np.array_equal(first.get_weights()[0], second.get_weights()[0])
    assert same is not shuffle


# --- Training ---------------------------------------------------------------------------------


def stops(number):
    return [keras.callbacks.LambdaCallback(on_epoch_end=functools.partial(stop, number))]


def stop(number, epoch, logs):
    logs["number"] = float(number)


def bagged(number):
    rows = np.random.default_rng(number).integers(20, size=20)
    return x_of()[rows], y_of()[rows]


def test_histories_and_callbacks_of_each_member(capsys):
    ensemble = made()
    data = {"validation_data": (x_of(6), y_of(6)), "epochs": 2}
    histories = ensemble.fit(x_of(), y_of(), callbacks=stops, verbose=2, **data)
    assert [h.history["number"] for h in histories] == [[0.0, 0.0], [1.0, 1.0]]
    assert [len(h.history["val_loss"]) for h in histories] == [2, 2]
    said = capsys.readouterr().out
    assert said.index("Member 1 of 2") < said.index("loss") < said.index("Member 2 of 2")


def test_one_list_of_callbacks_serves_all():
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: seen.append("begin"))
    fitted(made(), callbacks=[callback])
    assert seen == ["begin", "begin"]


@pytest.mark.slow
def test_data_of_every_kind_trains_the_same():
    expected, dataset = made(1), tf.data.Dataset.from_tensor_slices((x_of(), y_of())).batch(5)
    expected.fit(x_of(), y_of(), shuffle=False, batch_size=5, verbose=0)
    pair = {"x": (x_of(), y_of()), "batch_size": 5}
    for data in (pair, {"x": dataset}, {"x": lambda number: dataset}):
        found = made(1)
        found.fit(**data, shuffle=False, verbose=0)
        assert_same(weights(found), weights(expected))


def test_a_function_gives_each_member_its_own_data():
    models = DeepEnsemble.from_models([dense(), dense()])
    for member in models:
        member.set_weights([np.zeros((4, 3)), np.zeros(3)])
    first, second = models
    models.fit(bagged, shuffle=False, verbose=0)
    assert not np.allclose(first.get_weights()[0], second.get_weights()[0])


@pytest.mark.slow
def test_through_files_as_in_this_process(capsys):
    """Twice: what the optimizer and the dropout know goes with the model."""
    here, there = made(1), made(1)
    for _ in range(2):
        data = {"batch_size": 4, "sample_weight": np.arange(20.0), "callbacks": stops}
        expected = here.fit(x_of(), y_of(), verbose=0, **data)
        found = there.fit(x_of(), y_of(), executor=Inline(), verbose=1, **data)
        assert "Member 1 of 1 is trained" in capsys.readouterr().out
        assert [h.history for h in found] == [h.history for h in expected]
        assert found[0].model is there.members[0]
    assert_same(weights(there), weights(here))
    assert int(there.members[0].optimizer.iterations) == 10


def test_functions_go_through_files():
    here, there = made(1), made(1)
    here.fit(bagged, verbose=0)
    there.fit(bagged, executor=Inline(), verbose=0)
    assert_same(weights(there), weights(here))


class Pairs(keras.utils.PyDataset):
    """Goes to other processes as it is."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return x_of()[rows], y_of()[rows]


def loads(folder, number):
    end = functools.partial(load_there, folder, number)
    return [*stops(number), keras.callbacks.LambdaCallback(on_train_end=end)]


def load_there(folder, number, logs):
    """Called in a new process, which has not made the ensemble that it finds in `folder`."""
    np.save(folder / f"{number}.npy", DeepEnsemble.load(folder / "ensemble").predict(x_of()))


@pytest.mark.slow
def test_other_processes_train_and_load_the_same_ensemble(tmp_path):
    """Not to the last bit: the processes share the processor's threads, which changes sums."""
    here, there, other = made(), made(), made(make=heteroscedastic)
    other.save(tmp_path / "ensemble")
    data = {"validation_data": (x_of(6), y_of(6)), "verbose": 0}
    expected = here.fit(Pairs(), **data)
    found = there.fit(Pairs(), workers=2, callbacks=functools.partial(loads, tmp_path), **data)
    assert [h.history["number"] for h in found] == [[0.0], [1.0]]
    losses = [[h.history["val_loss"] for h in part] for part in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert_same(weights(there), weights(here), rtol=1e-4, atol=1e-6)
    loaded = [np.load(tmp_path / f"{number}.npy") for number in range(2)]
    assert_same(loaded, [other.predict(x_of())] * 2, rtol=1e-5)


def test_an_error_of_another_process_comes_back_and_changes_nothing():
    ensemble = made()
    members = ensemble.members
    with pytest.raises(Exception, match=r"(?i)incompatible|shape"):
        ensemble.fit(x_of()[:, :3], y_of(), executor=Inline(), verbose=0)
    assert ensemble.members == members


# --- Prediction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, squash, multi_label, from_logits",
    [
        (build, keras.ops.softmax, False, None),
        (functools.partial(dense, activation="softmax", loss="mse"), None, False, None),
        (functools.partial(dense, activation="softmax", loss=None), None, False, None),
        (functools.partial(dense, loss=None), keras.ops.softmax, False, True),
        (functools.partial(dense, 1, None, None), keras.ops.sigmoid, False, True),
        (functools.partial(dense, 3, None, None), keras.ops.sigmoid, True, True),
        (functools.partial(dense, 3, "sigmoid", "binary_crossentropy"), None, True, None),
    ],
)
def test_a_stack_of_probabilities(make, squash, multi_label, from_logits):
    kind = {"multi_label": multi_label, "from_logits": from_logits}
    ensemble = made(3, make=make)
    if from_logits:  # nobody else says it
        refused("from_logits", ensemble.predict, x_of(7), multi_label=multi_label)
    outputs = np.stack([member(20 * x_of(7)) for member in ensemble])
    expected = outputs if squash is None else squash(outputs)
    found = ensemble.predict(20 * x_of(7), batch_size=3, **kind)
    assert found.dtype == "float32" and found.shape == outputs.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    mean = ensemble.predict_mixture(20 * x_of(7), batch_size=3, **kind)
    np.testing.assert_allclose(mean, np.mean(expected, 0), rtol=1e-5, atol=1e-6)


def test_each_member_says_itself_what_it_returns():
    """One returns probabilities, the other logits that look like probabilities of one class."""
    kinds = [dense(1, "sigmoid", "binary_crossentropy")]
    kinds += [dense(1, loss=keras.losses.BinaryCrossentropy(from_logits=True))]
    kinds[1].set_weights([np.zeros((4, 1)), np.full(1, 0.25)])
    found = DeepEnsemble.from_models(kinds).predict(x_of())
    np.testing.assert_allclose(found[0], kinds[0](x_of()), rtol=1e-5)
    np.testing.assert_allclose(found[1], 1 / (1 + np.exp(-0.25)), rtol=1e-5)
    told = DeepEnsemble.from_models(kinds).predict(x_of(), from_logits=False)
    np.testing.assert_allclose(told[1], 0.25, rtol=1e-6)


def two_headed():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    heads = {"kind": keras.layers.Dense(3)(joined), "age": keras.layers.Dense(1)(joined)}
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"kind": LOGITS, "age": "mse"}, jit_compile=False)
    return model


def two_inputs():
    return {"a": x_of(), "b": x_of()[:, :2]}


@pytest.mark.slow
def test_models_of_several_inputs_and_outputs():
    ensemble, labels = made(make=two_headed), {"kind": y_of(), "age": x_of()[:, :1]}
    ensemble.fit(two_inputs(), labels, executor=Inline(), verbose=0)
    found = ensemble.predict(two_inputs(), output="kind")
    expected = [keras.ops.softmax(member(two_inputs())["kind"]) for member in ensemble]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    judged = ensemble.evaluate(two_inputs(), labels, output="kind")
    assert judged["nll"] == metrics.negative_log_likelihood(y_of(), found.mean(0))
    refused("output", ensemble.predict, two_inputs())


def test_members_see_the_same_rows_of_data_that_shuffle():
    dataset = tf.data.Dataset.from_tensor_slices((x_of(), y_of())).shuffle(20).batch(8)
    models = [dense(), dense()]
    models[1].set_weights(models[0].get_weights())
    found = DeepEnsemble.from_models(models).predict(dataset)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], DeepEnsemble.from_models(models).predict(dataset)[0])


def test_the_stack_goes_straight_into_the_rest():
    ensemble = made(4)
    stack = ensemble.predict(x_of())
    parts = decompose(stack)
    np.testing.assert_allclose(parts.probs, ensemble.predict_mixture(x_of()), rtol=1e-6)
    assert np.all(parts.mutual_information > 0)
    assert metrics.brier_score(y_of(), stack.mean(0)) > 0


# --- Judgement --------------------------------------------------------------------------------


def test_evaluation_of_the_mixture_and_the_members():
    ensemble = made()
    stack, weight = ensemble.predict(x_of()), np.arange(20.0)
    found = ensemble.evaluate(x_of(), y_of(), sample_weight=weight, batch_size=7, per_member=True)
    for probs, judged in zip([stack.mean(0), *stack], [found, *found["members"]], strict=True):
        right = np.average(np.argmax(probs, -1) == y_of(), weights=weight)
        nll = np.average(-np.log(probs[np.arange(20), y_of()]), weights=weight)
        ece = metrics.expected_calibration_error(y_of(), probs, sample_weight=weight)
        brier = metrics.brier_score(y_of(), probs, sample_weight=weight)
        expected = {"nll": nll, "accuracy": right, "brier": brier, "ece": ece}
        assert {name: judged[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    dataset = tf.data.Dataset.from_tensor_slices((x_of(), y_of(), weight)).shuffle(20).batch(6)
    alone = ensemble.evaluate(dataset)
    assert alone == pytest.approx({k: v for k, v in found.items() if k != "members"}, rel=1e-5)


def test_evaluation_of_many_labels_pixels_and_own_metrics():
    labels = np.random.default_rng(2).integers(2, size=(20, 3))
    ensemble = made(make=functools.partial(dense, 3, "sigmoid", "binary_crossentropy"))
    mean = ensemble.predict(x_of(), multi_label=True).mean(0)
    found = ensemble.evaluate(x_of(), labels, multi_label=True)
    assert found["accuracy"] == pytest.approx(np.mean((mean > 0.5) == labels))
    assert found["brier"] == metrics.brier_score(labels, mean, multi_label=True)
    own = {"classwise": metrics.classwise_calibration_error}
    assert ensemble.evaluate(x_of(), labels, own, multi_label=True).keys() == {"classwise"}


def segmenting():
    layers = [keras.Input((None, None, 2)), keras.layers.Conv2D(3, 3, padding="same")]
    model = keras.Sequential(layers)
    model.compile("sgd", LOGITS, jit_compile=False)
    return model


def test_segmentation():
    images = np.random.default_rng(0).normal(size=(5, 6, 4, 2))
    masks = np.random.default_rng(1).integers(3, size=(5, 6, 4))
    ensemble = made(make=segmenting)
    stack = ensemble.predict(images, batch_size=2)
    assert stack.shape == (2, 5, 6, 4, 3)
    assert decompose(stack).predictive_entropy.shape == masks.shape
    nll = metrics.negative_log_likelihood(masks, stack.mean(0))
    assert ensemble.evaluate(images, masks)["nll"] == pytest.approx(nll)


# --- Files ------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    ensemble = fitted(made(seed=7, make=linear))
    ensemble.save(tmp_path / "deep" / "ensemble")
    again = DeepEnsemble.load(tmp_path / "deep" / "ensemble")
    np.testing.assert_array_equal(again.predict(x_of()), ensemble.predict(x_of()))
    assert len(again) == 2 and again.seed == 7 and again.build_model is None
    assert_same(weights(fitted(again)), weights(fitted(ensemble)))  # the second training


def test_save_replaces_an_ensemble_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "ensemble"
    made(3).save(folder)
    ensemble = made(2, seed=1)
    ensemble.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ensemble"]
    assert len(DeepEnsemble.load(folder)) == 2 == len(list(folder.glob("*.keras")))
    other = made(2, seed=2)
    monkeypatch.setattr(other.members[1], "save", lambda path: failing())
    with pytest.raises(RuntimeError, match="no memory"):
        other.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ensemble"]
    assert_same(weights(DeepEnsemble.load(folder)), weights(ensemble))


PLAIN = """
import numpy as np
from new_process import hide
hide("tfuq", "keras", "tf_keras", "tensorflow_probability")
import tensorflow as tf
model, x = tf.saved_model.load("saved_model"), np.load("x.npy")
served = [model.serve(x[:count]) for count in (0, 1, 20)]
assert [part["members"].shape[1] for part in served] == [0, 1, 20]
np.savez("found.npz", **served[2])
by_name = model.signatures["serving_default"](tf.constant(x))
np.testing.assert_allclose(by_name["probabilities"], served[2]["probabilities"], rtol=1e-6)
"""


@pytest.mark.slow
def test_plain_tensorflow_serves_the_export(tmp_path):
    ensemble = made(make=heteroscedastic)
    ensemble.export(tmp_path / "saved_model")
    np.save(tmp_path / "x.npy", x_of())
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1] / "contract")}
    done = processes.run(PLAIN, env=environment, cwd=tmp_path, world="tensorflow")
    assert done.returncode == 0, done.stderr
    expected = ensemble.predict(x_of())
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["members"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["probabilities"], expected.mean(0), rtol=1e-5, atol=1e-6)


class Called(keras.Model):
    """Knows its inputs only when it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(3)

    def build(self, shape):
        self.head.build(shape)

    def call(self, inputs):
        return self.head(inputs)


@pytest.mark.slow
def test_export_of_several_inputs_and_of_models_without_any(tmp_path):
    ensemble = made(make=two_headed)
    ensemble.export(tmp_path / "heads", output="kind")
    model = tf.saved_model.load(tmp_path / "heads")
    served = model.serve(two_inputs())
    expected = ensemble.predict(two_inputs(), output="kind")
    np.testing.assert_allclose(served["members"], expected, rtol=1e-5)
    called = made(make=Called)
    called.predict(x_of(), from_logits=True)
    refused("input_signature", called.export, tmp_path / "called", from_logits=True)
    spec = tf.TensorSpec((None, 4), "float32")
    called.export(tmp_path / "called", input_signature=spec, from_logits=True)
    model = tf.saved_model.load(tmp_path / "called")
    served = model.serve(x_of())
    expected = called.predict(x_of(), from_logits=True)
    np.testing.assert_allclose(served["members"], expected, rtol=1e-5)
    refused("from_logits", called.export, tmp_path / "called", input_signature=spec)


@pytest.mark.slow
def test_members_from_elsewhere(tmp_path):
    trained = fitted(made(3))
    paths = [tmp_path / "0.keras", tmp_path / "1.keras", tmp_path / "2.weights.h5"]
    for path, member in zip(paths, trained, strict=True):
        (member.save_weights if path.suffix == ".h5" else member.save)(path)
    found = DeepEnsemble.from_checkpoints([*paths[:2], str(paths[2])], build)
    np.testing.assert_array_equal(found.predict(x_of()), trained.predict(x_of()))
    held = DeepEnsemble.from_models(trained.members)
    assert held.members == trained.members and len(held) == 3


# --- Bad input --------------------------------------------------------------------------------


def test_bad_ensembles_are_refused():
    for count in (0, -1, 2.5, "3", True, None):
        refused("num_members", DeepEnsemble, build, count)
    for seed in (-1, 2.5, "now", None):
        refused("seed", DeepEnsemble, build, 1, seed=seed)
        refused("seed", DeepEnsemble.from_models, [build()], seed=seed)
    model = build()
    for wrong in (None, model, "build"):
        refused("build_model", DeepEnsemble, wrong)
    for make in (lambda: None, lambda: keras.layers.Dense(3), lambda: model):
        refused("build_model", DeepEnsemble, make, 2)
    sizes = iter([2, 3])
    refused("build_model", DeepEnsemble, lambda: dense(next(sizes)), 2)
    for wrong in ([], [model, model], [model, "b"], [model, dense(2)], model, None):
        refused("models", DeepEnsemble.from_models, wrong)


def test_bad_files_are_refused(tmp_path):
    load = DeepEnsemble.load
    refused("folder", load, tmp_path / "nothing")
    refused("folder", load, tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    ensemble = made()
    refused("folder", ensemble.save, tmp_path / "notes")
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    refused("folder", ensemble.save, tmp_path / "notes" / "a.txt")
    ensemble.save(tmp_path / "whole")
    (tmp_path / "whole" / "member_001.keras").unlink()
    refused("folder", load, tmp_path / "whole")
    (tmp_path / "whole" / "ensemble.json").write_text('{"format": 99}')
    refused("folder", load, tmp_path / "whole")
    read = DeepEnsemble.from_checkpoints
    for paths in ([], "a.keras", [tmp_path / "a.keras"], [tmp_path / "notes" / "a.txt"]):
        refused("paths", read, paths)
    (tmp_path / "a.weights.h5").touch()
    refused("build_model", read, [tmp_path / "a.weights.h5"])
    refused("build_model", read, [tmp_path / "a.weights.h5"], "build")


def test_members_without_weights_cannot_be_written(tmp_path):
    ensemble = made(make=Called)
    for write in (ensemble.save, functools.partial(ensemble.export, from_logits=True)):
        with pytest.raises(ValueError, match=r"must be built.*Received: member 0"):
            write(tmp_path / "out")
    with pytest.raises(ValueError, match=r"must be built.*other processes.*Received: member 0"):
        ensemble.fit(x_of(), y_of(), workers=2)


def test_bad_training_is_refused():
    ensemble = made()
    fit = functools.partial(ensemble.fit, verbose=0)
    for workers in (0, 1.5, "2"):
        refused("workers", fit, x_of(), y_of(), workers=workers)
    refused("workers", fit, x_of(), y_of(), workers=2, executor=Inline())
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for executor in (threads, "processes"):
            refused("executor", fit, x_of(), y_of(), executor=executor)
    refused("x", fit, (pair for pair in [(x_of(), y_of())]))
    refused("y", fit, bagged, y_of())


def test_what_cannot_go_to_other_processes_is_refused():
    fit = functools.partial(made().fit, executor=Inline(), verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((x_of(), y_of())).batch(4)
    refused("x", fit, dataset)
    refused("x", fit, lambda number: dataset)
    refused("validation_data", fit, x_of(), y_of(), validation_data=dataset)
    refused("callbacks", fit, x_of(), y_of(), callbacks=[keras.callbacks.TerminateOnNaN()])
    refused("callbacks", fit, x_of(), y_of(), callbacks=lambda number: [])
    refused("build_model", made(make=lambda: dense()).fit, x_of(), y_of(), workers=2)


def test_bad_data_are_refused():
    ensemble = made()
    refused("x", ensemble.predict, x_of(0))
    refused("batch_size", ensemble.predict, x_of(), 0)
    refused("y", ensemble.evaluate, x_of())
    refused("y_true", ensemble.evaluate, x_of(), y_of() + 1)
    for wrong in ({}, {"nll": "nll"}, ["nll"]):
        refused("metrics", ensemble.evaluate, x_of(), y_of(), wrong)
    sizes = iter([2, 3])

    def called():
        model = Called()
        model.head = keras.layers.Dense(next(sizes))
        return model

    refused("models", made(make=called).predict, x_of(), from_logits=True)


# --- Graphs that are kept -----------------------------------------------------------------------


@keras.saving.register_keras_serializable("test")
class Counts(keras.layers.Layer):
    """Counts how often a graph is made with it."""

    calls = 0

    def call(self, inputs):
        Counts.calls += not tf.executing_eagerly()
        return inputs


def counting(shape=(4,)):
    layers = [Counts(), keras.layers.GlobalAveragePooling2D()] if len(shape) > 1 else [Counts()]
    model = keras.Sequential([keras.Input(shape), *layers, keras.layers.Dense(3)])
    model.compile("sgd", LOGITS, jit_compile=False)
    return model


@pytest.mark.slow
def test_predictions_make_their_graph_once():
    """24 traces for 12 predictions of two members, before."""
    ensemble = DeepEnsemble(counting, 2)
    x, y = x_of(), y_of()
    expected = [member.predict(x, verbose=0) for member in ensemble]
    Counts.calls = 0
    for count in (20, 7, 20, 1):
        stack = ensemble.predict(x[:count])
        ensemble.predict_mixture(x[:count])
        ensemble.evaluate(x[:count], y[:count])
        ensemble.evaluate(x[:count], y[:count], per_member=True)
    assert Counts.calls == 2 * 3  # members and kinds: stacks, means, means as stacks
    np.testing.assert_allclose(
        ensemble.predict(x), keras.ops.softmax(np.stack(expected)), rtol=1e-5
    )
    assert stack.shape == (2, 1, 3)


def test_images_of_other_sizes_share_a_graph():
    ensemble = DeepEnsemble(functools.partial(counting, (None, None, 1)), 2)
    Counts.calls = 0
    for size in (4, 5, 6, 7, 4):
        ensemble.predict(np.zeros((2, size, size + 1, 1), "float32"))
    assert Counts.calls == 2 * 2  # of the first size, and of any


@pytest.mark.slow
def test_graphs_know_what_has_changed():
    vbll = functools.partial(tfuq.layers.VBLLDense, 3, kl_weight=0.1, logits_only=True)
    ensemble = DeepEnsemble(lambda: keras.Sequential([keras.Input((4,)), vbll()]), 2)
    x = x_of()
    first = ensemble.predict(x)
    for member in ensemble:
        member.set_weights([2 * weight for weight in member.get_weights()])
    assert not np.allclose(ensemble.predict(x), first)  # new values
    with tfuq.layers.ways.predicting("mean"):
        mean = ensemble.predict(x)
    assert not np.array_equal(mean, ensemble.predict(x))  # another way
    ensemble = DeepEnsemble(linear, 2)
    before = ensemble.predict(x)
    ensemble._members = [linear(), linear()]  # as after a training in other processes
    assert not np.allclose(ensemble.predict(x), before)
    for member in ensemble:
        member.layers[-1].enable_lora(1)
        member.layers[-1].lora_kernel_b.assign(np.ones((1, 3)) * [[0.0, 1.0, 2.0]])
    expected = keras.ops.softmax(np.stack([member.predict(x, verbose=0) for member in ensemble]))
    np.testing.assert_allclose(ensemble.predict(x), expected, rtol=1e-4)  # new variables


def test_uncertainty_of_an_ensemble():
    ensemble, x = DeepEnsemble(counting, 3), x_of()
    found = tfuq.predictive.predict_uncertainty(ensemble, x, batch_size=8)
    expected = decompose(ensemble.predict(x))
    for name in ("probs", "label", "mutual_information", "variation_ratio", "std"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    stack = tfuq.predictive.sample_predictions(ensemble, x)
    np.testing.assert_array_equal(stack, ensemble.predict(x))
    x[3] = np.nan
    assert tfuq.predictive.predict_uncertainty(ensemble, x).label[3] == -1
    with pytest.raises(ValueError, match="`num_samples` must be left out for an ensemble"):
        tfuq.predictive.predict_uncertainty(ensemble, x, 5)


# --- What a model's file does not keep -----------------------------------------------------------


def decayed():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.9)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, LOGITS, jit_compile=False)
    return model


@pytest.mark.slow
def test_exclusions_from_weight_decay_go_to_other_processes(tmp_path):
    """By the same steps, in this process: the files, and what goes beside them."""
    ensemble = DeepEnsemble(decayed, 1)
    arguments = {"x": x_of(), "y": y_of(), "epochs": 1}
    task = tfuq.ensembles.processes.Task(0, 0, arguments, None)
    (task,) = tfuq.ensembles.processes.stored([task], ensemble.members, str(tmp_path), None)
    answer = tfuq.ensembles.processes.train_stored(task)
    found = tfuq.ensembles.processes.read_trained(task, answer).model
    expected = DeepEnsemble(decayed, 1).members[0]
    expected.set_weights(ensemble.members[0].get_weights())
    tfuq.ensembles.processes.Task(0, 0, arguments, None).train(expected, 0)
    for one, other in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    uses = found.optimizer._use_weight_decay
    assert [uses(weight) for weight in found.weights] == [True, False]


class OwnCompile(keras.Sequential):
    def compile(self, *, strength):
        super().compile("sgd", LOGITS, jit_compile=False)


def test_members_that_keras_does_not_compile_again_stay_in_this_process():
    def make():
        model = OwnCompile([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(strength=2)
        return model

    with pytest.raises(ValueError, match="`workers` must be 1, and `executor` None"):
        DeepEnsemble(make, 2).fit(x_of(), y_of(), workers=2, verbose=0)


@pytest.mark.slow
def test_no_epoch_of_a_member_trains_on_nothing():
    data = tf.data.Dataset.from_tensor_slices((x_of(), y_of()))
    data = data.filter(lambda x, y: True).batch(5)
    options = {"steps_per_epoch": 4, "epochs": 3, "shuffle": False, "verbose": 0}
    for given in (data, lambda number: data):
        (history,) = DeepEnsemble(linear, 1).fit(given, **options)
        assert min(history.history["loss"]) > 0
