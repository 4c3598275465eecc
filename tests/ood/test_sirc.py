"""The combination of a confidence and a detector's score: its formula, its files, its rules."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

from tfuq.ood import KNN, SIRC, Energy, GradientDensity, Mahalanobis, MaxSoftmax, ViM, load_detector
from tfuq.selective import RejectionRule, best_score, sirc_score

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype("float32")
MODEL = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
MODEL.set_weights([RNG.normal(size=(6, 3)), np.zeros(3)])


def test_it_is_the_formula():
    detector = SIRC(KNN(k=5)).fit(MODEL, X)
    alone = KNN(k=5).fit(MODEL, X)
    own = alone._own_scores()
    new = 3 * RNG.normal(size=(50, 6)).astype("float32")
    assert detector.a == pytest.approx(own.mean() + 3 * own.std())
    assert detector.b == pytest.approx(1 / own.std())
    s, confidence = alone.score(new), MODEL.predict(new, verbose=0).max(-1).astype("float64")
    paper = -(1 - confidence) * (1 + np.exp(-detector.b * (-s + detector.a)))  # grows with trust
    sure = confidence < 1 - 1e-4  # where 1 - p is more than rounding
    np.testing.assert_allclose(detector.score(new)[sure], np.log(-paper[sure]), atol=2e-3)
    np.testing.assert_allclose(
        detector.score(new)[sure],
        sirc_score(confidence, s, detector.a, detector.b)[sure],
        atol=2e-3,
    )


def test_features_files_and_what_is_certain(tmp_path):
    logits = 40 * RNG.normal(size=(80, 3))
    features = RNG.normal(size=(80, 4))
    detector = SIRC(KNN(k=3)).fit_features((features, logits))
    scores = detector.score_features((5 * features, logits))
    assert np.isfinite(scores).all()
    detector.threshold_at(0.9)
    detector.save(tmp_path / "sirc.npz")
    again = load_detector(tmp_path / "sirc.npz")
    np.testing.assert_array_equal(again.score_features((5 * features, logits)), scores)
    assert (again.a, again.threshold) == (detector.a, detector.threshold)
    assert np.isfinite(sirc_score([1.0, 0.5], [0.0, 1e300], 0.0, 1.0)).all()
    found = sirc_score([np.nan, 0.5], [0.0, np.inf], 0.0, 1.0)
    assert np.isnan(found[0]) and found[1] == np.inf


def test_it_rejects_both_kinds_of_mistakes():
    """Wrong answers near the border between classes, and inputs like none known."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1200, 6)).astype("float32")
    strange = rng.random(1200) < 0.2
    x[strange] = 8 * x[strange]
    p = MODEL.predict(x, verbose=0)
    y = (rng.random((1200, 1)) > softmax(np.log(p + 1e-9) / 1.0, -1).cumsum(-1)).sum(-1)
    y = np.where(strange, rng.integers(3, size=1200), np.minimum(y, 2))
    both = SIRC(Mahalanobis()).fit(MODEL, X, X.argmax(-1) % 3)
    scores = {"sirc": both.score(x[:700]), "alone": both.detector.score(x[:700])}
    found = best_score(p[:700], y[:700], {**scores, "confidence": "confidence"}, resamples=100)
    assert found.best == "sirc"
    rest = x[700:], y[700:]
    rule = RejectionRule.fit_model(MODEL, rest, score=both, target_risk=0.25)
    again = RejectionRule.from_json(rule.to_json())
    whole = again.append_to(MODEL, detector=both)
    accept = rule.accept(p, score=both.score(x))
    assert np.mean(whole.predict(x, verbose=0)["accept"] == accept) > 0.995


@pytest.mark.parametrize(
    "argument, call",
    [
        ("detector", lambda: SIRC(3)),
        ("detector", lambda: SIRC(SIRC(Energy()))),
        ("detector", lambda: SIRC(GradientDensity())),
        ("detector", lambda: SIRC(MaxSoftmax(multi_label=True))),
        ("detector", lambda: SIRC({"class": "tfuq>Nothing", "config": {}})),
        ("features", lambda: SIRC(Energy()).fit_features(np.eye(3))),
        ("features", lambda: SIRC(Energy()).fit_features((np.eye(3), np.eye(4)))),
        ("x", lambda: SIRC(Energy()).fit_features((np.ones((9, 3)), np.ones((9, 3))))),
        ("detector", lambda: SIRC(ViM()).score(X)),
        ("confidence", lambda: sirc_score([1.5], [0.0], 0, 1)),
        ("detector_score", lambda: sirc_score([0.5], [0.0, 1.0], 0, 1)),
        ("b", lambda: sirc_score([0.5], [0.0], 0, 0)),
        ("b", lambda: sirc_score([0.5], [0.0], np.nan, 1)),
    ],
)
def test_what_is_refused(argument, call):
    with pytest.raises(ValueError, match=rf"`{argument}`.* must .*Received: "):
        call()
