"""Conformal sets: the theory of their coverage by simulation, MAPIE, brute force, new processes."""

import json
import pathlib

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from scipy import stats

from tfuq import selective
from tfuq.selective import ConformalPredictor
from tfuq.selective import conformal_scores as formulas

THEIRS = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "mapie.npz")
PROBS, LABELS = THEIRS["probs"], THEIRS["labels"]
HALF = len(PROBS) // 2
SIMULATIONS = 2000


def draw(rng, shape, classes=3, concentration=0.6):
    """Probabilities, and labels that follow them."""
    probs = rng.dirichlet(np.full(classes, concentration), size=shape)
    labels = (rng.random((*probs.shape[:-1], 1)) > probs.cumsum(axis=-1)).sum(axis=-1)
    return probs, labels.clip(0, classes - 1)


# --- The promise -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_coverage_is_within_its_two_sided_theory(n, alpha):
    """Scores are uniform, so that the coverage that a threshold leads to is the threshold."""
    rng, ones = np.random.default_rng(n), np.ones(n)
    coverage = np.array(
        [formulas.smallest_threshold(rng.random(n), ones, n, alpha) for _ in range(SIMULATIONS)]
    )
    theory = stats.beta(np.ceil((n + 1) * (1 - alpha)), n + 1 - np.ceil((n + 1) * (1 - alpha)))
    error = 5 * theory.std() / np.sqrt(SIMULATIONS)  # a correct one fails 1 time in 2e6
    assert 1 - alpha - error <= coverage.mean() <= 1 - alpha + 1 / (n + 1) + error
    assert abs(coverage.mean() - theory.mean()) <= error
    assert stats.kstest(coverage, theory.cdf).pvalue > 1e-6


def test_a_plain_quantile_covers_too_little_and_this_does_not():
    """Torch-uncertainty's fault: a coverage of 0.862 at n = 20 where 0.9 is asked for."""
    rng = np.random.default_rng(0)
    plain, ours = [], []
    for _ in range(150):
        p = rng.random(20)
        probs = np.stack([p, 1 - p], axis=-1)
        ours.append(ConformalPredictor.fit(probs, np.zeros(20, int)).threshold)
        plain.append(np.quantile(1 - p, 0.9))
    error = 5 * 0.065 / np.sqrt(150)  # of a Beta(19, 2), as above
    assert abs(np.mean(plain) - 0.862) < error
    assert abs(np.mean(ours) - 19 / 21) < error


def test_saturated_probabilities_are_told_of():
    """Some are wrong with probability 1: sums over ranks are 1, and only sets of all hold them."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=400)
    certain = np.eye(4)[np.where(rng.random(400) < 0.15, (y + 1) % 4, y)]
    with pytest.warns(UserWarning, match="Sets hold every class, because"):
        sets = ConformalPredictor.fit(certain, y, alpha=0.1, score="aps")
    assert np.all(sets.predict_set(certain))
    soft = 0.7 * certain + 0.3 * rng.dirichlet(np.ones(4), size=400)
    assert ConformalPredictor.fit(soft, y, alpha=0.1, score="aps").threshold < 1


def test_images_are_what_is_counted():
    """All pixels of an image are alike: 20 images are 20 draws, not 20 times 30."""
    rng, pixels = np.random.default_rng(0), 30
    weights = np.full(20 * pixels, 1 / pixels)
    ours, pooled = [], []
    for _ in range(SIMULATIONS):
        scores = np.repeat(rng.random(20), pixels)
        ours.append(formulas.smallest_threshold(scores, weights, 20, 0.12))
        pooled.append(formulas.smallest_threshold(scores, weights * pixels, 20 * pixels, 0.12))
    error = 5 * 0.075 / np.sqrt(SIMULATIONS)
    assert abs(np.mean(ours) - 19 / 21) < error
    assert abs(np.mean(pooled) - 18 / 21) < error  # less than the 0.88 that were asked for


@pytest.mark.slow
def test_the_fraction_missed_of_an_image_is_as_promised():
    """Images of 4 by 5 pixels, easy ones and hard ones; a new image for each calibration set."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(49):
        quality = rng.uniform(0.2, 3, (30, 1, 1, 1))
        logits = quality * rng.normal(size=(30, 4, 5, 3))
        probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        wrong = rng.random((30, 4, 5)) < 0.3 * rng.random((30, 1, 1))
        labels = np.where(wrong, rng.integers(3, size=(30, 4, 5)), probs.argmax(-1))
        sets = ConformalPredictor.fit(probs[:15], labels[:15], "aps", alpha=0.2)
        covered.append(sets.coverage(probs[15:], labels[15:]).coverage)
    assert np.mean(covered) > 0.8 - 5 * np.std(covered) / 7  # fails 1 time in 2e6


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_every_class_is_covered_by_itself(score):
    rng = np.random.default_rng(2)
    probs, labels = draw(rng, 4000)
    probs = probs**2 / (probs**2).sum(-1, keepdims=True)  # too sure
    half = slice(0, 2000), slice(2000, None)
    sets = ConformalPredictor.fit(
        probs[half[0]], labels[half[0]], score, 0.1, class_conditional=True
    )
    found = sets.evaluate(probs[half[1]], labels[half[1]])
    counts = np.array(sets.fitted_to["examples_of_class"])
    # Coverage of n new ones by n calibration examples has twice the variance of a rate.
    error = 5 * np.sqrt(2 * 0.1 * 0.9 / counts)
    assert np.all(np.abs(found.class_coverage - 0.9) < error + 1 / counts)
    assert sets.threshold.shape == (3,)


