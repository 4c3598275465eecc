"""Options chosen on held-out corruptions: what is tried, on which rows, and what it gains."""

import warnings

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers

from tfuq import metrics, ood
from tfuq.corruptions import corrupt, names
from tfuq.ensembles import DeepEnsemble
from tfuq.ood import tuning

# A choice may be worse where it is judged, which is told, and has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The best options")
RNG = np.random.default_rng(0)
Y = np.arange(120) % 3


def pictures(seed):
    """Bars at one of three places, in noise."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.2, 0.4, (120, 9, 9, 1))
    for image, label in zip(images, Y, strict=True):
        image[:, 3 * label : 3 * label + 3] += 0.5
    return images.astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    parts = [layers.Flatten(), layers.Dense(16, "relu", name="hidden"), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input((9, 9, 1)), *parts]))
    model.compile(keras.optimizers.Adam(0.01), model.loss, jit_compile=False)
    model.fit(pictures(0), Y, epochs=8, verbose=0)
    return model


def halves(x, seed=0):
    rows = np.random.default_rng(seed).permutation(len(x))
    return [x[np.sort(part)] for part in np.array_split(rows, 2)]


def halves_of_both(x_val, x_ood):
    """The rows that choose, of either."""
    rng = np.random.default_rng(0)
    rows = [np.array_split(rng.permutation(len(x)), 2)[0] for x in (x_val, x_ood)]
    return [x[np.sort(r)] for x, r in zip((x_val, x_ood), rows, strict=True)]


def area_by_hand(detector, inside, kinds):
    scores = detector.score(inside)
    areas = []
    for kind in kinds:
        other = detector.score(corrupt(inside, kind, 5, seed=0).numpy())
        both = np.concatenate([scores, other])
        areas.append(metrics.auroc(np.repeat([0, 1], len(inside)), both))
    return np.mean(areas)


@pytest.mark.parametrize(
    "detector, grid",
    [
        (ood.KNN(k=100), {"k": (1, 5, 30)}),
        (ood.ODIN(10.0), {"epsilon": (0.0, 0.01)}),  # which moves the inputs
        (ood.ReAct(layer="hidden"), {"percentile": (50, 99)}),  # which runs the network again
        (ood.GEN(), {"gamma": (0.01, 2.0), "top": (1, None)}),
    ],
    ids=lambda part: type(part).__name__,
)
def test_areas_are_those_of_detectors_fitted_one_by_one(detector, grid, model):
    x, x_val = pictures(0), pictures(1)
    found = ood.tune(detector, model, x, x_val=x_val, grid=grid)
    choose, judge = halves(x_val)
    config = detector.get_config()
    made = {}
    for row in found.rows:
        one = type(detector)(**{**config, **row["options"]}).fit(model, x)
        made[str(row["options"])] = one
        expected = area_by_hand(one, choose, names("validation"))
        assert row["auroc"] == pytest.approx(expected, abs=1e-9) and row["refused"] is None
    assert found.auroc == max(row["auroc"] for row in found.rows)
    best, given = made[str(found.options)], made["{}"]
    assert found.detector.get_config() == best.get_config()
    assert found.judged == pytest.approx(area_by_hand(best, judge, tuning.JUDGES), abs=1e-9)
    assert found.default_judged == pytest.approx(area_by_hand(given, judge, tuning.JUDGES))
    np.testing.assert_allclose(found.detector.score(x_val), best.score(x_val), rtol=1e-6)
    assert found.detector.threshold_at(0.9, judge).value < np.inf
    other = keras.models.clone_model(model)
    with pytest.raises(ValueError, match="Argument `model` must"):
        found.detector.model = of_logits(other)  # it knows its model, as after `fit`


@pytest.mark.parametrize(
    "detector, grid",
    [
        (
            ood.MaxSoftmax(from_logits=True),
            {"from_logits": (False,)},
        ),  # probabilities these are not
        (ood.Energy(output="a", from_logits=True), {"output": ("b",)}),
        (ood.Gram(), {"powers": (1, 2, 3, 4)}),
        (ood.SIRC(ood.KNN(5)), {"detector": [ood.KNN(5, layer=n) for n in ("flat", "hidden")]}),
    ],
    ids=lambda part: type(part).__name__,
)
def test_every_option_is_read_anew_where_it_says_what_is_read(detector, grid):
    """Nothing that was read for other options is taken for these."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, 1))
    hidden = layers.Dense(16, "relu", name="hidden")(layers.Flatten(name="flat")(inputs))
    outputs = {name: layers.Dense(3, name=name)(hidden) for name in "ab"}
    model = keras.Model(inputs, outputs if "output" in grid else outputs["a"])
    model = model if "output" in grid else of_logits(model)
    x, x_val = pictures(0), pictures(1)
    found = ood.tune(detector, model, x, Y, x_val=x_val, x_ood=1 - x, grid=grid)
    inside, outside = halves_of_both(x_val, 1 - x)
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    areas = []
    for row in found.rows:
        options = {**detector.get_config(), **row["options"]}
        if row["refused"]:
            continue
        one = type(detector)(**options).fit(model, x, Y)
        areas.append(metrics.auroc(labels, one.score(np.concatenate([inside, outside]))))
        assert row["auroc"] == pytest.approx(areas[-1], abs=1e-9)
    assert len(set(areas)) > 1 or any(row["refused"] for row in found.rows)


