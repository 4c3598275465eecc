"""Frozen weights stand still, unfrozen ones move, and the optimizer does not notice."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import policy, two_devices
from keras import layers

from tfuq.callbacks import GradualUnfreezing
from tfuq.callbacks.unfreezing import WeightedLayer, split_from_top, stage_at, weighted_layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.integers(3, size=12)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# --- Models -----------------------------------------------------------------------------------


def trunk():
    """Dense a, b and c; batch normalization before c (a bias just before it has no gradient)."""
    x = keras.Input((4,))
    y = layers.Dropout(0.0)(layers.Dense(4, "tanh", name="a")(x))
    y = layers.BatchNormalization(name="norm")(layers.Dense(4, "tanh", name="b")(y))
    return keras.Model(x, layers.Dense(4, name="c")(y), name="trunk")


def nested():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3, name="head")(trunk()(x)))


def flat():
    base = trunk()
    return keras.Model(base.input, layers.Dense(3, name="head")(base.output))


def sequential():
    return keras.Sequential([keras.Input((4,)), *trunk().layers[1:], layers.Dense(3, name="head")])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.base, self.head = trunk(), layers.Dense(3, name="head")

    def call(self, x, training=False):
        return self.head(self.base(x, training=training))


def subclassed():
    model = Subclassed()
    model(X)
    return model


MODELS = {"nested": nested, "flat": flat, "sequential": sequential, "subclassed": subclassed}
NAMES = ("a", "b", "norm", "c", "head")


def compiled(make=nested, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    model = make()
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    model.compile(optimizer, LOSS, **{"jit_compile": False, **kwargs})
    return model


def layer_of(model, name):
    return next(part.layer for part in weighted_layers(model) if part.path.endswith(name))


class Watch(keras.callbacks.Callback):
    """Notes which layers an epoch moves, batch normalization's averages too, and the flags."""

    def __init__(self):
        super().__init__()
        self.moved, self.flags = [], set()

    def on_epoch_begin(self, epoch, logs=None):
        self.before = self.weights()

    def on_train_batch_end(self, batch, logs=None):
        self.flags.update(trainable(self.model))

    def on_epoch_end(self, epoch, logs=None):
        after = self.weights()
        same = {n: map(np.array_equal, self.before[n], after[n]) for n in after}
        # All weights of a layer move, or none of them.
        verdict = {name: set(found) for name, found in same.items()}
        assert all(len(found) == 1 for found in verdict.values()), verdict
        self.moved.append("".join(f"{name} " for name in NAMES if verdict[name] == {False}))

    def weights(self):
        return {p.path.split("/")[-1]: p.layer.get_weights() for p in weighted_layers(self.model)}


def trainable(model):
    return [(layer.name, layer.trainable) for layer in model._flatten_layers()]


