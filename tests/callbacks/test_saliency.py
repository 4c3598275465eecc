"""SaliencySelection: deterministic before, the largest gradients, and what the optimizer keeps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.callbacks import (
    GradualUnfreezing,
    PosteriorSampling,
    SaliencySelection,
    SnapshotEnsemble,
)
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import SparseBayesDense
from tfuq.layers.selection import select_layers
from tfuq.layers.sparse_bayes import sparse_bayes_layers

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHARE = {"r_bayes": 0.25, "kl_weight": 0.01, "posterior_scale": 0.3, "seed": 0}


def data(count=24):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


def model(kind=SparseBayesDense, optimizer=None, **kwargs):
    options = SHARE if kind is SparseBayesDense else {}
    layers = [kind(8, activation="tanh", name="low", **options), kind(3, name="top", **options)]
    made = keras.Sequential([keras.Input((4,)), *layers], name="net")
    rng = np.random.default_rng(1)
    for layer in made.layers:
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    kwargs = {"jit_compile": False, **kwargs}
    made.compile(optimizer or keras.optimizers.Adam(0.01), LOSS, **kwargs)
    return made


def eager(*args, **kwargs):
    """A model that does without the seconds of a trace."""
    return model(*args, run_eagerly=True, **kwargs)


def fit(made, *callbacks, epochs=3, **kwargs):
    x, y = data()
    kwargs = {"batch_size": 8, "shuffle": False, "verbose": 0, **kwargs}
    return made.fit(x, y, epochs=epochs, callbacks=list(callbacks), **kwargs).history


class Watch(keras.callbacks.Callback):
    """Keeps what there is at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.selected = [layer.is_selected() for layer in sparse_bayes_layers(self.model)]
            self.weights = {v.path: v.numpy() for v in self.model.trainable_weights}


def batch_squares(made, batch=8):
    """Sums over batches of squared gradients of the kernels, by layer."""
    x, y = data()
    sums = {}
    for i in range(0, len(x), batch):
        with tf.GradientTape() as tape:
            loss = LOSS(y[i : i + batch], made(x[i : i + batch], training=True))
        kernels = {layer.name: layer.kernel.value for layer in made.layers}
        for name, gradient in tape.gradient(loss, kernels).items():
            sums[name] = sums.get(name, 0) + np.square(gradient)
    return sums


def largest(values, count):
    return np.sort(np.argsort(-values.ravel(), kind="stable")[:count])


# --- The three steps --------------------------------------------------------------------------


@pytest.mark.slow_cases("False")
@pytest.mark.parametrize("given", [False, True])
def test_deterministic_first_then_random(given):
    made, twin = model(), model(keras.layers.Dense)
    watch = Watch(2)
    selection = SaliencySelection(data() if given else None, after_epoch=2)
    history = fit(made, Watch(1), selection, watch, epochs=4)
    fit(twin, epochs=2)
    assert history["bayesian_weights"] == [0, 14, 14, 14]
    assert watch.selected == [True, True]
    for layer in twin.layers:  # two epochs were those of the twin
        path = next(path for path in watch.weights if path.endswith(f"{layer.name}/kernel"))
        np.testing.assert_allclose(watch.weights[path], layer.kernel, rtol=1e-5, atol=1e-6)
    for layer in made.layers:  # and then the deviations trained
        assert np.ptp(layer.posterior().stddev().numpy()) > 0


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_gradients_of_the_training_steps_select(run_eagerly):
    still = keras.optimizers.SGD(0.0)
    made = model(optimizer=still, run_eagerly=run_eagerly)
    fit(made, SaliencySelection(after_epoch=1), epochs=1)
    for name, values in batch_squares(model()).items():
        layer = made.get_layer(name)
        np.testing.assert_array_equal(layer.kernel_indices, largest(values, layer.num_bayesian()))


@pytest.mark.slow_cases("arrays")
@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_gradients_over_other_data_select(kind):
    made = eager(optimizer=keras.optimizers.SGD(0.0))
    x, y = data()
    given = (x, y) if kind == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    fit(made, SaliencySelection(given, after_epoch=0, batch_size=8), epochs=1)
    for name, values in batch_squares(model()).items():
        layer = made.get_layer(name)
        np.testing.assert_array_equal(layer.kernel_indices, largest(values, layer.num_bayesian()))


@pytest.mark.slow
def test_fisher_of_single_examples():
    made = eager(optimizer=keras.optimizers.SGD(0.0))
    fit(made, SaliencySelection(data(), 0, method="fisher"), epochs=1)
    for name, values in batch_squares(model(), batch=1).items():
        layer = made.get_layer(name)
        np.testing.assert_array_equal(layer.kernel_indices, largest(values, layer.num_bayesian()))


