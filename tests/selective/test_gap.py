"""Gap to the oracle: parts in closed form, a sum that is exact, other data, bad input."""

import numpy as np
import pytest

from tfuq.selective import IsotonicCalibration, gap, risk_at_coverage

RNG = np.random.default_rng(0)
N = 20_000
TRUE = RNG.dirichlet([0.6, 0.6, 0.6], size=N)  # of the classes, all that can be known
LABELS = (TRUE.cumsum(-1) < RNG.random((N, 1))).sum(-1)
WORSE = 0.7 * TRUE + 0.3 * TRUE[:, [1, 2, 0]]  # a model that mixes classes up
PARTS = ("forced", "bayes_noise", "approximation", "ranking", "statistical")


def parts_of(found):
    return np.nansum([getattr(found, name) for name in PARTS], axis=0)


@pytest.mark.parametrize("given", ["votes", "estimate", "correctness"])
def test_parts_sum_to_the_gap(given):
    options = {"votes": {"votes": TRUE}, "estimate": {}, "correctness": {"correctness": None}}[
        given
    ]
    if given == "correctness":
        options = {"correctness": TRUE[np.arange(N), WORSE.argmax(-1)]}
    found = gap(WORSE, LABELS, **options)
    np.testing.assert_allclose(parts_of(found), found.gap, atol=1e-12)
    accuracy = np.mean(WORSE.argmax(-1) == LABELS)
    np.testing.assert_allclose(found.oracle, np.minimum(1, accuracy / found.coverage))
    risks = [risk_at_coverage(WORSE, LABELS, c) for c in found.coverage]
    np.testing.assert_allclose(1 - found.accuracy, risks, atol=1e-6)
    np.testing.assert_allclose(found.ranking[-1], 0, atol=1e-12)  # all are accepted


def test_noise_alone_where_the_model_knows_all():
    """The rest is chance: beyond 4.5 of the deviations that Hoeffding's bound is 2.7 of, 1e-5."""
    found = gap(TRUE, LABELS, votes=TRUE)
    order = np.argsort(-TRUE.max(-1))
    for k, coverage in enumerate(found.coverage):
        best = order[: round(coverage * N)]
        np.testing.assert_allclose(found.bayes_noise[k], 1 - TRUE[best].max(-1).mean(), atol=1e-4)
    np.testing.assert_allclose(found.approximation, 0, atol=1e-12)
    np.testing.assert_allclose(found.ranking, 0, atol=1e-12)
    assert np.all(np.abs(found.statistical) < 1.7 * found.statistical_bound)


