"""The combination of scores: its formula, where it goes, and what it refuses."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy.special import softmax
from scipy.stats import percentileofscore

from tfuq.cli import main
from tfuq.ensembles import DeepEnsemble
from tfuq.export import export, export_litert, export_onnx
from tfuq.ood import (
    KNN,
    ODIN,
    SIRC,
    Energy,
    GradientDensity,
    Mahalanobis,
    MaxSoftmax,
    ReAct,
    ViM,
    load_detector,
)
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import CombinedScore, ErrorPredictor, RejectionRule, best_score

RNG = np.random.default_rng(0)
MODEL = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
MODEL.set_weights([RNG.normal(size=(6, 3)), np.zeros(3)])


@keras.saving.register_keras_serializable("tests")
def second(probs):
    """How close the second class is."""
    return ops.top_k(probs, 2)[0][:, 1]


def rows(count, seed):
    """Errors are near the border between classes, and where inputs are strange."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    strange = rng.random(count) < 0.15
    x[strange] *= 6
    p = MODEL.predict(x, verbose=0)
    y = (rng.random((count, 1)) > p.cumsum(-1)).sum(-1).clip(0, 2)
    return x, np.where(strange, rng.integers(3, size=count), y)


X = RNG.normal(size=(300, 6)).astype("float32")
NEW, NEW_Y = rows(700, 1)
PROBS = MODEL.predict(NEW, verbose=0)


def combined(**options):
    return CombinedScore([KNN(k=5), "confidence"], [1, 2], **options).fit(MODEL, X)


def test_it_is_the_weighted_mean_in_standard_deviations():
    found = combined()
    alone = KNN(k=5).fit(MODEL, X)
    own, sure = alone._own_scores(), MODEL.predict(X, verbose=0).max(-1)
    strange = (alone.score(NEW) - own.mean()) / own.std()
    doubt = -(PROBS.max(-1) - sure.mean()) / sure.std()
    np.testing.assert_allclose(found.score(NEW), (strange + 2 * doubt) / 3, atol=1e-4)


def test_ranks_are_shares_of_known_rows():
    known, new = RNG.normal(size=(400, 2)), RNG.normal(size=(50, 2))
    known[:40, 0] = 0.5  # ties
    new[0] = (0.5, 99)
    scores = {"a": "given", "b": "given"}
    found = CombinedScore(scores, {"b": 3, "a": 1}, "rank")
    found.fit_features({"a": known[:, 0], "b": known[:, 1]})
    ranks = [percentileofscore(known[:, k], new[:, k], kind="mean") / 100 for k in range(2)]
    expected = (ranks[0] + 3 * ranks[1]) / 4
    given = found.score_features({"a": new[:, 0], "b": new[:, 1]})
    np.testing.assert_allclose(given, expected, atol=2 / 400)
    assert given[0] == pytest.approx((ranks[0][0] + 3) / 4, abs=2e-3)


@pytest.mark.parametrize(
    "scale",
    [pytest.param("std", marks=pytest.mark.dear), pytest.param("rank", marks=pytest.mark.slow)],
)
def test_files_models_and_graphs(scale, tmp_path):
    scores = {"far": Mahalanobis(), "near": KNN(k=5), "cut": ReAct(), "moved": ODIN(epsilon=0.01)}
    scores |= {"sirc": SIRC(ViM(dim=2)), "doubt": "pnorm(3)", "second": second}
    found = CombinedScore(scores, scale=scale).fit(MODEL, X, X.argmax(-1) % 3)
    rule = RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=found, target_coverage=0.6)
    found.save(tmp_path / "score.npz")
    again = load_detector(tmp_path / "score.npz", MODEL)
    np.testing.assert_array_equal(again.score(NEW), found.score(NEW))
    assert again.get_config() == found.get_config()
    other = np.concatenate([rows(200, 3)[0], np.full((1, 6), np.nan, "float32")])
    whole = rule.append_to(MODEL, detector=again)
    whole.save(tmp_path / "m.keras")
    said = keras.models.load_model(tmp_path / "m.keras").predict(other, verbose=0)
    np.testing.assert_allclose(said["score"][:-1], again.score(other)[:-1], rtol=1e-4, atol=1e-4)
    accept = rule.accept(MODEL.predict(other, verbose=0), score=again.score(other))
    assert np.mean(said["accept"] == accept) > 0.99 and 0.3 < accept.mean() < 0.9
    assert not said["accept"][-1]


def test_it_rejects_for_both_reasons():
    x, y = rows(1500, 1)
    scores = {"both": combined(), "far": KNN(k=5).fit(MODEL, X)}
    scores = {name: each.score(x, batch_size=500) for name, each in scores.items()}
    scores["doubt"] = "confidence"
    assert best_score(MODEL.predict(x, verbose=0), y, scores, resamples=100).best == "both"