def test_held_out_rows_that_come_twice_are_told(model):
    once = pictures(1)
    x_val = np.concatenate([once, once[:7]])
    options = {"x_val": x_val, "x_ood": 1 - once, "grid": {"from_logits": (True,)}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ood.tune(ood.MaxLogit(from_logits=True), model, pictures(0), **options)
    told = [str(each.message) for each in caught]
    assert any(text.startswith("7 rows of `x_val` are there more than once") for text in told)


def test_held_out_inputs_are_of_one_length(model):
    parts = {"a": pictures(1), "b": pictures(1)[:60]}
    with pytest.raises(ValueError, match=r"`x_val` must hold arrays of one length.*120.*60"):
        ood.tune(ood.KNN(), model, pictures(0), x_val=parts, x_ood=parts)


def test_the_default_stays_unless_another_is_better(model):
    """With one value more than once, and with what changes nothing."""
    found = ood.tune(
        ood.SCALE(80), model, pictures(0), x_val=pictures(1), grid={"percentile": [80]}
    )
    assert found.options == {} and len(found.rows) == 1
    assert found.judged == found.default_judged


def test_what_does_not_fit_the_data_is_left_out_and_said(model):
    found = ood.tune(ood.KNN(k=5), model, pictures(0)[:30], x_val=pictures(1), grid={"k": (3, 31)})
    (refused,) = [row for row in found.rows if row["refused"]]
    assert refused["options"] == {"k": 31} and "above the number of examples" in refused["refused"]
    with pytest.raises(ValueError, match=r"`grid` must hold options that fit.*above the number"):
        ood.tune(ood.KNN(40), model, pictures(0)[:30], x_val=pictures(1), grid={"k": (31,)})


def test_unknown_inputs_of_ones_own(model):
    """Half of them choose, and half judge."""
    x_ood = RNG.uniform(size=(40, 9, 9, 1)).astype("float32")
    found = ood.tune(ood.KNN(k=50), model, pictures(0), x_val=pictures(1), x_ood=x_ood)
    assert [row["options"] for row in found.rows][:3] == [{}, {"k": 1}, {"k": 5}]
    rng = np.random.default_rng(0)
    parts = [np.array_split(rng.permutation(n), 2)[1] for n in (120, 40)]
    inside, outside = (a[np.sort(r)] for a, r in zip((pictures(1), x_ood), parts, strict=True))
    scores = found.detector.score(np.concatenate([inside, outside]))
    assert found.judged == pytest.approx(metrics.auroc(np.repeat([0, 1], [60, 20]), scores))


def test_a_choice_that_does_not_hold_is_told(model, monkeypatch):
    areas = iter([[0.7, 0.9], [0.8, 0.6]])
    monkeypatch.setattr(tuning._Run, "areas", lambda self, candidate: next(areas))
    monkeypatch.setattr(ood.KNN, "_know_model", lambda self: self)
    with pytest.warns(UserWarning, match=r"\{'k': 3\}, are worse .* 0.600 instead of 0.900"):
        found = ood.tune(ood.KNN(), model, pictures(0), x_val=pictures(1), grid={"k": (3,)})
    assert found.options == {"k": 3}


def test_labels_ensembles_and_combinations(model):
    twin = of_logits(keras.models.clone_model(model))
    twin.set_weights(model.get_weights())
    both = DeepEnsemble.from_models([model, twin])
    x, x_val = pictures(0), pictures(1)
    found = ood.tune(ood.Mahalanobis(), both, x, Y, x_val=x_val, grid={"shrinkage": (0.1,)})
    assert 0.5 < found.judged <= 1
    grid = {"detector": [ood.KNN(3), ood.KNN(9)]}
    found = ood.tune(ood.SIRC(ood.KNN(5)), model, x, x_val=x_val, grid=grid)
    assert len(found.rows) == 3 and 0.5 < found.judged <= 1


def test_grids_are_of_arguments_that_there_are():
    for name, grid in tuning.GRIDS.items():
        kind = getattr(ood, name)
        for options in tuning._trials(kind(), None):
            kind(**options)
        assert set(grid) <= set(kind().get_config())