def fit(model, *callbacks, epochs=3, **kwargs):
    kwargs = {"batch_size": 6, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


def watched(model, *args, epochs=3, **kwargs):
    watch = Watch()
    fit(model, GradualUnfreezing(*args, **kwargs), watch, epochs=epochs)
    return watch.moved


def by_hand(model, stages, steps=2):
    """Gradient tapes and one optimizer: what the callback must amount to."""
    model.optimizer.build(model.trainable_variables)
    for names in stages:
        held = [layer_of(model, name) for name in set(NAMES) - set(names)]
        for layer in held:
            layer.trainable = False
        for i in range(steps):
            x, y = X[6 * i : 6 * i + 6], Y[6 * i : 6 * i + 6]
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            weights = model.trainable_weights
            model.optimizer.apply(tape.gradient(loss, weights), weights)
        for layer in held:
            layer.trainable = True


def assert_same(model, expected, tolerance=1e-5):
    """Weights, and all that the optimizer keeps."""
    for one, other in ((model, expected), (model.optimizer, expected.optimizer)):
        for found, wanted in zip(one.variables, other.variables, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, err_msg=found.path)


# --- When -------------------------------------------------------------------------------------


def test_stage_at():
    assert [stage_at(epoch, [2, 1, 3]) for epoch in range(8)] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [stage_at(epoch, [0, 2]) for epoch in range(4)] == [1, 1, 2, 2]


# --- What -------------------------------------------------------------------------------------


def test_split_from_top():
    assert split_from_top([1, 2, 3, 4, 5, 6, 7], 3) == [[7, 6], [5, 4], [3, 2, 1]]
    assert split_from_top([1, 2], 2) == [[2], [1]]


def test_patterns_fit_names_and_paths_of_layers_and_of_the_models_around_them():
    part = WeightedLayer("outer/block_1/conv", None)
    for pattern in ("conv", "c*", "outer", "block_?", "outer/block_1", "outer/*", part.path):
        assert part.matches(pattern), pattern
    for pattern in ("con", "block", "block_1/conv", "outer/conv", "Conv"):
        assert not part.matches(pattern), pattern


def test_parts_come_bottom_first_wherever_they_are():
    """A shortcut belongs beside what it goes around; what only holds layers is taken apart."""
    x = keras.Input((3, 4))
    y = layers.Bidirectional(layers.GRU(2, return_sequences=True), name="pair")(x)
    skip = layers.Dense(2, name="skip")(y)
    y = layers.MultiHeadAttention(1, 2, name="attention")(y, y)
    y = layers.TimeDistributed(layers.Dense(2, name="each"), name="wrap")(y)
    model = keras.Model(x, layers.add([y, skip]))
    paths = [part.path for part in weighted_layers(model)]
    assert paths[0].startswith("pair/forward")
    assert paths[-2:] == ["wrap/each", "skip"]
    assert {p for p in paths if p.startswith("attention/")} == {
        f"attention/{name}" for name in ("query", "key", "value", "attention_output")
    }
    weights = [id(weight) for part in weighted_layers(model) for weight in part.layer.weights]
    assert sorted(weights) == sorted(map(id, model.weights))


def test_a_layer_with_weights_of_its_own_is_not_taken_apart():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.inner = layers.Dense(4)
            self.inner.build((None, 4))
            self.scale = self.add_weight(shape=())

        def call(self, x):
            return self.scale * self.inner(x)

    model = keras.Sequential([keras.Input((4,)), Block(), layers.Dense(3)])
    assert next(weighted_layers(model)).path == "block"


# --- Weights ----------------------------------------------------------------------------------

BY_STAGE = ["head ", "norm c head ", "a b norm c head "]


@pytest.mark.slow_cases("nested")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_layers_move_from_their_stage_on(make):
    model = compiled(make, run_eagerly=make is not nested)
    assert watched(model, num_stages=2) == BY_STAGE


@pytest.mark.slow
def test_compiled_with_xla():
    assert watched(compiled(jit_compile=True), num_stages=1, epochs=2) == BY_STAGE[::2]


@pytest.mark.slow_cases("stages1-expected1")
@pytest.mark.parametrize(
    "stages, expected",
    [
        (["c", ["norm", "b"], "trunk"], ["head ", "c head ", "b norm c head ", "a b norm c head "]),
        ([["[bc]"], "trunk/n*"], ["head ", "b c head ", "b norm c head ", "b norm c head "]),
    ],
)
def test_stages_by_name(stages, expected):
    """A layer that no stage names stays frozen."""
    assert watched(compiled(run_eagerly=True), stages=stages, epochs=4) == expected


@pytest.mark.slow
def test_epochs_per_stage():
    model = compiled(run_eagerly=True)
    first, second, last = BY_STAGE
    assert watched(model, "trunk", 2, 2, epochs=5) == [first, first, second, second, last]
    assert watched(model, "trunk", 2, [0, 1], epochs=2) == [second, last]
    assert watched(model, "trunk", 2, [1, 3], epochs=3) == [first, second, second]


def test_a_second_training_begins_anew():
    model, unfreezing, watch = compiled(run_eagerly=True), GradualUnfreezing(num_stages=2), Watch()
    for _ in range(2):
        fit(model, unfreezing, watch, epochs=1)
    assert watch.moved == BY_STAGE[:1] * 2


@pytest.mark.slow
def test_backbones():
    """A model within, one whose layers are in the model, a layer, a path."""
    model, base = nested(), trunk()
    around = keras.Model(base.input, layers.Dense(3, name="head")(base.output))
    for each, backbone in ((model, model.get_layer("trunk")), (around, base)):
        each.compile("adam", LOSS, run_eagerly=True)
        assert watched(each, backbone, 1, epochs=1) == ["head "]
    model.compile("adam", LOSS, run_eagerly=True)
    found = watched(model, layer_of(model, "a"), 1, epochs=2)
    assert found == ["b norm c head ", BY_STAGE[-1]]
    assert watched(model, "trunk/a", 1, epochs=1) == ["b norm c head "]


# --- The optimizer ----------------------------------------------------------------------------


@pytest.mark.slow_cases("adamw-ema")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, use_ema=True),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5),
    ],
    ids=["adamw-ema", "momentum"],
)
def test_state_goes_on_as_with_one_optimizer_by_hand(make_optimizer):
    model, expected = (compiled(optimizer=make_optimizer()) for _ in range(2))
    fit(model, GradualUnfreezing(num_stages=2), epochs=3)
    by_hand(expected, [stage.split() for stage in BY_STAGE])
    if expected.optimizer.use_ema:
        expected.optimizer.finalize_variable_values(expected.trainable_variables)
    assert_same(model, expected)