def test_arrays_functions_and_logits():
    logits = RNG.normal(size=(200, 4), scale=3)
    parts = ["margin", second, "given"]
    arrays = {"given": RNG.normal(size=200)}
    found = CombinedScore(parts).fit_features({**arrays, "probs": softmax(logits, -1)})
    same = CombinedScore(parts, from_logits=True).fit_features({**arrays, "probs": logits})
    scores = found.score_features({**arrays, "probs": softmax(logits, -1)})
    np.testing.assert_allclose(same.score_features({**arrays, "probs": logits}), scores, atol=1e-5)
    arrays["given"][3] = np.inf
    assert found.score_features({**arrays, "probs": softmax(logits, -1)})[3] == np.inf
    assert CombinedScore(parts).get_config() == CombinedScore(**found.get_config()).get_config()


def test_rows_twice_are_refused(tmp_path):
    half = len(NEW) // 2
    score = CombinedScore([KNN(k=5).fit(MODEL, X), "confidence"]).fit(MODEL, NEW[:half])
    score.save(tmp_path / "score.npz")
    for each in (score, load_detector(tmp_path / "score.npz", MODEL)):
        with pytest.raises(ValueError, match=r"`score` must come from other rows.*CombinedScore"):
            data = NEW[:half], NEW_Y[:half]
            RejectionRule.fit_model(MODEL, data, score=each, target_coverage=0.5)
    with pytest.raises(
        ValueError, match=r"`score` must come from other.*seen about 3\d\d of these"
    ):
        RejectionRule.fit(PROBS, NEW_Y, score=score.score(NEW), target_risk=0.3)
    rest = NEW[half:], NEW_Y[half:]
    RejectionRule.fit_model(MODEL, rest, score=score, target_coverage=0.5)


def test_what_a_part_has_seen_is_known():
    half = len(NEW) // 2
    head = ErrorPredictor().fit(MODEL, (NEW[:half], NEW_Y[:half]))
    score = CombinedScore([head, "confidence"]).fit(MODEL, X)
    with pytest.raises(ValueError, match=r"`score` must come from other rows.*ErrorPredictor"):
        RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=score, target_coverage=0.5)


def test_what_each_of_two_parts_has_seen_is_known():
    third = len(NEW) // 3
    parts = [slice(0, third), slice(third, 2 * third)]
    heads = {
        f"head {i}": ErrorPredictor().fit(MODEL, (NEW[p], NEW_Y[p])) for i, p in enumerate(parts)
    }
    score = CombinedScore(heads).fit(MODEL, X)
    for part in parts:
        with pytest.raises(ValueError, match=r"`score` must come from other rows.*ErrorPredictor"):
            RejectionRule.fit_model(
                MODEL, (NEW[part], NEW_Y[part]), score=score, target_coverage=0.5
            )


def test_a_part_is_what_it_was():
    detector = KNN(k=5).fit(MODEL, X)
    score = CombinedScore([detector, "confidence"]).fit(MODEL, X)
    before = score.score(NEW)
    detector.fit(MODEL, NEW)
    np.testing.assert_array_equal(score.score(NEW), before)
    score.fit(MODEL, NEW)  # moves what is usual, not the neighbours
    np.testing.assert_array_equal(score._detectors["KNN"]._state["bank"].shape, (300, 6))


def test_an_ensemble_and_another_model():
    other = keras.models.clone_model(MODEL)
    other.set_weights([RNG.normal(size=(6, 3)), np.zeros(3)])
    several = DeepEnsemble.from_models([MODEL, other])
    score = CombinedScore([KNN(k=5), SIRC(Energy())]).fit(several, X)
    assert np.isfinite(score.score(NEW)).all()
    kept = CombinedScore([KNN(k=5).fit(MODEL, X), "confidence"])
    with pytest.raises(ValueError, match="`model`"):
        kept.fit(other, X)


def registered_badly(probs):
    return probs[:, 0]


@keras.saving.register_keras_serializable("tests")
def all_of(probs):
    return probs


GIVEN = {"a": "given", "b": "given"}
ARRAYS = {"a": np.arange(9.0), "b": np.arange(9.0) ** 2}