def test_a_worse_model_and_a_score_that_says_nothing():
    blind = RNG.random(N)
    found = gap(WORSE, LABELS, blind, votes=TRUE, coverage=[0.5])
    knows = TRUE[np.arange(N), WORSE.argmax(-1)]
    best = np.argsort(-knows)[: N // 2]
    right = WORSE.argmax(-1) == LABELS
    np.testing.assert_allclose(
        found.approximation[0], (TRUE.max(-1) - knows)[best].mean(), atol=1e-4
    )
    np.testing.assert_allclose(
        found.ranking[0], right[best].mean() - right[np.argsort(blind)[: N // 2]].mean(), atol=1e-4
    )
    assert found.ranking_lower[0] < found.ranking[0] < found.ranking_upper[0]
    assert found.ranking_lower[0] > 0.1
    sure = gap(WORSE, LABELS, blind, correctness=0.98 * right + 0.01)  # told apart, had one known
    assert "is the ranking" in sure.sentence(0.5)


def test_monotone_calibration_changes_nothing():
    """What the paper says of temperature and isotonic scaling of the confidence."""
    confidence = WORSE.max(-1).astype("float32")
    plain = gap(WORSE, LABELS, -confidence, votes=TRUE)
    bent = gap(WORSE, LABELS, -(confidence**3), votes=TRUE)
    for name in PARTS:
        np.testing.assert_allclose(getattr(plain, name), getattr(bent, name), atol=1e-6)
    right = (WORSE.argmax(-1) == LABELS).astype(int)
    steps = IsotonicCalibration().fit(confidence[:1000], right[:1000])
    assert len(np.unique(steps(confidence))) < len(np.unique(confidence))  # ties, no better order
    isotonic = gap(WORSE, LABELS, -np.asarray(steps(confidence)), votes=TRUE)
    assert np.all(isotonic.ranking > plain.ranking - 0.005)


def test_interval_of_the_ranking_covers():
    """Of a known ordering, 400 draws: less than 91 % at a nominal 95 % has probability 2e-4."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        knows = rng.random(400)
        right, score = rng.random(400) < knows, knows + rng.normal(size=400, scale=0.3)
        probs = np.tile([0.9, 0.1], (400, 1))
        found = gap(probs, 1 - right, -score, correctness=knows, coverage=0.5)
        b, a = (np.argsort(-by)[:200] for by in (knows, score))
        held += (
            found.ranking_lower[0] <= knows[b].mean() - knows[a].mean() <= found.ranking_upper[0]
        )
    assert held >= 0.91 * 400


def test_no_ranking_is_found_where_there_is_none():
    """The estimate is of other folds, so that noise is no gain; 4 deviations, 6e-5."""
    right = RNG.random(4000) < 0.7
    probs = RNG.dirichlet([5, 1, 1], size=4000)
    labels = np.where(right, probs.argmax(-1), (probs.argmax(-1) + 1) % 3)
    features = RNG.normal(size=(4000, 30))
    found = gap(probs, labels, RNG.random(4000), features=features, coverage=0.5)
    width = found.ranking_upper[0] - found.ranking_lower[0]
    assert abs(found.ranking[0]) < 4 * width / (2 * 1.96)


def test_other_data():
    other = np.where(RNG.random(N) < 0.2, (LABELS + 1) % 3, LABELS)
    home = gap(TRUE, LABELS, votes=TRUE)
    found = gap(TRUE, LABELS, votes=TRUE, shifted=(TRUE, other))
    np.testing.assert_allclose(parts_of(found) + found.shift, found.gap, atol=1e-12)
    assert np.all(found.shift > 0.08) and np.isnan(home.shift).all()
    own = gap(TRUE, LABELS, -TRUE.max(-1), votes=TRUE, shifted=(TRUE, other, -TRUE.max(-1)))
    np.testing.assert_allclose(own.shift, found.shift, atol=1e-3)


def test_weights_of_zero_are_left_out_and_stacks_are_averaged():
    weight = np.arange(N) < 5000
    some = gap(WORSE, LABELS, votes=TRUE, sample_weight=weight)
    alone = gap(WORSE[:5000], LABELS[:5000], votes=TRUE[:5000])
    np.testing.assert_allclose(some.gap, alone.gap)
    stacked = gap(np.stack([TRUE, TRUE[:, [1, 2, 0]]])[:, :5000], LABELS[:5000], coverage=0.5)
    mean = (TRUE + TRUE[:, [1, 2, 0]])[:5000] / 2
    np.testing.assert_allclose(stacked.gap, gap(mean, LABELS[:5000], coverage=0.5).gap)


def test_table_and_sentence():
    found = gap(WORSE, LABELS, votes=TRUE, coverage=0.8)
    header, _, row = found.to_markdown().splitlines()
    assert header.count("|") == row.count("|") == 11
    assert f"{100 * found.gap[0]:.1f}" in row
    assert "points are missing to the oracle" in found.sentence()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"coverage": 0}, "`coverage` must be shares"),
        ({"coverage": 80}, "`coverage` must be shares"),
        ({"votes": TRUE[:5]}, "`votes` must hold finite numbers"),
        ({"votes": 0 * TRUE}, "`votes` must hold a vote for each"),
        ({"votes": TRUE, "correctness": TRUE[:, 0]}, "`correctness` must be None"),
        ({"correctness": 100 * TRUE[:, 0]}, "`correctness` must hold probabilities"),
        ({"features": TRUE[:5]}, "`features` must hold finite numbers"),
        ({"features": TRUE * np.nan}, "`features` must hold finite numbers"),
        ({"shifted": TRUE}, "`shifted` must be "),
        ({"scores": TRUE[:, 0], "shifted": (TRUE, LABELS)}, "`shifted` must be .*scores"),
        ({"scores": "mutual_information"}, "`probs` must be a stack"),
        ({"folds": 1}, "`folds` must be"),
        ({"confidence": 95}, "`confidence` must be"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        gap(TRUE, LABELS, **options)


def test_other_labels_are_refused():
    with pytest.raises(ValueError, match=r"`(probs|labels)` must "):
        gap(10 * TRUE, LABELS)
    with pytest.raises(ValueError, match=r"`labels` must be one for each example"):
        gap(TRUE.reshape(100, 200, 3), LABELS.reshape(100, 200))