@pytest.mark.slow
def test_a_training_that_ends_early_with_averaged_weights():
    """Keras averages in the order of the trainable weights, which must be all of them."""
    model, expected = (compiled(optimizer=keras.optimizers.SGD(0.1, use_ema=True)) for _ in "12")
    fit(model, GradualUnfreezing(num_stages=2), epochs=1)
    by_hand(expected, [["head"]])
    expected.optimizer.finalize_variable_values(expected.trainable_variables)
    assert_same(model, expected)


@pytest.mark.slow
def test_mixed_precision():
    with policy("mixed_float16"):
        model = compiled(steps_per_execution=2)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert watched(model, num_stages=1, epochs=2) == BY_STAGE[::2]


@pytest.mark.slow
def test_two_devices():
    with two_devices().scope():
        model = compiled(optimizer=keras.optimizers.SGD(0.1), jit_compile="auto")
    assert watched(model, num_stages=1, epochs=2) == BY_STAGE[::2]


def test_an_optimizer_that_knows_too_little_is_refused():
    model = compiled(run_eagerly=True)
    model.get_layer("trunk").trainable = False
    fit(model, epochs=1)
    model.get_layer("trunk").trainable = True
    with pytest.raises(ValueError, match=r"`optimizer` of `compile` must be new.*does not know"):
        fit(model, GradualUnfreezing())


def test_an_optimizer_that_knows_all_is_kept():
    """The moments of an earlier training stand still with their layers."""
    model = compiled(run_eagerly=True)
    fit(model, epochs=1)
    before = {v.path: v.numpy() for v in model.optimizer.variables}
    fit(model, GradualUnfreezing(num_stages=1), epochs=1)
    moved = {v.path for v in model.optimizer.variables if np.any(v.numpy() != before[v.path])}
    assert {path for path in before if "_a_kernel" in path}.isdisjoint(moved)
    assert {path for path in before if "head_kernel" in path} <= moved
    assert len(moved) == 5  # two moments of two weights, and the count of steps


# --- Resumed ----------------------------------------------------------------------------------


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KeyboardInterrupt


@functools.cache
def undisturbed():
    model = compiled(run_eagerly=True)
    fit(model, GradualUnfreezing(num_stages=2), epochs=4)
    return model


@pytest.mark.slow_cases("2-1")
@pytest.mark.slow_cases("0-*", "1-*")
@pytest.mark.parametrize("epoch, order", [(0, 1), (1, -1), (2, 1)])
def test_resumes_where_it_was(epoch, order, tmp_path):
    """Interrupted in each stage, behind its first batch, and gone on with in a new model."""
    for interrupt in (Interrupt(epoch, 0), None):
        model = compiled(run_eagerly=True)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [GradualUnfreezing(num_stages=2), backup][::order]
        if interrupt:
            with pytest.raises(KeyboardInterrupt):
                fit(model, *callbacks, interrupt, epochs=4)
        else:
            history = fit(model, *callbacks, epochs=4)
    assert history["unfreezing_stage"] == [0, 1, 2, 2][epoch:]
    assert_same(model, undisturbed(), tolerance=0)


@pytest.mark.slow
def test_the_same_model_goes_on_after_an_interruption():
    """Traced, so that a training step of the wrong stage would be noticed."""
    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, GradualUnfreezing(num_stages=2), Interrupt(0, 0))
    assert all(flag for _, flag in trainable(model))
    watch = Watch()
    fit(model, GradualUnfreezing(num_stages=2), watch, initial_epoch=1, epochs=3)
    assert watch.moved == BY_STAGE[1:]


# --- Flags ------------------------------------------------------------------------------------


def test_what_the_user_froze_stays_frozen():
    """A layer, a single weight, batch normalization; the flags are the user's at all times."""
    model = compiled(run_eagerly=True)
    layer_of(model, "a").trainable = False
    layer_of(model, "norm").trainable = False
    layer_of(model, "c").bias.trainable = False
    layer_of(model, "c").bias.assign([1, 2, 3, 4])
    before = trainable(model)
    watch = Watch()
    watch.on_epoch_end = lambda epoch, logs=None: None
    start = weights_by_name(model)
    unfreezing = GradualUnfreezing(num_stages=2)
    fit(model, unfreezing, watch, epochs=3)
    end = weights_by_name(model)
    assert unfreezing.groups == [["trunk/c"], ["trunk/b"]]
    assert trainable(model) == before and watch.flags == set(before)
    same = {key: np.array_equal(start[key], end[key]) for key in start}
    assert {key for key, value in same.items() if value} == {
        "a/kernel",
        "a/bias",
        "norm/gamma",
        "norm/beta",
        "norm/moving_mean",
        "norm/moving_variance",
        "c/bias",
    }
    assert not layer_of(model, "c").bias.trainable and layer_of(model, "c").kernel.trainable