@pytest.mark.parametrize(
    "argument, call",
    [
        ("scores", lambda: CombinedScore(["confidence"])),
        ("scores", lambda: CombinedScore("confidence")),
        ("scores", lambda: CombinedScore(["confidence", "confidence"])),
        ("scores", lambda: CombinedScore(["confidence", "variation_ratio"])),
        ("scores", lambda: CombinedScore(["confidence", "trust"])),
        ("scores", lambda: CombinedScore(["confidence", GradientDensity()])),
        ("scores", lambda: CombinedScore(["confidence", MaxSoftmax(multi_label=True)])),
        ("scores", lambda: CombinedScore({"a": "margin", "b": np.arange(3)})),
        ("scores", lambda: CombinedScore({"a": "margin", "b": {"class": "tfuq>Nothing"}})),
        ("scores", lambda: CombinedScore({"a": "margin", "probs": "confidence"})),
        ("scores", lambda: CombinedScore({"a": "margin", 3: "confidence"})),
        ("scores", lambda: CombinedScore(["margin", registered_badly])),
        ("scores", lambda: CombinedScore(["margin", all_of]).fit(MODEL, X)),
        ("scores", lambda: CombinedScore(["margin", "given"]).fit(MODEL, X)),
        ("scores", lambda: CombinedScore(["margin", KNN()]).fit_features({})),
        ("scores", lambda: CombinedScore(GIVEN).fit_features({**ARRAYS, "b": np.ones(9)})),
        ("weights", lambda: CombinedScore(["margin", "confidence"], [1])),
        ("weights", lambda: CombinedScore(["margin", "confidence"], [1, -1])),
        ("weights", lambda: CombinedScore(["margin", "confidence"], [0, 0])),
        ("weights", lambda: CombinedScore(["margin", "confidence"], [1, np.nan])),
        ("weights", lambda: CombinedScore(["margin", "confidence"], {"margin": 1})),
        ("scale", lambda: CombinedScore(["margin", "confidence"], scale="none")),
        ("output", lambda: CombinedScore([KNN(output="a"), Energy(output="b")])),
        ("output", lambda: CombinedScore([KNN(output="a"), Energy()])),
        (
            "from_logits",
            lambda: CombinedScore(["margin", KNN(from_logits=True)], from_logits=False),
        ),
        ("features", lambda: CombinedScore(GIVEN).fit_features(np.eye(3))),
        ("features", lambda: CombinedScore(GIVEN).fit_features({"a": np.ones(3)})),
        ("features", lambda: CombinedScore(GIVEN).fit_features({**ARRAYS, "b": np.ones(4)})),
        (
            "features",
            lambda: CombinedScore(GIVEN).fit_features({**ARRAYS, "b": np.full(9, np.nan)}),
        ),
        ("detector", lambda: CombinedScore(GIVEN).score_features(ARRAYS)),
        ("detector", lambda: CombinedScore([KNN(), "margin"]).save("nowhere.npz")),
        ("score", lambda: RejectionRule.fit(PROBS, NEW_Y, combined(), target_coverage=0.5)),
    ],
)
def test_what_is_refused(argument, call):
    with pytest.raises(ValueError, match=rf"`{argument}`.* must .*Received: "):
        call()


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "score.npz"
    combined().save(path)
    with np.load(path, allow_pickle=False) as found:
        arrays = dict(found)
    for name in ("state/of_0_widths", "state/of_0_bank", "state/center"):
        rest = {key: array for key, array in arrays.items() if key != name}
        np.savez(path, **rest)
        with pytest.raises(ValueError, match="`path` must be a whole file"):
            load_detector(path)


@pytest.mark.dear
@pytest.mark.filterwarnings("ignore")  # that LiteRT's interpreter will move elsewhere
def test_in_exports_tables_and_commands(tmp_path, capsys):
    score = combined(scale="rank")
    rule = RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=score, target_coverage=0.6)
    other, labels = rows(300, 3)
    accept = rule.accept(MODEL.predict(other, verbose=0), score=score.score(other))
    export(MODEL, tmp_path / "served", rule=rule, ood=score)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    assert np.mean(loaded.serve(other)["accept"].numpy() == accept) > 0.99
    export_litert(MODEL, tmp_path / "m.tflite", rule=rule, ood=score)
    interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"), num_threads=1)
    run = interpreter.get_signature_runner("serving_default")
    found = run(**{name: other for name in run.get_input_details()})
    assert np.mean(found["accept"] == accept) > 0.99
    score_dataset(MODEL, other, tmp_path / "scores", rule=rule, ood=score)
    np.testing.assert_array_equal(read_scores(tmp_path / "scores")["accept"], accept)
    paths = [str(tmp_path / name) for name in ("m.keras", "test.npz", "rule.json", "score.npz")]
    MODEL.save(paths[0])
    np.savez(paths[1], x=other, y=labels)
    rule.save(paths[2])
    score.save(paths[3])
    args = [*paths[:2], "--rule", paths[2], "--ood", paths[3], "--json"]
    capsys.readouterr()
    assert main(["evaluate", *args]) == 0
    assert json.loads(capsys.readouterr().out)["rule"]["accepted"] == int(accept.sum())


@pytest.mark.slow
def test_in_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    score = combined(scale="rank")
    rule = RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=score, target_coverage=0.6)
    export_onnx(MODEL, tmp_path / "m.onnx", rule=rule, ood=score)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: NEW})[names.index("accept")]
    assert np.mean(found == rule.accept(PROBS, score=score.score(NEW))) > 0.99
