"""Detectors in LiteRT and ONNX files say what Python says, or are refused with their reason."""

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers

from tfuq import ood
from tfuq.export import export_litert, export_onnx
from tfuq.export._runtimes import ONNX, LiteRT

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = (RNG.normal(size=(60, 5)) + 2 * RNG.normal(size=(3, 5))[Y]).astype("float32")
FORMATS = {"litert": (export_litert, LiteRT), "onnx": (export_onnx, ONNX)}
DETECTORS = {
    "MaxSoftmax": lambda: ood.MaxSoftmax(),
    "GEN": lambda: ood.GEN(),
    "GEN, 2 largest": lambda: ood.GEN(0.5, 2),
    "KLMatching": lambda: ood.KLMatching(),
    "SHE": lambda: ood.SHE(),
    "KNN": lambda: ood.KNN(3),
    "NNGuide": lambda: ood.NNGuide(3),
    "ViM": lambda: ood.ViM(2),
    "FDBD": lambda: ood.FDBD(),
    "ASH-S": lambda: ood.ASH(50),
    "ASH-P": lambda: ood.ASH(50, "p"),
    "ASH-B": lambda: ood.ASH(50, "b"),
    "ASH inside": lambda: ood.ASH(50, layer="first"),
    "SCALE": lambda: ood.SCALE(50),
    "SCALE inside": lambda: ood.SCALE(50, layer="first"),
    "DICE": lambda: ood.DICE(50),
    "ExGrad": lambda: ood.ExGrad(),
    "Gram": lambda: ood.Gram(powers=(1, 2)),
    "SIRC of SCALE": lambda: ood.SIRC(ood.SCALE(50)),
    "SIRC of SHE": lambda: ood.SIRC(ood.SHE()),
}
REFUSED = {"GAIA-A": lambda: ood.GAIA("a"), "GAIA-Z": lambda: ood.GAIA("z")}  # a gradient
# Of ONNX and of what is traced anew.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network(hidden="relu"):
    keras.utils.set_random_seed(15)
    dense = [layers.Dense(9, hidden, name="first"), layers.Dense(8, "relu"), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input((5,)), *dense]))
    model.fit(X, Y, epochs=20, verbose=0)
    return model


@pytest.fixture(scope="module")
def model():
    return network()


