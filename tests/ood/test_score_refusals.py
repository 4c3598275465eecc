"""What detectors refuse, and what they call unknown."""

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from small_detectors import (
    BY_LABELS,
    DETECTORS,
    LAST,
    MODEL,
    MOVING,
    OTHER,
    PAIRS,
    Subclassed,
    X,
    Y,
    features_of,
    fitted,
    model_of,
    refused,
    stack_of,
)

from tfuq import ood


@pytest.mark.parametrize("name", DETECTORS)
def test_bad_data(name):
    make, model = DETECTORS[name], model_of(name)
    spoilt = X.copy()
    spoilt[3, 1] = np.nan
    refused("x", make().fit, model, spoilt, Y)
    refused("x", make().fit, model, X[:0], Y[:0])
    if name != "MutualInformation":  # which does not look at labels
        refused("x", make().fit, model, X, Y[:9])
    refused("x", fitted(name).score, X[:0])
    refused("model", make().fit, "model", X, Y)
    if make()._shapes():
        refused("detector", make().score, X)
    refused("model", DETECTORS["MaxSoftmax"]().score, X)
    if name in BY_LABELS:
        refused("y", make().fit, model, X)
        for labels in (Y + 0.5, np.where(Y, Y, np.nan), Y.astype(str), np.zeros((40, 2, 2))):
            refused("y", make().fit, model, X, labels)
        if name not in ("SHE", "Gram"):
            refused("features", make().fit, model, X[:3], Y[:3])  # one example per class


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_not_finite_is_unknown(name):
    detector, expected = fitted(name), fitted(name).score(OTHER)
    spoilt, rows = OTHER.copy(), np.arange(21) < 3
    spoilt[0, 1], spoilt[1, 4], spoilt[2, 0] = np.nan, np.inf, -np.inf
    expected[rows] = np.inf
    np.testing.assert_allclose(detector.score(spoilt), expected, rtol=1e-6)
    if name not in MOVING:
        features = features_of(name, OTHER)
        features = tuple(map(np.array, features)) if name in PAIRS else np.array(features)
        part = features[-1] if name in PAIRS else features
        part[(0, 1, 0) if name == "MutualInformation" else (1, 0)] = np.nan
        found = np.isposinf(detector.score_features(features))
        assert found.tolist() == [i == 1 for i in range(21)]


@pytest.mark.parametrize("name", PAIRS)
def test_bad_pairs(name):
    hidden, logits = features_of(name, X)
    bad = hidden.copy()
    bad.flat[4] = np.inf
    for pair in ((bad, logits), (hidden[:0], logits[:0]), (hidden, logits[:9]), hidden, None):
        refused("features", DETECTORS[name]().fit_features, pair, Y)
    narrow = ((hidden[:, :2], logits), (hidden, logits[:, :2]))
    for pair in (*narrow, (hidden, logits[:9]), (hidden[0], logits[0]), "features", hidden):
        refused("features", fitted(name).score_features, pair)


@pytest.mark.parametrize("name", [n for n in DETECTORS if n not in (*MOVING, *PAIRS)])
def test_bad_arrays(name):
    features, more = features_of(name, X), {"head": MODEL.layers[1]} if name in LAST else {}
    bad = features.copy()
    bad.flat[4] = np.inf
    empty = features[:, :0] if name == "MutualInformation" else features[:0]
    for array in (bad, empty, features[0, 0], [["a", "b"]], None):
        refused("features", DETECTORS[name]().fit_features, array, Y, **more)
    for array in (features[..., :2], empty, features[0, 0], "features", None):
        if name != "MutualInformation" or np.shape(array) != (2, 40, 2):
            refused("features", fitted(name).score_features, array)
    if name in BY_LABELS:
        refused("y", DETECTORS[name]().fit_features, features)
        refused("y", DETECTORS[name]().fit_features, features, Y[:9])