# --- Scores ------------------------------------------------------------------------------------


def test_scores_and_sets_agree_with_mapie():
    head, tail = slice(0, HALF), slice(HALF, None)
    lac = ConformalPredictor.fit(PROBS[head], LABELS[head], "lac", 0.1)
    np.testing.assert_allclose(lac.threshold, THEIRS["lac/threshold"][0], atol=1e-6)
    np.testing.assert_array_equal(lac.predict_set(PROBS[tail]), THEIRS["lac/sets"])

    probs = np.float32(PROBS[head])
    scores = keras.ops.convert_to_numpy(
        formulas.strangeness(probs, "aps", share=np.float32(1 - THEIRS["aps/u"]))
    )
    true = formulas.true_scores(scores, LABELS[head])
    np.testing.assert_allclose(true, THEIRS["aps/scores"], atol=1e-6)
    found = formulas.smallest_threshold(true, np.ones(HALF), HALF, 0.1)
    np.testing.assert_allclose(found, THEIRS["aps/threshold"][0], atol=1e-6)
    aps = ConformalPredictor("aps", THEIRS["aps/threshold"][0], allow_empty=True)
    np.testing.assert_array_equal(aps.predict_set(PROBS[tail]), THEIRS["aps/sets"])

    scores = formulas.strangeness(probs, "raps", 0.05, 2)
    true = formulas.true_scores(keras.ops.convert_to_numpy(scores), LABELS[head])
    np.testing.assert_allclose(true, THEIRS["raps/scores"], atol=1e-6)


def test_scores_are_their_formulas():
    p, share = [0.5, 0.25, 0.125, 0.125], 0.25
    rows = np.float32([p, p[::-1]])
    halves = np.float32([share, 1])

    def of(*given, **options):
        return keras.ops.convert_to_numpy(formulas.strangeness(rows, *given, **options)).tolist()

    assert of("lac") == [[0.5, 0.75, 0.875, 0.875], [0.875, 0.875, 0.75, 0.5]]
    assert of("aps") == [[0.5, 0.75, 0.875, 1], [0.875, 1, 0.75, 0.5]]  # ties: lower class first
    assert of("aps", share=halves)[0] == [0.125, 0.5625, 0.78125, 0.90625]
    assert of("aps", share=halves)[1] == of("aps")[1]
    assert of("raps", 2.0, 2) == [[0.5, 0.75, 2.875, 5], [2.875, 5, 0.75, 0.5]]