def scores_in(kind, folder, model, detector, x):
    """Scores of a file of a model with its detector."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    write, runtime = FORMATS[kind]
    write(model, folder / "model", ood=detector)
    run = runtime(folder / "model")
    return run({run.inputs[0]: x})["ood_score"]


# Rows that are no numbers, and rows that leave float32 on the way, where a ReLU may clip them.
PARTLY = [[0, np.nan, 0, 0, 0], [0, 0, -np.inf, 0, 0]]
UNKNOWN = np.array([[np.nan] * 5, [np.inf] * 5, *PARTLY], "float32")
LARGE = np.array([[3e38] * 5, [-3e38] * 5, [3e38, -3e38, 3e38, -3e38, 3e38]], "float32")


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["GEN", *(name for name in DETECTORS if name != "GEN")])
@pytest.mark.parametrize("kind", FORMATS)
def test_scores_are_those_of_python(kind, name, model, tmp_path):
    detector = DETECTORS[name]().fit(model, X, Y)
    certain = np.concatenate([300 * X[:10], 3e4 * X[:10]])  # logits of hundreds and thousands
    x = np.concatenate([3 * X, certain, np.zeros((1, 5), "float32"), LARGE, UNKNOWN])
    found, expected = scores_in(kind, tmp_path, model, detector, x), detector.score(x)
    assert np.all(np.isposinf(expected[-len(UNKNOWN) :]))
    assert np.all(np.isposinf(found[-len(UNKNOWN) :]))
    own = expected[: len(X) + len(certain)]
    assert np.isfinite(own).all() and len(np.unique(own)) > 20
    agrees = np.isclose(found, expected, rtol=1e-4, atol=1e-5)
    # What leaves float32 on the way, and is float64 in Python, is unknown to a file.
    large = np.arange(len(own) + 1, len(x) - len(UNKNOWN))
    agrees[large] |= np.isposinf(found[large])
    np.testing.assert_allclose(found[~agrees], expected[~agrees])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GAIA scores all")  # whose layers end in their own ReLUs
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    "kind, message", [("litert", "LiteRT has built in.*ReluGrad"), ("onnx", "tf2onnx converts")]
)
def test_gradients_inside_are_refused(kind, message, name, model, tmp_path):
    detector = REFUSED[name]().fit(model, X)
    with pytest.raises(ValueError, match=rf"(?s)must be made of operations that .*{message}"):
        scores_in(kind, tmp_path, model, detector, X)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gradients_that_need_no_operation_are_scored(tmp_path):
    """Of one hidden layer they are products of matrices, which LiteRT has."""
    dense = [layers.Dense(8, "relu", name="hidden"), layers.Dense(3)]
    keras.utils.set_random_seed(15)
    model = of_logits(keras.Sequential([keras.Input((5,)), *dense]))
    detector = ood.GAIA("a").fit(model, X)
    x = np.concatenate([3 * X, LARGE, UNKNOWN])
    found, expected = scores_in("litert", tmp_path, model, detector, x), detector.score(x)
    assert np.all(np.isposinf(expected[-len(UNKNOWN) :]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow_cases("onnx-SIRC*", "litert*")
@pytest.mark.parametrize("name", ["MaxSoftmax", "SIRC"])
@pytest.mark.parametrize("kind", ["onnx", "litert"])
def test_certain_predictions_stay_apart(kind, name, tmp_path):
    """1 - p to its relative accuracy, from e^-5 to e^-80.

    A sigmoid in ONNX runtimes is 0 from a gap of 17 logits on: all of these were equally certain.
    """
    model = of_logits(keras.Sequential([keras.Input((3,)), layers.Dense(3, use_bias=False)]))
    model.set_weights([np.eye(3)])
    gaps = np.array([5.0, 10, 16, 20, 30, 40, 60, 80])
    x = np.stack([gaps, 0 * gaps, 0 * gaps - 1], axis=1).astype("float32")
    detector = ood.MaxSoftmax() if name == "MaxSoftmax" else ood.SIRC(ood.KNN(3))
    detector.fit(model, RNG.normal(size=(40, 3)).astype("float32"))
    expected = -gaps - np.log1p(np.exp(-gaps) * (1 + np.exp(-1))) + np.log1p(np.exp(-1))
    if name == "MaxSoftmax":
        np.testing.assert_allclose(np.log(detector.score(x)), expected, rtol=1e-12)
    found = scores_in(kind, tmp_path, model, detector, x)
    np.testing.assert_allclose(found, detector.score(x), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DETECTORS if "inside" not in name])
@pytest.mark.parametrize("kind", FORMATS)
def test_features_whose_squares_leave_float32(kind, name, tmp_path):
    """A score of features at 1e20 is that of Python, in which it is that of float64 features.

    What float32 cannot hold, as of Gram, is further than all that it can: inf.
    """
    dense = [layers.Dense(8, "relu", name="hidden"), layers.Dense(3)]
    keras.utils.set_random_seed(15)
    model = of_logits(keras.Sequential([keras.Input((5,)), *dense]))
    model.fit(X, Y, epochs=20, verbose=0)
    detector, x = DETECTORS[name]().fit(model, X, Y), 1e20 * X[:8]
    expected = detector.score(x)
    features = model.layers[0](x).numpy().astype("float64")
    if name in ("FDBD", "KNN", "NNGuide"):
        arrays = (features, model(x).numpy()) if name == "NNGuide" else features
        np.testing.assert_allclose(expected, detector.score_features(arrays), rtol=1e-5)
    found = scores_in(kind, tmp_path, model, detector, x)
    expected = np.where(expected > np.finfo("float32").max, np.inf, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