def test_several_layers_are_a_list_of_arrays():
    detector, features = ood.Mahalanobis(layers=["a", "b"]), np.asarray(X)
    for bad in (features, [features], [features, features[:9]], None):
        refused("features", detector.fit_features, bad, Y)
    refused("detector", detector.fit_weights, X, OTHER)
    refused("layers", ood.Mahalanobis().fit_weights, X, OTHER)
    detector.fit_features([features, features], Y)
    bad = [features * np.nan, features]
    refused("x_in", detector.fit_weights_features, bad, [OTHER, OTHER])


@pytest.mark.parametrize("name", [*BY_LABELS, "KNN", "NNGuide", "ReAct", "ASH", "SCALE"])
def test_layers_that_are_not_there(name):
    make = type(DETECTORS[name]())
    if name == "Gram":  # which takes several
        refused("layer", make(layers=["hiden"]).fit, MODEL, X, Y)
        return
    for layer in ("hiden", "HIDDEN", ""):
        with pytest.raises(ValueError, match=r"'hidden', 'last'\. Received: layer="):
            make(layer=layer).fit(MODEL, X, Y)
    for layer in (3, ["hidden"], MODEL.layers[0]):
        refused("layer", make, layer=layer)
    if name == "Mahalanobis":
        refused("layer", make(layers=["hidden", "none"]).fit, MODEL, X, Y)
        for bad in ("hidden", [], [3], 3):
            refused("layers", make, layers=bad)
        refused("layer", make, "hidden", layers=["last"])


def test_two_layers_of_one_name():
    parts = [keras.Sequential([layers.Dense(5, name="twin")], name=name) for name in "ab"]
    model = of_logits(keras.Sequential([keras.Input((5,)), *parts, layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"just one layer of the model: .*a/twin.*b/twin"):
        ood.KNN(3, layer="twin").fit(model, X)
    ood.KNN(3, layer=parts[0].layers[0].path).fit(model, X)


def test_layer_that_does_not_run():
    class Half(Subclassed):
        def call(self, x, training=False):
            return self.parts[1](x)

    model = of_logits(Half(layers.Dense(4, name="idle"), layers.Dense(3)))
    model.parts[0].build((None, 5))
    with pytest.raises(ValueError, match="`layer` must be a layer that runs"):
        ood.KNN(3, layer="idle").fit(model, X)


def test_models_that_do_not_fit():
    inputs = keras.Input((5,))
    dense = layers.Dense(3)(inputs)
    several = keras.Model(inputs, [dense, dense])
    maps = of_logits(keras.Model(inputs, layers.Reshape((3, 1))(dense)))
    bare = keras.Model(inputs, layers.Softmax()(inputs))
    for model, argument in ((several, "output"), (bare, "model")):
        refused(argument, ood.MaxSoftmax().fit, model, X)
    for kind in (ood.KNN, ood.ODIN, ood.ReAct):  # others score positions, too
        refused("model", kind().fit, maps, X)
    refused("output", ood.MaxSoftmax(output=5).fit, several, X)
    refused("from_logits", ood.MaxSoftmax(from_logits=False).fit, MODEL, X)
    ids = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(9, 3)])
    ids.add(layers.Flatten())
    ids.add(layers.Dense(3))
    of_logits(ids)
    tokens = np.arange(48).reshape(12, 4) % 9
    ood.ODIN(epsilon=0).fit(ids, tokens).score(tokens)
    refused("epsilon", ood.ODIN(epsilon=0.1).fit(ids, tokens).score, tokens)
    parts = [layers.Dense(7, name="hidden"), layers.Dense(3)]
    wider = of_logits(keras.Sequential([keras.Input((5,)), *parts]))
    detector = ood.Mahalanobis("hidden").fit(MODEL, X, Y)
    refused("model", setattr, detector, "model", wider)  # it has other weights
    detector.check_model = False
    refused("features", detector.score, X)


