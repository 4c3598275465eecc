"""The head that predicts errors: what it learns, refuses, and where it goes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tfuq.ood import load_detector
from tfuq.selective import ErrorPredictor, RejectionRule, best_score, choose_p, pnorm_score
from tfuq.selective.error_predictor import PENALTIES, _principal, doubts

MODEL = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "softmax")])
MODEL.set_weights([3 * np.eye(5)[:, :4], np.zeros(4)])  # looks at all inputs but the last


def rows(count, seed):
    """Of a last input above 1 half of the answers are wrong, which no probability tells."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype("float32")
    y = x[:, :4].argmax(-1)
    wrong = rng.random(count) < np.where(x[:, 4] > 1, 0.5, 0.02)
    return x, np.where(wrong, (y + 1) % 4, y)


X, Y = rows(1500, 0)
NEW, NEW_Y = rows(1500, 1)
PREDICTOR = ErrorPredictor().fit(MODEL, (X, Y))
PROBS = MODEL.predict(NEW, verbose=0)


def test_it_learns_what_the_probability_does_not_say():
    x, y = rows(1500, 5)
    scores = {"head": PREDICTOR.score(x), "confidence": "confidence"}
    found = best_score(MODEL.predict(x, verbose=0), y, scores)
    assert found.best == "head" and found.rows[1].differs
    chance = expit(PREDICTOR.score(NEW))
    assert 0.3 < chance[NEW[:, 4] > 1].mean() < 0.6 and chance[NEW[:, 4] < 0].mean() < 0.1


def test_more_features_than_rows_have_the_same_axes():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(30, 80)) * np.linspace(3, 0.1, 80)
    rows -= rows.mean(axis=0)
    axes = _principal(rows, 5)
    theirs = np.linalg.svd(rows, full_matrices=False)[2][:5].T
    spread = np.maximum((rows @ theirs).std(axis=0), 1)
    np.testing.assert_allclose(np.abs(axes), np.abs(theirs / spread), atol=1e-8)
    np.testing.assert_allclose(
        np.abs(rows[:, :8] @ _principal(rows[:, :8], 3)).sum(axis=0),
        np.abs(rows[:, :8] @ np.linalg.svd(rows[:, :8])[2][:3].T).sum(axis=0)
        / np.maximum((rows[:, :8] @ np.linalg.svd(rows[:, :8])[2][:3].T).std(axis=0), 1),
    )


def test_it_is_a_logistic_regression():
    logits = np.random.default_rng(0).normal(size=(400, 3), scale=2)
    features = np.random.default_rng(1).normal(size=(400, 2))
    y = np.where(features[:, 0] + features[:, 1] ** 2 > 1, 0, logits.argmax(-1))
    predictor = ErrorPredictor(components=5).fit_features((features, logits), y)
    columns, _ = predictor._columns(features, logits)
    wrong = logits.argmax(-1) != y
    gaps = []
    for penalty in PENALTIES:
        theirs = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(columns, wrong)
        gap = theirs.decision_function(columns) - predictor.score_features((features, logits))
        gaps.append(np.abs(gap).max())
    assert min(gaps) < 1e-3
    top = np.sort(logits, -1)[:, ::-1]
    odds = np.log(np.exp(top[:, 1:] - top[:, :1]).sum(-1))
    np.testing.assert_allclose(np.asarray(doubts(logits))[:, 0], odds, atol=1e-9)
    assert np.asarray(doubts(np.ones((1, 4))))[0] == pytest.approx([np.log(3), np.log(4)])


def test_files_models_and_rules(tmp_path):
    rule = RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=PREDICTOR, target_risk=0.05)
    assert rule.fitted_to["coverage"] > 0.6
    PREDICTOR.save(tmp_path / "head.npz")
    again = load_detector(tmp_path / "head.npz", MODEL)
    np.testing.assert_array_equal(again.score(NEW), PREDICTOR.score(NEW))
    other, _ = rows(400, 2)
    accept = rule.accept(MODEL.predict(other, verbose=0), score=again.score(other))
    whole = rule.append_to(MODEL, detector=again)
    whole.save(tmp_path / "m.keras")
    found = keras.models.load_model(tmp_path / "m.keras").predict(other, verbose=0)
    assert np.mean(found["accept"] == accept) > 0.995
    np.testing.assert_allclose(found["score"], again.score(other), rtol=1e-4, atol=1e-4)


def test_rows_twice_are_refused(tmp_path):
    PREDICTOR.save(tmp_path / "head.npz")
    for head in (PREDICTOR, load_detector(tmp_path / "head.npz", MODEL)):
        with pytest.raises(ValueError, match=r"`score` must come from other rows.*ErrorPredictor"):
            RejectionRule.fit_model(MODEL, (X, Y), score=head, target_coverage=0.5)
    probs = MODEL.predict(X, verbose=0)
    with pytest.raises(ValueError, match="`score` must come from other rows"):
        RejectionRule.fit(probs, Y, score=PREDICTOR.score(X), target_risk=0.1)
    mixed = np.concatenate([X[:300], NEW]), np.concatenate([Y[:300], NEW_Y])
    with pytest.raises(ValueError, match=r"seen about (2\d\d|3\d\d) of these 1800 rows"):
        RejectionRule.fit_model(MODEL, mixed, score=PREDICTOR, target_coverage=0.5)
    RejectionRule.fit(probs, Y, target_coverage=0.5)  # another score is not concerned