def test_the_threshold_is_a_score_of_the_right_rank():
    probs, labels = draw(np.random.default_rng(0), 59)
    sets = ConformalPredictor.fit(probs, labels, target_coverage=0.8)
    scores = np.sort(1 - np.float32(probs)[np.arange(59), labels])
    assert sets.threshold == pytest.approx(scores[48 - 1], abs=1e-7)  # 0.8 times 60
    assert sets.coverage(probs, labels).coverage == 48 / 59
    assert sets.fitted_to["alpha"] == 0.2
    ones = np.ones(6)
    assert formulas.smallest_threshold(np.array([3, 1, 3, 2, 3, 9.0]), ones, 6, 0.3) == 3
    assert formulas.smallest_threshold(ones, ones, 6, 0.14) == np.inf
    assert [formulas.fewest_examples(a) for a in (0.1, 0.05, 0.3, 0.5)] == [9, 19, 3, 1]


# --- Kinds of predictions ------------------------------------------------------------------------


def test_binary_stacks_logits_and_one_hot_are_the_same_predictions():
    probs, labels = draw(np.random.default_rng(0), 60, classes=2)
    given = {"score": "aps", "alpha": 0.2}
    one = ConformalPredictor.fit(probs[:, 1], labels, **given)
    spread = 0.1 * probs[:, 1:] * probs[:, :1]
    for other, read, flags in (
        (probs[:, 1:], labels, {}),
        (np.log(probs[:, 1:] / probs[:, :1]), labels, {"from_logits": True}),
        (np.stack([probs[:, 1:] - spread, probs[:, 1:] + spread]), labels[:, None], {}),
        (probs, np.eye(2)[labels], {}),
        (np.log(probs) + 3, labels, {"from_logits": True}),
        (np.stack([probs] * 3), labels, {}),
    ):
        sets = ConformalPredictor.fit(other, read, **given, **flags)
        assert sets.threshold == pytest.approx(one.threshold, abs=1e-5)
        np.testing.assert_array_equal(sets.predict_set(other), one.predict_set(probs[:, 1]))
    sets = one.predict_set(probs[:, 1])
    np.testing.assert_array_equal(one.set_size(probs[:, 1]), sets.sum(-1))
    np.testing.assert_array_equal(one.accept(probs[:, 1]), sets.sum(-1) == 1)


def test_each_label_of_many_is_a_prediction_of_its_own():
    rng = np.random.default_rng(0)
    probs = rng.random((80, 3))
    labels = (rng.random((80, 3)) < probs**2).astype(int)
    for conditional in (False, True):
        given = {"alpha": 0.2, "class_conditional": conditional}
        sets = ConformalPredictor.fit(probs, labels, multi_label=True, **given)
        each = [ConformalPredictor.fit(probs[:, k], labels[:, k], **given) for k in range(3)]
        np.testing.assert_array_equal(sets.threshold, [one.threshold for one in each])
        found = sets.predict_set(probs)
        assert found.shape == (80, 3, 2)
        for k, one in enumerate(each):
            np.testing.assert_array_equal(found[:, k], one.predict_set(probs[:, k]))
        told = sets.evaluate(probs, labels)
        assert told.class_coverage.shape == (3, 2)
        assert told.class_coverage[1, 1] == found[labels[:, 1] == 1, 1, 1].mean()
        assert told.coverage_lower < told.coverage < told.coverage_upper
        np.testing.assert_array_equal(sets.accept(np.stack([probs] * 2)), found.sum(-1) == 1)


def test_pixels_count_for_their_image():
    """Against the definition of conformal risk control, threshold by threshold."""
    rng = np.random.default_rng(0)
    probs, labels = draw(rng, (12, 2, 3))
    labels[0] = 1
    labels[1:4] %= 2  # class 2 is in fewer images
    scores = 1 - np.take_along_axis(np.float32(probs), labels[..., None], -1)[..., 0]

    def expected(chosen):
        held = [i for i in range(12) if chosen[i].any()]
        for t in np.unique(scores[chosen]):
            missed = [np.mean(scores[i][chosen[i]] > t) for i in held]
            if (sum(missed) + 1) / (len(held) + 1) <= 0.3:
                return t

    sets = ConformalPredictor.fit(probs, labels, alpha=0.3)
    assert sets.threshold == expected(np.ones(labels.shape, bool))
    by_class = ConformalPredictor.fit(probs, labels, alpha=0.3, class_conditional=True)
    np.testing.assert_array_equal(by_class.threshold, [expected(labels == k) for k in range(3)])
    assert by_class.fitted_to["examples_of_class"] == [
        sum((labels[i] == k).any() for i in range(12)) for k in range(3)
    ]
    assert sets.predict_set(probs).shape == (12, 2, 3, 3)
    told = sets.coverage(probs, labels)
    assert told.lower < told.coverage < told.upper
    masks = ConformalPredictor.fit(probs[..., :1], labels == 0, alpha=0.3)
    assert masks.predict_set(np.stack([probs[..., :1]] * 2)).shape == (12, 2, 3, 2)