def weights_by_name(model):
    return {
        f"{part.path.split('/')[-1]}/{weight.name}": weight.numpy()
        for part in weighted_layers(model)
        for weight in part.layer.weights
    }


@pytest.mark.slow
def test_next_fit_trains_everything():
    """Also though Keras would keep the training step that it has."""
    model, watch = compiled(), Watch()
    fit(model, GradualUnfreezing(num_stages=2), epochs=1)
    fit(model, watch, epochs=1)
    assert watch.moved == BY_STAGE[-1:]


def test_a_model_saved_halfway_has_its_flags_and_moments(tmp_path):
    model = compiled(run_eagerly=True)
    path = tmp_path / "model.keras"
    fit(model, keras.callbacks.ModelCheckpoint(path), GradualUnfreezing(num_stages=2), epochs=1)
    loaded = keras.models.load_model(path)
    assert trainable(loaded) == trainable(model)
    assert_same(loaded, model, tolerance=0)


# --- What it says -----------------------------------------------------------------------------


def test_logs_groups_and_lines(capsys):
    unfreezing = GradualUnfreezing(num_stages=2, epochs_per_stage=[1, 2], verbose=1)
    history = fit(compiled(run_eagerly=True), unfreezing, epochs=4)
    assert history["unfreezing_stage"] == [0, 1, 1, 2]
    assert unfreezing.stage == 2
    assert unfreezing.groups == [["trunk/c", "trunk/norm"], ["trunk/b", "trunk/a"]]
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if line] == [
        "Epoch 1: GradualUnfreezing begins stage 0 of 2, training 0 of 4 layers of the backbone. "
        "New: none",
        "Epoch 2: GradualUnfreezing begins stage 1 of 2, training 2 of 4 layers of the backbone. "
        "New: trunk/c, trunk/norm",
        "Epoch 4: GradualUnfreezing begins stage 2 of 2, training 4 of 4 layers of the backbone. "
        "New: trunk/b, trunk/a",
    ]


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [
        ("backbone", (3, ["trunk"])),
        ("num_stages", (0, -1, 1.5, "2", True)),
        ("epochs_per_stage", (0, 1.5, "2", None, True, [1, 1], [1, 1, -1], [1, 1, 0.5])),
        ("stages", ("c", [], [[]], [1], ["c", None], 3)),
        ("verbose", (2, "yes", None)),
    ],
)
def test_bad_arguments(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received: {name}="):
            GradualUnfreezing(**{name: value})


def test_two_ways_to_say_the_stages():
    with pytest.raises(ValueError, match="`num_stages` must be None where `stages` are given"):
        GradualUnfreezing(num_stages=2, stages=["c", "b"])


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("`backbone` must be in the model.*'tail'", {"backbone": "tail"}),
        ("`backbone` must be in the model", {"backbone": layers.Dense(3)}),
        ("`backbone` must leave something to train", {"backbone": "*"}),
        ("`num_stages` must not be above.*5 with 4 layers", {"num_stages": 5}),
        ("`stages` must name.*'trunk/a'.*'d', which fits none", {"stages": ["c", "d"]}),
        ("`stages` must name.*'head', which fits none", {"stages": ["head"]}),
        (r"`stages` must add a layer.*\['b'\]", {"stages": ["trunk", ["b"]]}),
    ],
)
def test_arguments_that_do_not_fit_the_model(message, arguments):
    model = compiled(run_eagerly=True)
    if arguments.get("backbone") == "*":
        arguments = {"backbone": model}
    with pytest.raises(ValueError, match=f"(?s){message}.*") as caught:
        fit(model, GradualUnfreezing(**arguments))
    assert "Received" in str(caught.value)


def test_a_backbone_that_is_frozen_already():
    model = compiled(run_eagerly=True)
    model.get_layer("trunk").trainable = False
    with pytest.raises(ValueError, match=r"set `trainable` to its final value.*Received"):
        fit(model, GradualUnfreezing())


def test_a_model_that_is_not_built():
    model = keras.Sequential([layers.Dense(4), layers.Dense(3)])
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match=r"`model` must be built.*Received"):
        fit(model, GradualUnfreezing(num_stages=1))
