"""NaN in labels, losses, weights: found where Keras finds it, and never kept as a result."""

import math
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfuq
from tfuq.callbacks import (
    SGDR,
    KLAnnealing,
    PosteriorSampling,
    RejectionEvaluator,
    SaliencySelection,
    SnapshotEnsemble,
)
from tfuq.layers import DenseVariational, MCSoftmaxDenseFA, SparseBayesDense, VBLLDense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = (np.arange(32) % 3).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

HEADS = {
    "Dense": lambda: layers.Dense(3),
    "DenseVariational": lambda: DenseVariational(3, kl_weight=0.01),
    "VBLLDense": lambda: VBLLDense(3, kl_weight=0.01),
    "SparseBayesDense": lambda: SparseBayesDense(3, kl_weight=0.01),
    "MCSoftmaxDenseFA": lambda: MCSoftmaxDenseFA(3, 2, train_mc_samples=8, logits_only=True),
}


def network(head="Dense", loss=LOSS):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), HEADS[head]()])
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    return model


def spoilt(values, row=20):
    values = np.array(values)
    values[row] = np.nan
    return values


def one_hot():
    return np.eye(3, dtype="float32")[Y.astype(int)]


@pytest.mark.slow_product
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("what", ["inputs", "labels", "weights"])
def test_keras_finds_it(head, what):
    """The loss is NaN, as of a network of Keras' own layers, and `TerminateOnNaN` sees it."""
    model = network(head, keras.losses.CategoricalCrossentropy(from_logits=True))
    x, y, weight = X, one_hot(), np.ones(32, "float32")
    x = spoilt(x) if what == "inputs" else x
    y = spoilt(y) if what == "labels" else y
    weight = spoilt(weight) if what == "weights" else weight
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(x, y, 8, 3, 0, [stop], sample_weight=weight, shuffle=False)
    assert len(history.epoch) == 1 and math.isnan(history.history["loss"][0])


@pytest.mark.slow
def test_callbacks_let_training_end(tmp_path):
    """All of ours beside `TerminateOnNaN`: training ends, and good snapshots are all there are."""
    model = network("SparseBayesDense")
    folder = tmp_path / "snapshots"
    stop = keras.callbacks.TerminateOnNaN()
    evaluator = RejectionEvaluator((X, Y), from_logits=True, verbose=2)
    callbacks = [
        SGDR(0.1, cycle_length=1),
        KLAnnealing(duration=2),
        SaliencySelection(after_epoch=1),
        PosteriorSampling(2),
        SnapshotEnsemble(str(folder)),
        tfuq.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        evaluator,
        stop,
    ]

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                model.layers[0].bias.assign(np.full(5, np.nan))

    history = model.fit(X, Y, 8, 5, 0, [Poison(), *callbacks])
    assert len(history.epoch) == 3
    assert math.isnan(history.history["loss"][2])
    accuracy = evaluator.history["val_accuracy_at_0.5"]
    assert np.isfinite(evaluator.history["val_coverage_at_0.5"][:2]).all()
    assert math.isnan(accuracy[2]) and math.isnan(evaluator.history["val_coverage_at_0.5"][2])
    assert "-" in evaluator.table()
    assert len(list(folder.glob("*.weights.h5"))) == 2


def test_snapshots_of_nan_are_not_written(tmp_path):
    """Training goes on, as nobody ends it; what it made before is all that is kept."""
    model = network()
    snapshots = SnapshotEnsemble(str(tmp_path / "s"), every=1)

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                model.layers[0].bias.assign(np.full(5, np.nan))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", "Epoch")
        model.fit(X, Y, 8, 4, 0, [Poison(), snapshots])
    assert [str(each.message)[:8] for each in told] == ["Epoch 3:", "Epoch 4:"]
    assert "NaN or infinite" in str(told[0].message)
    files = sorted(tmp_path.glob("s/*.weights.h5"))
    assert len(files) == 2
    for path in files:
        model.load_weights(path)
        assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_range_test_stops():
    model = network()
    with pytest.raises(ValueError, match="finite"):
        tfuq.lr_range_test(model, (spoilt(X, 0), Y), num_steps=5, batch_size=32)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_rapid_fit_stops():
    with pytest.raises(ValueError, match="finite"):
        tfuq.training.rapid_fit(network(), (spoilt(X, slice(None)), Y), num_cycles=1, verbose=0)


def test_conversions_refuse():
    """What chooses by gradients has nothing to choose by."""
    model = network()
    for data in ((spoilt(X), Y), (X * np.inf, Y)):
        with pytest.raises(ValueError, match="finite"):
            tfuq.convert.saliency(model, data)
        with pytest.raises(ValueError, match="finite"):
            tfuq.convert.sparse_bayesian(model, data, kl_weight=0.01)
    weights = model.get_weights()
    weights[0][0, 0] = np.nan
    model.set_weights(weights)
    with pytest.raises(ValueError, match="finite"):
        tfuq.convert.saliency(model, (X, Y))


def test_explanations_of_nothing_are_refused():
    head = MCSoftmaxDenseFA(3, 2, train_mc_samples=8, logits_only=True, name="head")
    model = keras.Sequential([keras.Input((4,)), head])
    with pytest.raises(ValueError, match="finite"):
        tfuq.interpret.label_noise_pairs(model, spoilt(X))
    with pytest.raises(ValueError, match="finite"):
        tfuq.ood.KNN(3, layer="head").fit(model, spoilt(X))