BAD_ARGUMENTS = [
    (ood.MaxSoftmax, {"output": 1.5}),
    (ood.MaxSoftmax, {"from_logits": "yes"}),
    (ood.Energy, {"temperature": 0}),
    (ood.Energy, {"temperature": np.nan}),
    (ood.ODIN, {"temperature": -1}),
    (ood.ODIN, {"epsilon": -0.1}),
    (ood.ODIN, {"epsilon": np.inf}),
    (ood.Mahalanobis, {"epsilon": None}),
    (ood.Mahalanobis, {"shrinkage": 1.1}),
    (ood.RelativeMahalanobis, {"shrinkage": -0.1}),
    (ood.KNN, {"k": 0}),
    (ood.KNN, {"k": 1.5}),
    (ood.ViM, {"dim": 0}),
    (ood.ReAct, {"percentile": 0}),
    (ood.ReAct, {"percentile": 101}),
    (ood.ReAct, {"base": "vim"}),
    (ood.GradNorm, {"temperature": 0}),
    (ood.GEN, {"gamma": 0}),
    (ood.GEN, {"top": 0}),
    (ood.GEN, {"top": 2.5}),
    (ood.NNGuide, {"k": 0}),
    (ood.ASH, {"percentile": 100}),
    (ood.ASH, {"percentile": -1}),
    (ood.ASH, {"variant": "S"}),
    (ood.SCALE, {"percentile": np.nan}),
    (ood.SCALE, {"base": "scale"}),
    (ood.DICE, {"percentile": 100}),
    (ood.DICE, {"base": "dice"}),
    (ood.GAIA, {"variant": "zero"}),
    (ood.GAIA, {"layers": "hidden"}),
    (ood.GAIA, {"layers": []}),
    (ood.Gram, {"layers": [None]}),
    (ood.Gram, {"layers": [3]}),
    (ood.Gram, {"powers": ()}),
    (ood.Gram, {"powers": (1, 0)}),
    (ood.Gram, {"validation": 1}),
    (ood.Gram, {"seed": -1}),
    (ood.MutualInformation, {"num_samples": 0}),
    (ood.MutualInformation, {"seed": -1}),
]


@pytest.mark.parametrize("make, options", BAD_ARGUMENTS)
def test_bad_arguments(make, options):
    refused(next(iter(options)), make, **options)


def test_arguments_that_the_data_do_not_fit():
    features, head = features_of("ViM", X), MODEL.layers[1]
    refused("k", ood.KNN(41).fit_features, features)
    pair = features_of("NNGuide", X)
    refused("k", ood.NNGuide(41).fit_features, pair)
    refused("x", ood.NNGuide(40).fit_features(pair).threshold_at)
    refused("model", ood.NNGuide().fit_features, (pair[0], pair[1] - 100))
    for labels in (Y - 1, Y + 1):
        refused("y", ood.SHE().fit_features, pair, labels)
    refused("y", ood.SHE().fit_features, pair, (np.argmax(pair[1], 1) + 1) % 3)
    refused("percentile", ood.DICE(50).fit_features, features, head=(np.zeros((6, 3)), None))
    twins = np.repeat(np.arange(12.0).reshape(6, 2), [1, 2], axis=1)
    refused("head", ood.FDBD().fit_features, features, head=(twins, None))
    for dim in (6, 7):
        refused("dim", ood.ViM(dim).fit_features, features, head=head)
    flat = np.concatenate([features[:, :3], np.zeros((40, 3))], axis=1)
    refused("dim", ood.ViM(5).fit_features, flat, head=(np.eye(6)[:, :3], None))
    refused("features", ood.Mahalanobis().fit_features, np.ones((40, 6)), Y)
    refused("shrinkage", ood.Mahalanobis(shrinkage=0).fit_features, flat, Y)
    kernel, bias = head.get_weights()
    heads = [None, layers.Dense(3), kernel, (kernel,), (kernel, bias[:2]), (kernel * np.nan, bias)]
    for bad in [*heads, (kernel[:5], bias), (kernel[0], bias)]:
        refused("head", ood.ViM(2).fit_features, features, head=bad)
    bayesian = of_logits(keras.Sequential([keras.Input((5,)), layers.Dense(3)]))
    refused("model", ood.MutualInformation().fit, bayesian, X)  # no random layer
    refused("stack|probs", ood.MutualInformation().fit_features, 1 + stack_of(X))