@pytest.mark.slow
def test_recording_changes_nothing():
    made, twin = model(), model()
    fit(made, SaliencySelection(after_epoch=2), epochs=2)
    fit(twin, epochs=2)
    for one, other in zip(made.layers, twin.layers, strict=True):
        np.testing.assert_array_equal(one.kernel, other.kernel)
    assert "apply" not in vars(made.optimizer)


# --- The whole network ------------------------------------------------------------------------


FEW = ("nadam-ema", "scaled")  # the others run with `make test-slow`
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "nadam-ema": lambda: keras.optimizers.Nadam(0.01, use_ema=True),
    "accumulating": lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 99)),
}


def state(optimizer):
    """Values of the optimizer's variables, by name; that of Nadam's own product counts up."""
    named = {v.path.split("/")[-1]: v.numpy() for v in optimizer.variables}
    return {("product" if k.startswith("variable") else k): v for k, v in named.items()}


@pytest.mark.slow_cases("scaled")
@pytest.mark.slow_cases("nadam-ema")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make, id=name, marks=[pytest.mark.slow] * (name not in ("nadam-ema", "scaled"))
        )
        for name, make in OPTIMIZERS.items()
    ],
)
def test_optimizer_keeps_its_state_when_variables_are_made_anew(make):
    made, twin = model(optimizer=make()), model(optimizer=make())
    fit(twin, epochs=2)

    class After(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.state = state(self.model.optimizer)

    after = After()
    history = fit(made, SaliencySelection(after_epoch=2, scope="global"), after, epochs=4)
    sizes = [layer.num_bayesian() for layer in made.layers]
    assert sum(sizes) == 14 and sizes != [8, 6], "the shares should move, or nothing is tested"
    before = state(twin.optimizer)
    kept = [name for name in before if "rho" not in name]
    assert set(kept) <= set(after.state)
    for name in kept:
        np.testing.assert_allclose(after.state[name], before[name], rtol=1e-5, atol=1e-7)
    assert np.isfinite(history["loss"]).all()
    for layer in made.layers:
        if layer.num_bayesian():
            assert np.ptp(layer.posterior().stddev().numpy()) > 0
    names = [variable.path for variable in made.optimizer.variables]
    assert len(names) == len(set(names))


def test_global_selection_ranks_all_kernels():
    made = eager(optimizer=keras.optimizers.SGD(0.0))
    fit(made, SaliencySelection(after_epoch=1, scope="global"), epochs=1)
    found = batch_squares(model())
    least = np.sort(np.concatenate([values.ravel() for values in found.values()]))[-14]
    for name, values in found.items():
        np.testing.assert_array_equal(
            made.get_layer(name).kernel_indices, np.flatnonzero(values.ravel() >= least)
        )


# --- With others ------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_selected_stays():
    made = eager()
    fit(made, SaliencySelection(after_epoch=1), epochs=2)
    before = [layer.kernel_indices.numpy() for layer in made.layers]
    stddev = [layer.posterior().stddev().numpy() for layer in made.layers]
    history = fit(made, SaliencySelection(after_epoch=1), epochs=3, initial_epoch=2)
    for layer, indices, old in zip(made.layers, before, stddev, strict=True):
        np.testing.assert_array_equal(layer.kernel_indices, indices)
        assert np.any(layer.posterior().stddev().numpy() != old)
    assert history["bayesian_weights"] == [14]


@pytest.mark.parametrize("given", [False, True])
def test_late_start_selects_at_once(given):
    made = eager()
    selection = SaliencySelection(data() if given else None, after_epoch=1)
    history = fit(made, selection, epochs=4, initial_epoch=3)
    assert history["bayesian_weights"] == [14]


@pytest.mark.slow
def test_several_steps_per_execution_and_weights():
    made = model(steps_per_execution=2)
    weight = np.linspace(0, 1, 24)
    history = fit(made, SaliencySelection(after_epoch=1), epochs=2, sample_weight=weight)
    assert history["bayesian_weights"] == [14, 14] and np.isfinite(history["loss"]).all()


@pytest.mark.slow_cases("global")
@pytest.mark.slow_cases("layer")
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_with_unfreezing_and_several_samples(scope):
    made = model()
    callbacks = [
        PosteriorSampling(2),
        SaliencySelection(after_epoch=2, scope=scope),
        GradualUnfreezing("low", num_stages=1, epochs_per_stage=1),
    ]
    watch, later = Watch(1), Watch(2)
    first = made.get_layer("low").kernel.numpy()
    history = fit(made, *callbacks, watch, later, epochs=3)
    path = next(path for path in watch.weights if path.endswith("low/kernel"))
    np.testing.assert_array_equal(watch.weights[path], first)  # frozen in the first epoch
    assert np.any(later.weights[path] != first)
    assert history["bayesian_weights"] == [0, 14, 14]


def test_says_what_it_does(capsys):
    fit(eager(), SaliencySelection(after_epoch=1, verbose=1), epochs=1)
    assert (
        "Epoch 1: SaliencySelection made 14 weights of 2 layers random" in capsys.readouterr().out
    )


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"after_epoch": 0}, "Argument `after_epoch` must be an integer of at least 1"),
        (
            {"data": (), "after_epoch": -1},
            "Argument `after_epoch` must be an integer of at least 0",
        ),
        ({"scope": "all"}, "Argument `scope` must be one of 'layer', 'global'"),
        ({"method": "hessian"}, "Argument `method` must be one of 'gradient', 'fisher'"),
        ({"method": "fisher"}, "Argument `data` must be given for `method='fisher'`"),
        ({"batch_size": 0}, "Argument `batch_size` must"),
        ({"verbose": 2}, "Argument `verbose` must"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SaliencySelection(**kwargs)


def test_model_without_such_layers():
    with pytest.raises(ValueError, match="Argument `model` must hold sparse Bayesian layers"):
        fit(model(keras.layers.Dense), SaliencySelection())


def test_model_that_is_not_built():
    made = keras.Sequential([SparseBayesDense(3, **SHARE)])
    made.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="Argument `model` must be built before `fit`"):
        fit(made, SaliencySelection())