def test_what_sets_are_worth():
    probs = [[0.9, 0.1, 0], [0.4, 0.35, 0.25], [0.2, 0.7, 0.1], [0.45, 0.45, 0.1]]
    found = ConformalPredictor("lac", 0.5).evaluate(probs, [0, 1, 0, 0])
    assert found[:2] == (4, 0.25)
    assert found[4:8] == (0.5, 0.5, 0.5, 0.5)
    np.testing.assert_array_equal(found.class_coverage, [1 / 3, 0, np.nan])
    assert found[2:4] == pytest.approx(stats.binomtest(1, 4).proportion_ci(method="exact"))


def test_empty_sets_are_rejected_or_filled():
    unsure = [[0.4, 0.35, 0.25]]
    lac = ConformalPredictor("lac", 0.5)
    assert lac.set_size(unsure) == [0]
    assert not lac.accept(unsure)
    filled = ConformalPredictor("lac", 0.5, allow_empty=False)
    assert filled.predict_set(unsure).tolist() == [[True, False, False]]
    sure = [[0.99, 0.01, 0]]
    assert ConformalPredictor("aps", 0.95).accept(sure) == [True]
    assert ConformalPredictor("aps", 0.95, allow_empty=True).set_size(sure) == [0]


def test_what_is_not_finite_may_be_anything():
    bad = np.full((3, 3), np.nan)
    bad[1:, 0] = [np.inf, 0.5]
    for score in ("lac", "aps", "raps"):
        sets = ConformalPredictor(score, 0.0)
        assert sets.predict_set(bad).all()
        assert not sets.accept(bad).any()
        found = sets.transform(keras.ops.convert_to_tensor(bad))["prediction_set"]
        assert np.all(found)
    assert (
        not ConformalPredictor("lac", [0.1, np.inf], class_conditional=True)
        .accept(bad[:, :2])
        .any()
    )


# --- Options -----------------------------------------------------------------------------------


def test_randomized_sets_cover_and_do_not_depend_on_their_neighbours():
    rng = np.random.default_rng(3)
    probs, labels = draw(rng, 4000, classes=4)
    options = {"randomized": True, "allow_empty": True, "seed": 5}
    sets = ConformalPredictor.fit(probs[:2000], labels[:2000], "aps", 0.2, **options)
    whole = ConformalPredictor.fit(probs[:2000], labels[:2000], "aps", 0.2)
    found = sets.evaluate(probs[2000:], labels[2000:])
    assert abs(found.coverage - 0.8) < 5 * np.sqrt(2 * 0.16 / 2000)  # as above
    assert found.mean_size < whole.evaluate(probs[2000:], labels[2000:]).mean_size
    np.testing.assert_array_equal(sets.predict_set(probs[7:9]), sets.predict_set(probs)[7:9])
    uniform = formulas.uniform_of(np.float32(probs), 5)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-6
    assert abs(np.corrcoef(uniform, formulas.uniform_of(np.float32(probs), 6))[0, 1]) < 0.08
    # The model is right, so that the fraction is independent of the label: scores are uniform.
    assert abs(sets.threshold - 0.8) < 5 * np.sqrt(0.16 / 2000)
    with pytest.raises(ValueError, match="randomized=False"):
        sets.transform(probs)


