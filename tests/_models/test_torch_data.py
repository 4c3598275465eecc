"""Data loaders and tensors of PyTorch, and arrays of objects: by stand-ins, and PyTorch's own."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfuq
from tfuq._arguments import check_kind
from tfuq._models.torch_data import keras_data

X = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
Y = np.arange(10) % 3


class Tensor:
    """As PyTorch's: NumPy reads it only where it records no gradient."""

    def __init__(self, array, requires_grad=False):
        self.array, self.requires_grad = array, requires_grad
        self.shape, self.dtype = array.shape, array.dtype

    def detach(self):
        return Tensor(self.array)

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.array(self.array, dtype, copy=copy)

    def __len__(self):
        return len(self.array)


class DataLoader:
    __module__ = "torch.utils.data.dataloader"

    def __init__(self, *arrays, size=4, has_length=True):
        self.arrays, self.size, self.has_length = arrays, size, has_length

    def __len__(self):
        if not self.has_length:
            raise TypeError("object of type 'IterableDataset' has no len()")
        return math.ceil(len(self.arrays[0]) / self.size)

    def __iter__(self):
        for start in range(0, len(self.arrays[0]), self.size):
            batch = [Tensor(array[start : start + self.size]) for array in self.arrays]
            yield batch if len(batch) > 1 else batch[0]


def model():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("sgd", loss, jit_compile=False)
    return made


def test_loaders_are_datasets_of_the_same_batches():
    for has_length in (True, False):
        found = keras_data(DataLoader(X, Y, has_length=has_length))
        assert isinstance(found, tf.data.Dataset)
        assert int(found.cardinality()) == (3 if has_length else tf.data.UNKNOWN_CARDINALITY)
        for _ in range(2):  # it is read again
            batches = list(found.as_numpy_iterator())
            np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
            np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), Y)
    assert keras_data(X) is X
    with pytest.raises(ValueError, match="at least one batch"):
        keras_data(DataLoader(X[:0], Y[:0]))


@pytest.mark.filterwarnings("ignore:The range test ended")
def test_loaders_are_taken_as_arrays_are(tmp_path):
    made, loader = model(), DataLoader(X, Y)
    ensemble = tfuq.ensembles.DeepEnsemble.from_models([made])
    np.testing.assert_allclose(ensemble.predict(loader), ensemble.predict(X), rtol=1e-5)
    np.testing.assert_allclose(
        tfuq.predictive.predict_uncertainty(made, DataLoader(X)).probs,
        tfuq.predictive.predict_uncertainty(made, X).probs,
        rtol=1e-5,
    )
    found = tfuq.predictive.score_dataset(made, loader, tmp_path / "s", verbose=0)
    np.testing.assert_array_equal(
        tfuq.predictive.read_scores(found.path, ["true_label"])["true_label"], Y
    )
    scaling = tfuq.selective.TemperatureScaling().fit_model(made, loader)
    expected = tfuq.selective.TemperatureScaling().fit_model(made, (X, Y))
    assert scaling.temperature == pytest.approx(expected.temperature, rel=1e-4)
    options = {"num_steps": 6, "shuffle": False, "stop": 1e-3}
    one = tfuq.lr_range_test(made, loader, **options)
    other = tfuq.lr_range_test(made, (X, Y), batch_size=4, **options)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    evaluator = tfuq.callbacks.RejectionEvaluator(loader, (0.5,), verbose=0)
    made.fit(X, Y, callbacks=[evaluator], verbose=0)
    assert tfuq.kl_weight_for(loader, "sparse_categorical_crossentropy") == 0.1
    options = {"num_cycles": 1, "max_learning_rate": 0.1, "verbose": 0}
    tfuq.training.rapid_fit(made, loader, loader, **options)


def test_loaders_of_pytorch():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    found = tfuq.predictive.predict_uncertainty(model(), loader)
    assert found.probs.shape == (10, 3)


def entries(made):
    """Where arrays of a user come in: a function of inputs, and of what may be probabilities."""
    return {
        "predict": lambda x: tfuq.ensembles.DeepEnsemble.from_models([made]).predict(x),
        "predict_uncertainty": lambda x: tfuq.predictive.predict_uncertainty(made, x),
        "score_dataset": lambda x: tfuq.predictive.score_dataset(made, x, "unused", verbose=0),
        "detector": lambda x: tfuq.ood.MaxLogit().fit(made, x),
        "logits": lambda x: tfuq.ood.MaxLogit().score_features(x),
        "fit_model": lambda x: tfuq.selective.TemperatureScaling().fit_model(made, (x, Y)),
        "decompose": lambda x: tfuq.predictive.decompose(x),
        "metric": lambda x: tfuq.metrics.brier_score(Y, x),
    }


MIXED = np.array([[1.0, 2, "a", None]] * 10, dtype=object)


@pytest.mark.parametrize("name", entries(None))
def test_arrays_of_objects_are_refused_by_that_name_and_shortly(name):
    with pytest.raises(ValueError, match="dtype=object") as caught:
        entries(model())[name](MIXED)
    text = str(caught.value)
    assert len(text) < 400 and "Argument `" in text and "NoneType, float, int, str" in text


@pytest.mark.parametrize("name", entries(None))
def test_tensors_that_record_gradients_are_told_what_to_do(name):
    with pytest.raises(ValueError, match=r"`\.detach\(\)`.*requires_grad=True, of shape \(10, 4\)"):
        entries(model())[name](Tensor(X, requires_grad=True))


def test_texts_and_columns_that_are_no_mixture_pass():
    check_kind("y", np.array(["cat", "dog"], dtype=object))
    check_kind("y", np.array(["cat", "dog"]))
    check_kind("x", [[1, 2], [3, 4]])
    check_kind("x", tf.zeros((2, 2)))
    with pytest.raises(ValueError, match="dtype=object"):
        check_kind("x", np.array([1.0, 2.0], dtype=object))