@pytest.mark.slow_cases("global-True")
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_frozen_layers_stay_deterministic(given, scope):
    """With `data` they were selected, without it was an error."""
    made = eager()
    made.get_layer("low").trainable = False
    made.compile("sgd", LOSS, run_eagerly=True)
    selection = SaliencySelection(data() if given else None, after_epoch=1, scope=scope)
    history = fit(made, selection, epochs=2)
    assert [layer.is_selected() for layer in made.layers] == [False, True]
    assert history["bayesian_weights"][-1] == made.get_layer("top").num_bayesian() == 6


def test_layers_that_thaw_are_selected_then():
    made = eager()
    made.get_layer("low").trainable = False
    made.compile("sgd", LOSS, run_eagerly=True)
    fit(made, SaliencySelection(after_epoch=1), epochs=1)
    made.get_layer("low").trainable = True
    made.compile("sgd", LOSS, run_eagerly=True)
    fit(made, SaliencySelection(after_epoch=1), epochs=1)
    assert [layer.is_selected() for layer in made.layers] == [True, True]


def test_a_layer_without_gradients_leaves_all_as_they_were():
    made = model()
    found = [{"kernel": np.ones((4, 8))}, {"kernel": np.zeros((8, 3))}]
    with pytest.raises(ValueError, match="gradients are 0 in all of the kernel of 'top'"):
        select_layers(made.layers, found, "layer")
    assert not any(layer.is_selected() for layer in made.layers)


@pytest.mark.slow
def test_gradients_that_are_not_finite():
    x, y = data()
    with pytest.raises(ValueError, match=r"NaN or infinity in those of .*low/kernel"):
        fit(eager(), SaliencySelection((x * np.nan, y), after_epoch=1))
    with pytest.raises(ValueError, match="Argument `saliency` must be finite"):
        eager().fit(x * np.nan, y, callbacks=[SaliencySelection(after_epoch=1)], verbose=0)


# --- Beside callbacks that compare epochs -------------------------------------------------------