def test_tuned_sets_are_no_larger():
    probs, labels = draw(np.random.default_rng(4), 1200, classes=10, concentration=1)
    fit, rest = (probs[:600], labels[:600]), (probs[600:], labels[600:])
    tuned = ConformalPredictor.fit(*fit, "raps", penalty="tuned", k_reg="tuned", seed=1)
    assert tuned.fitted_to["tuned_on"] == 120
    assert tuned.fitted_to["examples"] == 480
    assert tuned.penalty in formulas.PENALTIES
    found = tuned.evaluate(*rest)
    assert found.mean_size < ConformalPredictor.fit(*fit, "aps").evaluate(*rest).mean_size
    assert abs(found.coverage - 0.9) < 5 * np.sqrt(0.09 / 600 + 0.09 / 480)

    rows = np.random.default_rng(1).permutation(600)[:120]
    order = np.argsort(-probs[rows], axis=1)
    ranks = np.argmax(order == labels[rows][:, None], axis=1) + 1
    assert tuned.k_reg == np.sort(ranks)[int(np.ceil(121 * 0.9)) - 1]
    sizes = []
    for penalty in formulas.PENALTIES:
        one = ConformalPredictor.fit(
            probs[rows], labels[rows], "raps", penalty=penalty, k_reg=tuned.k_reg, allow_empty=True
        )
        sizes.append(one.evaluate(probs[rows], labels[rows]).mean_size)
    assert tuned.penalty == formulas.PENALTIES[int(np.argmin(np.round(sizes, 9)))]


def test_classes_that_calibration_hardly_saw_are_in_every_set():
    probs, labels = draw(np.random.default_rng(0), 200, classes=5)
    labels[labels == 4] = 0
    labels[np.flatnonzero(labels == 3)[2:]] = 1
    with pytest.warns(UserWarning, match=r"fewer than 9 .* \[3, 4\] with \[2, 0\]"):
        sets = ConformalPredictor.fit(probs, labels, class_conditional=True)
    assert sets.predict_set(probs)[:, 3:].all()
    assert not sets.accept(probs).any()
    assert sets.fitted_to["classes"] == [0, 1, 2, 3]
    assert ConformalPredictor.from_json(sets.to_json()) == sets
    with pytest.raises(ValueError, match=r"at least 9 examples to .* 8 examples"):
        ConformalPredictor.fit(probs[:8], labels[:8])
    with pytest.raises(ValueError, match="at least 199 examples of a class"):
        ConformalPredictor.fit(probs, labels, alpha=0.005, class_conditional=True)


# --- In a model ----------------------------------------------------------------------------------


def models():
    """A stack of two heads with APS; multi-label with thresholds of its own; pixels, binary."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    heads = [keras.layers.Dense(3, "softmax")(x) for _ in range(2)]
    stack = keras.Model(x, keras.ops.stack(heads))
    many = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    pixels = keras.Sequential(
        [keras.Input((4,)), keras.layers.Reshape((2, 2, 1)), keras.layers.Conv2D(1, 1)]
    )
    logits = {"from_logits": True}
    return {
        "stack": (stack, ConformalPredictor("aps", 0.8)),
        "many": (
            many,
            ConformalPredictor(
                "lac",
                [[0.6, np.inf], [0.3, 0.7]],
                multi_label=True,
                class_conditional=True,
                **logits,
            ),
        ),
        "pixels": (pixels, ConformalPredictor("raps", 0.7, rank=4, **logits)),
    }


SCRIPT = """
import json, pathlib, sys
import numpy as np
import tensorflow as tf
x = np.load("x.npy")
expected = np.load("expected.npz")
for name in ("stack", "many"):
    model = tf.saved_model.load(name)
    served = model.serve(x)
    assert "tfuq" not in sys.modules
    for key, value in served.items():
        np.testing.assert_allclose(value, expected[f"{name}/{key}"], atol=1e-6)
import keras
import tfuq
for name in ("stack", "many", "pixels"):
    model = keras.models.load_model(f"{name}.keras", safe_mode=True)
    for key, value in model(x).items():
        np.testing.assert_allclose(value, expected[f"{name}/{key}"], atol=1e-6)
    sets = tfuq.selective.ConformalPredictor.load(f"{name}.json")
    found = sets.predict_set(expected[f"{name}/predictions"])
    np.testing.assert_array_equal(found, expected[f"{name}/prediction_set"])