def test_p_is_chosen_on_other_rows():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(1200, 6), scale=rng.uniform(0.5, 6, size=(1200, 1)))
    y = np.where(rng.random(1200) < 0.15, rng.integers(6, size=1200), logits.argmax(-1))
    p = choose_p(logits[:600], y[:600])
    assert p in range(1, 11)
    options = {"from_logits": True, "score": f"pnorm({p})", "target_coverage": 0.5}
    rule = RejectionRule.fit(logits[600:], y[600:], **options)
    np.testing.assert_allclose(rule.score_of(logits), pnorm_score(logits, p), atol=1e-5)
    assert RejectionRule.from_json(rule.to_json()) == rule
    with pytest.raises(ValueError, match=r"`score` must come from other rows.*choose_p"):
        RejectionRule.fit(logits[:600], y[:600], **options)
    assert RejectionRule("pnorm(2.0)").score == "pnorm"
    assert RejectionRule("pnorm(0.5)").score == "pnorm(0.5)"
    assert choose_p(logits, y, powers=[3.5]) == 3.5


def test_the_best_score_is_chosen_on_other_rows():
    rng = np.random.default_rng(4)
    probs = rng.dirichlet(np.ones(3), size=1000)
    y = (probs.cumsum(-1) < rng.random((1000, 1))).sum(-1)
    strange = np.where(probs.argmax(-1) == y, 0, 3) + rng.normal(size=1000)
    first, rest = slice(0, 500), slice(500, None)
    goal = {"target_coverage": 0.5}
    found = best_score(probs[first], y[first], {"ours": strange[first], "margin": "margin"})
    assert found.best == "ours"
    RejectionRule.fit(probs[rest], y[rest], score=strange[rest], **goal)
    RejectionRule.fit(probs[first], y[first], score="margin", **goal)  # not what was chosen
    with pytest.raises(ValueError, match=r"of best_score \('ours' .* about [45]\d\d of"):
        RejectionRule.fit(probs[first], y[first], score=strange[first], **goal)
    names = ["margin", "predictive_entropy"]
    best = best_score(probs[first], y[first], names).best
    RejectionRule.fit(probs[rest], y[rest], score=best, **goal)
    with pytest.raises(ValueError, match=r"`score` must come from other rows.*best_score"):
        RejectionRule.fit(probs[first], y[first], score=best, **goal)
    flat = {"confidence": "confidence", "chance": rng.random(500)}
    assert best_score(probs[first], y[first], flat).best == "confidence"
    with pytest.warns(
        UserWarning, match=r"with best_score \('confidence' was best\), which has seen"
    ):
        RejectionRule.fit(probs[first], y[first], **goal)


def test_a_score_of_its_own_comes_with_arrays():
    own = PREDICTOR.score(NEW)
    rule = RejectionRule.fit_model(MODEL, (NEW, NEW_Y), score=own, target_coverage=0.5)
    assert rule.accept(PROBS, score=own).mean() == 0.5 and "detector" not in rule.fitted_to
    data = tf.data.Dataset.from_tensor_slices((NEW, NEW_Y)).batch(50)
    with pytest.raises(ValueError, match=r"`score` must be .* in another order"):
        RejectionRule.fit_model(MODEL, data, score=own, target_coverage=0.5)


def test_a_rule_of_a_norm_on_images_has_thresholds():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(4, 0.3), size=(300, 4, 4))
    y = (rng.random((300, 4, 4, 1)) > probs.cumsum(axis=-1)).sum(axis=-1).clip(0, 3)
    rule = RejectionRule.fit(probs, y, score="pnorm", target_risk=0.39)
    assert -1 < rule.threshold < -0.1 and 0.5 < rule.fitted_to["coverage"] < 0.99


@pytest.mark.parametrize(
    "argument, call",
    [
        ("y", lambda: ErrorPredictor().fit(MODEL, X)),
        ("y", lambda: ErrorPredictor().fit(MODEL, (X[:50], X[:50, :4].argmax(-1)))),
        ("features", lambda: ErrorPredictor().fit_features(np.eye(3), [0, 1, 2])),
        ("features", lambda: ErrorPredictor().fit_features((np.eye(3), np.eye(4)), [0, 1, 2])),
        ("components", lambda: ErrorPredictor(components=-1)),
        ("score", lambda: RejectionRule("pnorm(0)")),
        ("score", lambda: RejectionRule("pnorm(x)")),
        ("score", lambda: RejectionRule("pnorm(-1)")),
        ("powers", lambda: choose_p(np.eye(3), [0, 1, 2], powers=[])),
        ("p", lambda: choose_p(np.eye(3), [0, 1, 2], powers=[0])),
        ("labels", lambda: choose_p(np.eye(3), [0, 1, 2])),
    ],
)
def test_what_is_refused(argument, call):
    with pytest.raises(ValueError, match=rf"`{argument}`.* must .*Received: "):
        call()