class Scores(keras.callbacks.Callback):
    """Puts `score` into the logs, from a list."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


@pytest.mark.slow_cases("layer-True")
@pytest.mark.slow_cases("global-False")
@pytest.mark.slow_product
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_early_stopping_brings_back_no_epoch_before_the_selection(scope, first):
    made = model()
    stopping = keras.callbacks.EarlyStopping(
        "score", mode="max", patience=9, restore_best_weights=True
    )
    others = [Scores([9, 8, 1, 3, 2]), SaliencySelection(after_epoch=2, scope=scope), stopping]
    if not first:
        others = [others[0], others[2], others[1]]
    keep = Watch(4)  # the weights after epoch 3, the best one since
    fit(made, *others, keep, epochs=5)
    layers = sparse_bayes_layers(made)
    assert all(layer.is_selected() for layer in layers)
    if first:  # the epoch of the selection itself is compared: it has the selection already
        assert stopping.best_epoch == 1
    else:
        assert stopping.best_epoch == 3
        for variable in made.trainable_weights:
            np.testing.assert_array_equal(variable, keep.weights[variable.path])


@pytest.mark.slow
def test_checkpoints_of_the_best_epoch_hold_the_selection(tmp_path):
    made, path = model(), str(tmp_path / "best.weights.h5")
    best = keras.callbacks.ModelCheckpoint(
        path, "score", mode="max", save_best_only=True, save_weights_only=True
    )
    fit(made, Scores([9, 9, 1, 3]), best, SaliencySelection(after_epoch=2), epochs=4)
    again = model()
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path)
    assert all(layer.is_selected() for layer in sparse_bayes_layers(again))


def test_a_selection_after_the_last_epoch_is_refused():
    with pytest.raises(ValueError, match="Argument `after_epoch` must not be above the number"):
        fit(eager(), SaliencySelection(after_epoch=5), epochs=1)


class Ends(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_a_training_that_is_stopped_before_the_selection_warns():
    with pytest.warns(UserWarning, match="ended before SaliencySelection.*no weight of 2"):
        fit(eager(), SaliencySelection(after_epoch=5), Ends(), epochs=6)


@pytest.mark.slow_cases("after")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("when", ["after", "within"])
def test_weights_of_before_a_global_selection_may_be_loaded(tmp_path, when):
    """Shapes change with a global selection; who loads the weights of before trains on."""
    path = str(tmp_path / "{epoch}.weights.h5")
    files = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)

    class Loads(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.load_weights(tmp_path / "1.weights.h5")

    made, (x, y) = model(), data()
    for layer in made.layers:
        layer.kernel.assign(layer.kernel * (10 if layer.name == "low" else 0.1))
    counts = [layer.num_bayesian() for layer in made.layers]
    selection = SaliencySelection((x, y), after_epoch=2, scope="global")
    fit(made, files, selection, *([Loads()] if when == "within" else []), epochs=3)
    assert [layer.num_bayesian() for layer in made.layers] != counts
    if when == "within":  # selected again, at the end of the epoch that began with the old weights
        assert all(layer.is_selected() for layer in made.layers)
        return
    for number, expected in ((1, False), (3, True), (1, False)):
        made.load_weights(tmp_path / f"{number}.weights.h5")
        fresh = DeepEnsemble.from_checkpoints([tmp_path / f"{number}.weights.h5"], model).members[0]
        assert {layer.is_selected() for layer in made.layers} == {expected}
        expected = fresh.predict(x, verbose=0)
        np.testing.assert_allclose(made.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
        fit(made, epochs=1)  # the optimizer knows the variables that there are


class Killed(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if self.model.history.epoch[-1:] == [1]:
            raise KeyboardInterrupt


@pytest.mark.slow_cases("True")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("first", [True, False])
def test_backups_of_keras_hold_a_global_selection(tmp_path, first):
    """It restores the weights when training begins; moments, too, of variables of other shapes."""

    def resumed(*more):
        made = model(optimizer=keras.optimizers.Adam(0.01))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        both = [backup, SaliencySelection(data(), after_epoch=1, scope="global")]
        fit(made, *(both if first else both[::-1]), *more, epochs=4)
        return made

    with pytest.raises(KeyboardInterrupt):
        resumed(Killed())
    made = resumed()
    assert all(layer.is_selected() for layer in made.layers)
    assert len(made.optimizer.variables) == 2 + 2 * len(made.trainable_variables)
    assert sum(layer.num_bayesian() for layer in made.layers) == 14


@pytest.mark.slow_cases("global")
@pytest.mark.slow_cases("layer")
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_snapshots_of_before_and_after_are_read_together(tmp_path, scope):
    made = model()
    snapshots = SnapshotEnsemble(tmp_path / "cycles", every=1)
    fit(made, SaliencySelection(after_epoch=2, scope=scope), snapshots, epochs=3)
    for ensemble in (snapshots.ensemble(), SnapshotEnsemble.load(tmp_path / "cycles", model)):
        selected = [
            all(layer.is_selected() for layer in sparse_bayes_layers(member))
            for member in ensemble.members
        ]
        assert selected == [False, True, True]
        last = ensemble.members[-1].predict(data()[0], verbose=0)
        np.testing.assert_allclose(last, made.predict(data()[0], verbose=0), rtol=1e-5)