print("done")
"""


@pytest.mark.slow
def test_models_with_sets_live_on_in_a_new_process(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected = {}
    for name, (model, sets) in models().items():
        whole = sets.append_to(model)
        found = whole(x)
        predictions = expected[f"{name}/predictions"] = np.asarray(model(x))
        np.testing.assert_array_equal(found["prediction_set"], sets.predict_set(predictions))
        assert len(found["probabilities"].shape) == sets.rank
        expected |= {f"{name}/{key}": np.asarray(value) for key, value in found.items()}
        whole.save(tmp_path / f"{name}.keras")
        if name != "pixels":
            whole.export(tmp_path / name, verbose=False)
        sets.save(tmp_path / f"{name}.json")
        assert ConformalPredictor.load(tmp_path / f"{name}.json") == sets
    assert expected["stack/prediction_set"].sum() not in (0, 15)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "expected.npz", **expected)
    root = str(pathlib.Path(selective.__file__).parents[2])
    source = f"import sys; sys.path.insert(0, {root!r})\n{SCRIPT}"
    done = processes.run(source, cwd=tmp_path, world="keras")
    assert done.stdout.endswith("done\n"), done.stderr


@pytest.mark.slow
def test_sets_are_the_same_compiled():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    for model, sets in models().values():
        compiled = tf.function(sets.transform, jit_compile=True)(model(x))["prediction_set"]
        np.testing.assert_array_equal(compiled, sets.predict_set(model(x)))


def test_a_model_gives_its_own_predictions():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    probs, labels = draw(np.random.default_rng(0), 40)
    logits = np.log(probs).astype("float32")
    sets = ConformalPredictor.fit_model(model, (logits, labels), alpha=0.2)
    assert sets == ConformalPredictor.fit(logits, labels, alpha=0.2, from_logits=True)


# --- Bad input -----------------------------------------------------------------------------------

NAN = PROBS.copy()
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    "argument, options",
    [
        ("alpha", {"alpha": 0}),
        ("alpha", {"alpha": 1.0}),
        ("alpha", {"alpha": "much"}),
        ("target_coverage", {"target_coverage": 1.2}),
        ("target_coverage", {"target_coverage": 1}),
        ("target_coverage", {"alpha": 0.1, "target_coverage": 0.9}),
        ("score", {"score": "softmax"}),
        ("penalty", {"penalty": 0.1}),
        ("penalty", {"penalty": "tuned"}),
        ("k_reg", {"score": "aps", "k_reg": 3}),
        ("k_reg", {"score": "raps", "k_reg": 1.5}),
        ("penalty", {"score": "raps", "penalty": -1}),
        ("penalty", {"score": "raps", "penalty": "large"}),
        ("penalty", {"score": "raps", "penalty": ""}),
        ("tuning_share", {"score": "raps", "penalty": "tuned", "tuning_share": 0}),
        ("tuning_share", {"score": "raps", "penalty": "tuned", "tuning_share": 1.5}),
        ("randomized", {"randomized": True}),
        ("class_conditional", {"class_conditional": "yes"}),
        ("allow_empty", {"allow_empty": 1}),
        ("seed", {"seed": -1}),
        ("labels", {"labels": LABELS[:-1]}),
        ("labels", {"labels": LABELS + 3}),
        ("labels", {"labels": LABELS + 0.5}),
        ("labels", {"labels": "abc"}),
        ("probs", {"probs": NAN}),
        ("probs", {"probs": PROBS * 2}),
        ("probs", {"probs": np.zeros((0, 3)), "labels": np.zeros(0)}),
        ("probs", {"probs": PROBS[:1], "labels": LABELS[:1]}),
    ],
)
def test_bad_input_is_refused(argument, options):
    given = {"probs": PROBS, "labels": LABELS} | options
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        ConformalPredictor.fit(**given)


def test_predictions_of_another_kind_are_refused():
    sets = ConformalPredictor("lac", [0.1, 0.2], class_conditional=True)
    for wrong in (PROBS, PROBS[0], PROBS[None, None]):
        with pytest.raises(ValueError, match=r"(?s)Argument `probs` must .*Received: "):
            sets.predict_set(wrong)
    for threshold in (np.nan, [0.1], "low", None):
        with pytest.raises(ValueError, match=r"(?s)Argument `threshold` must .*Received: "):
            ConformalPredictor("lac", threshold)
    text = json.loads(sets.to_json())
    text["config"]["threshold"] = [[1]]
    with pytest.raises(ValueError, match="Argument `text` must"):
        ConformalPredictor.from_json(json.dumps(text))
