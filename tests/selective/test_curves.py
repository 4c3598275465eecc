"""Exact risk-coverage curves: brute force over all orders and thresholds, torch-uncertainty."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from tfuq import metrics, selective

THEIRS = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "torch_uncertainty.npz")
RNG = np.random.default_rng(0)
N = 60
PROBS = RNG.dirichlet(np.full(3, 0.7), size=N).round(1)
PROBS = PROBS / PROBS.sum(axis=1, keepdims=True)  # rounded: full of ties
LABELS = np.where(RNG.random(N) < 0.6, PROBS.argmax(axis=1), RNG.integers(3, size=N))
ERROR = (PROBS.argmax(axis=1) != LABELS).astype(float)
FLAT = np.full((6, 2), 0.5)  # predictions that say nothing, for scores and losses of one's own
NUMBERS = [selective.aurc, selective.augrc, selective.eaurc]
NUMBERS += [selective.coverage_at_risk, selective.risk_at_coverage]
FUNCTIONS = [*NUMBERS, selective.risk_coverage_curve, selective.generalized_risk_coverage_curve]


def name_of(function):
    return getattr(function, "__name__", "")


def expected_risk(score, loss):
    """Risk of the first k, averaged over every order in which the scores do not fall."""
    orders = [np.array(order) for order in itertools.permutations(range(len(score)))]
    orders = [order for order in orders if np.all(np.diff(score[order]) >= 0)]
    return np.mean([np.cumsum(loss[order]) for order in orders], axis=0) / np.arange(
        1, len(score) + 1
    )


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=5
    ),
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7]),
    st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 0.8, 1.0]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_everything_agrees_with_all_orders(data, risk, coverage):
    score, loss = np.array(data).T
    n = len(score)
    given = (FLAT[:n], np.zeros(n))
    options = {"score": score, "loss": loss}
    risks, share = expected_risk(score, loss), np.arange(1, n + 1) / n
    curve = selective.risk_coverage_curve(*given, **options)
    np.testing.assert_allclose(curve.risk, risks, atol=1e-12)
    np.testing.assert_allclose(curve.coverage, share, atol=1e-15)
    np.testing.assert_array_equal(curve.threshold, np.sort(score))
    assert selective.aurc(*given, **options) == pytest.approx(risks.mean(), abs=1e-12)
    best = expected_risk(loss, loss).mean()
    assert selective.eaurc(*given, **options) == pytest.approx(risks.mean() - best, abs=1e-12)
    area = np.trapezoid([0, *risks * share], [0, *share])
    assert selective.augrc(*given, **options) == pytest.approx(area, abs=1e-12)

    reached = share[risks <= risk + 1e-12].max(initial=0)
    assert selective.coverage_at_risk(*given, risk, **options) == pytest.approx(reached)
    first = np.flatnonzero(share >= coverage - 1e-12)[0]
    assert selective.risk_at_coverage(*given, coverage, **options) == pytest.approx(risks[first])

    accepted = [score <= threshold for threshold in np.unique(score)]
    at = [(np.mean(kept), loss[kept].mean()) for kept in accepted]
    np.testing.assert_allclose(curve.coverage[curve.attainable], [point[0] for point in at])
    np.testing.assert_allclose(curve.risk[curve.attainable], [point[1] for point in at])
    options["attainable"] = True
    reached = max([c for c, r in at if r <= risk + 1e-12], default=0)
    assert selective.coverage_at_risk(*given, risk, **options) == pytest.approx(reached)
    least = next(r for c, r in at if c >= coverage - 1e-12)
    assert selective.risk_at_coverage(*given, coverage, **options) == pytest.approx(least)


# --- Others' numbers --------------------------------------------------------------------------


def case(name):
    return THEIRS[f"{name}/probs"], THEIRS[f"{name}/labels"]


def trapezoids(values):
    """The area as torch-uncertainty has it: from coverage 1 / n to 1, divided by 1 - 1 / n."""
    return np.trapezoid(values) / (len(values) - 1)


def test_agrees_with_torch_uncertainty_where_no_two_are_as_confident():
    given = case("distinct")
    curve = selective.risk_coverage_curve(*given)
    assert trapezoids(curve.risk) == pytest.approx(THEIRS["new/distinct/aurc"], rel=1e-6)
    generalized = trapezoids(curve.generalized_risk)
    assert generalized == pytest.approx(THEIRS["new/distinct/augrc"], rel=1e-6)
    ours = [selective.coverage_at_risk(*given, risk) for risk in THEIRS["risks"]]
    np.testing.assert_allclose(ours, THEIRS["new/distinct/coverage_at_risk"], rtol=1e-6)
    ours = [selective.risk_at_coverage(*given, coverage) for coverage in THEIRS["coverages"]]
    np.testing.assert_allclose(ours, THEIRS["new/distinct/risk_at_coverage"], rtol=1e-6)


def test_area_does_not_depend_on_the_order_of_ties_as_theirs_does():
    given, turned = case("tied"), case("tied_turned")
    assert abs(THEIRS["new/tied/aurc"] - THEIRS["new/tied_turned/aurc"]) > 0.02
    for function in NUMBERS:
        assert function(*given) == function(*turned)
    # Three of ten are wrong at each confidence: the risk is 0.3 wherever one stops.
    np.testing.assert_allclose(selective.risk_coverage_curve(*given).risk, 0.3)
    assert selective.aurc(*given) == pytest.approx(0.3)
    assert selective.coverage_at_risk(*given, 0.3) == 1.0
    assert selective.coverage_at_risk(*given, 0.25) == 0.0  # they say 0.7, by one of the orders


def test_coverage_at_risk_is_no_nan_after_a_confident_error():
    given = case("confident_error")
    risks = THEIRS["risks"]
    assert np.isnan(THEIRS["old/confident_error/coverage_at_risk"]).all()
    ours = [selective.coverage_at_risk(*given, risk) for risk in risks]
    assert ours == [0.0, *[1.0] * (len(risks) - 1)]  # one of ten is wrong
    streaming = [metrics.CoverageAtRisk(risk) for risk in risks]
    for metric in streaming:
        metric.update_state(*given[::-1])
    assert [float(metric.result()) for metric in streaming] == ours


def test_generalized_area_is_the_closed_form_of_traub_et_al():
    accuracy = 1 - ERROR.mean()
    area = roc_auc_score(ERROR, -PROBS.max(axis=1))
    expected = (1 - area) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert selective.augrc(PROBS, LABELS) == pytest.approx(expected, rel=1e-12)
    curve = selective.generalized_risk_coverage_curve(PROBS, LABELS)
    assert np.trapezoid(curve.generalized_risk, curve.coverage) == pytest.approx(expected)
    assert curve.coverage[0] == curve.generalized_risk[0] == 0


def test_excess_of_the_best_order_is_exactly_that_of_harmonic_numbers():
    e = int(ERROR.sum())
    harmonic = np.sum(1 / np.arange(N - e + 1, N + 1))
    best = (e - (N - e) * harmonic) / N
    assert selective.aurc(PROBS, LABELS, score=ERROR) == pytest.approx(best, rel=1e-12)
    assert selective.eaurc(PROBS, LABELS, score=ERROR) == 0.0
    expected = selective.aurc(PROBS, LABELS) - best
    assert selective.eaurc(PROBS, LABELS) == pytest.approx(expected, rel=1e-12)


# --- Whatever the shape -----------------------------------------------------------------------


@pytest.mark.parametrize("function", NUMBERS, ids=name_of)
def test_order_does_not_matter(function):
    order = RNG.permutation(N)
    assert function(PROBS[order], LABELS[order]) == pytest.approx(function(PROBS, LABELS))


@pytest.mark.parametrize("function", NUMBERS, ids=name_of)
def test_a_whole_weight_is_so_many_equal_examples(function):
    weight = RNG.integers(0, 4, size=N)
    repeated = function(PROBS.repeat(weight, axis=0), LABELS.repeat(weight))
    assert function(PROBS, LABELS, sample_weight=weight) == pytest.approx(repeated, abs=1e-12)


def test_what_has_no_weight_may_hold_anything():
    probs, labels = PROBS.copy(), LABELS.copy()
    probs[:5], labels[:5] = np.nan, 255
    weight = (np.arange(N) >= 5).astype(float)
    loss, score = np.where(weight > 0, ERROR, np.nan), np.where(weight > 0, 1.0, np.nan)
    assert selective.aurc(probs, labels, sample_weight=weight) == selective.aurc(
        PROBS[5:], LABELS[5:]
    )
    ours = selective.aurc(probs, labels, loss=loss, score=score, sample_weight=weight)
    assert ours == pytest.approx(ERROR[5:].mean())


@pytest.mark.parametrize("function", NUMBERS, ids=name_of)
def test_every_kind_of_prediction_is_read(function):
    expected = function(PROBS, LABELS)
    with np.errstate(divide="ignore"):
        logits = np.log(PROBS)
    assert function(logits, LABELS, from_logits=True) == pytest.approx(expected)
    assert function(PROBS, np.eye(3)[LABELS]) == expected
    assert function(PROBS.reshape(6, 10, 3), LABELS.reshape(6, 10)) == expected
    binary, truth = PROBS[:, 0], (LABELS == 0).astype(int)
    both = function(np.stack([1 - binary, binary], axis=1), truth)
    for shape in ((N,), (N, 1), (6, 10, 1)):
        assert function(binary.reshape(shape), truth.reshape(shape[:2])) == pytest.approx(both)
    many = function(binary.reshape(20, 3), truth.reshape(20, 3), multi_label=True)
    assert many == pytest.approx(both)


STACKS = {
    "classes": (RNG.normal(size=(5, 12, 3)), (12,), softmax, {}),
    "one-hot": (RNG.normal(size=(5, 12, 3)), (12, 3), softmax, {}),
    "pixels": (RNG.normal(size=(5, 4, 3, 3)), (4, 3), softmax, {}),
    "binary": (RNG.normal(size=(5, 12, 1)), (12,), expit, {}),
    "labels": (RNG.normal(size=(5, 4, 3)), (4, 3), expit, {"multi_label": True}),
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_stands_for_its_average(kind):
    logits, shape, squash, options = STACKS[kind]
    probs = squash(logits, axis=-1) if squash is softmax else squash(logits)
    labels = np.arange(np.prod(shape)).reshape(shape) % 2
    if kind == "one-hot":
        labels = np.eye(3)[np.arange(12) % 3]
    expected = selective.aurc(probs.mean(axis=0), labels, **options)
    assert selective.aurc(probs, labels, **options) == pytest.approx(expected)
    ours = selective.aurc(logits, labels, from_logits=True, **options)
    assert ours == pytest.approx(expected)
    for score in ("expected_entropy", "mutual_information", "variation_ratio"):
        assert 0 < selective.aurc(probs, labels, score=score, **options) < 1


def test_named_scores_rank_as_their_formulas():
    ordered = np.sort(PROBS, axis=1)
    entropy = -np.sum(PROBS * np.log(np.where(PROBS > 0, PROBS, 1)), axis=1)
    for name, score in (
        ("confidence", -PROBS.max(axis=1)),
        ("margin", ordered[:, 1] - ordered[:, 2]),
        ("entropy", entropy),
    ):
        ours = selective.risk_coverage_curve(PROBS, LABELS, score=name)
        expected = selective.risk_coverage_curve(PROBS, LABELS, score=score.round(9))
        np.testing.assert_array_equal(ours.risk, expected.risk)
        sign = 1 if name == "entropy" else -1
        np.testing.assert_allclose(ours.threshold, sign * np.sort(score), atol=1e-12)


def test_confidences_that_differ_by_rounding_are_ties():
    up, down = [0.9, 0.7, 0.7], np.nextafter([0.9, 0.7, 0.7], [1, 0, 1])
    for confidence in (up, down):
        probs = np.stack([confidence, 1 - np.array(confidence)], axis=1)
        curve = selective.risk_coverage_curve(probs, [0, 0, 1])
        np.testing.assert_allclose(curve.risk, [0, 0.25, 1 / 3])
        np.testing.assert_array_equal(curve.attainable, [True, False, True])
        assert curve.threshold[-1] == min(confidence)  # in float64, it accepts them all


def test_losses_of_ones_own():
    given = (PROBS, LABELS)
    brier = np.sum((PROBS - np.eye(3)[LABELS]) ** 2, axis=1)
    seen = []

    def loss(probs, labels):
        seen.append((probs.shape, labels.shape))
        return np.sum((probs - np.eye(3)[labels]) ** 2, axis=1)

    assert selective.aurc(*given, loss=loss) == pytest.approx(selective.aurc(*given, loss=brier))
    pixels = (PROBS.reshape(6, 10, 3), LABELS.reshape(6, 10))
    assert selective.aurc(*pixels, loss=loss) == pytest.approx(selective.aurc(*given, loss=brier))
    assert seen == [((N, 3), (N,))] * 2
    assert selective.risk_at_coverage(*given, 1.0, loss=brier) == pytest.approx(brier.mean())
    assert selective.coverage_at_risk(*given, 3.0, loss=2 * brier) == 1.0


def test_scores_of_images_rank_their_pixels():
    probs, labels = PROBS.reshape(6, 10, 3), LABELS.reshape(6, 10)
    score = np.arange(6.0)[::-1]
    ours = selective.aurc(probs, labels, score=score)
    assert ours == pytest.approx(selective.aurc(PROBS, LABELS, score=score.repeat(10)))
    assert selective.aurc(probs, labels, score=score[:, None]) == ours


@pytest.mark.parametrize("wrong", [0, 1])
def test_one_example_and_one_outcome(wrong):
    for n in (1, 5):
        given = (np.eye(2)[np.zeros(n, int)], np.full(n, wrong))
        assert selective.aurc(*given) == wrong
        assert selective.augrc(*given) == wrong / 2
        assert selective.eaurc(*given) == 0
        assert selective.coverage_at_risk(*given, 0.0) == 1 - wrong
        assert selective.risk_at_coverage(*given, 0.01) == wrong


def test_infinite_scores_are_scores():
    score = np.where(ERROR > 0, np.inf, -np.inf)
    assert selective.eaurc(PROBS, LABELS, score=score) == 0
    curve = selective.risk_coverage_curve(PROBS, LABELS, score=score)
    assert not np.isnan(curve.risk).any()


# --- Streaming --------------------------------------------------------------------------------

PAIRS = [
    (metrics.AURC, selective.aurc, {}),
    (metrics.AUGRC, selective.augrc, {}),
    (metrics.CoverageAtRisk, selective.coverage_at_risk, {"risk": 0.2}),
    (metrics.CoverageAtRisk, selective.coverage_at_risk, {"risk": 0.3, "attainable": True}),
    (metrics.RiskAtCoverage, selective.risk_at_coverage, {"coverage": 0.55}),
    (metrics.RiskAtCoverage, selective.risk_at_coverage, {"coverage": 0.4, "attainable": True}),
]


@pytest.mark.parametrize("metric, function, kwargs", PAIRS, ids=name_of)
def test_metric_is_its_function(metric, function, kwargs):
    """On float32 confidences far enough apart, or equal, that bins lose nothing."""
    streaming = metric(**kwargs)
    for rows in np.split(np.arange(N), [7, 7, 30]):
        streaming.update_state(LABELS[rows], PROBS[rows].astype("float32"))
    expected = function(PROBS, LABELS, **kwargs)
    assert float(streaming.result()) == pytest.approx(expected, rel=1e-6)


def test_few_bins_are_a_curve_of_few_levels():
    probs = RNG.random(500).astype("float32")
    labels = (RNG.random(500) < probs).astype(int)
    confidence = np.maximum(probs, 1 - probs).astype(float)
    level = -np.floor((np.log(confidence / (1 - confidence)) / 17 + 1) / 2 * 40)
    for metric, function, kwargs in PAIRS:
        streaming = metric(n_bins=40, **kwargs)
        streaming.update_state(labels, probs)
        expected = function(probs, labels, score=level, **kwargs)
        assert float(streaming.result()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", [pair[0] for pair in PAIRS[::2]] + [metrics.AUGRC], ids=name_of)
def test_metric_has_no_result_without_data_or_after_a_fault(metric):
    streaming = metric()
    assert np.isnan(streaming.result())
    streaming.update_state([0], [[1.0, 0.0]], [0.0])
    assert np.isnan(streaming.result())
    streaming.update_state([0], [[0.9, 0.1]])
    assert np.isfinite(streaming.result())
    streaming.update_state([0], [[np.nan, 0.1]])
    assert np.isnan(streaming.result())


def test_metrics_refuse_bad_options():
    for bad in (-0.1, 1.1, "0.5", None, np.nan):
        with pytest.raises(ValueError, match=r"`risk` must be in .*Received: risk="):
            metrics.CoverageAtRisk(bad)
        with pytest.raises(ValueError, match=r"`coverage` must be in .*Received: coverage="):
            metrics.RiskAtCoverage(bad)
    with pytest.raises(ValueError, match="`coverage` must be in"):
        metrics.RiskAtCoverage(0)
    for metric in (metrics.CoverageAtRisk, metrics.RiskAtCoverage):
        with pytest.raises(ValueError, match="`attainable` must be True or False"):
            metric(attainable="no")
    with pytest.raises(ValueError, match="`n_bins` must be an integer of at least 2"):
        metrics.AURC(n_bins=1)


# --- Bad input --------------------------------------------------------------------------------

STACK = np.full((2, 2, 3), 1 / 3)
BAD = [
    ("probs", [[np.nan, 0.5], [0.5, 0.5]], [0, 1], {}),
    ("probs", [[2.0, -1.0], [0.5, 0.5]], [0, 1], {}),
    ("probs", np.where(STACK > 0, np.nan, 0), [0, 1], {}),
    ("probs", 5 * STACK, [0, 1], {}),
    ("probs", np.full((2, 2, 3), np.inf), [0, 1], {"from_logits": True}),
    ("probs", [], [], {}),
    ("probs", np.zeros((0, 2, 3)), [0, 1], {}),
    ("probs", "words", [0, 1], {}),
    ("labels", [[0.5, 0.5]] * 2, [0, 2], {}),
    ("labels", [[0.5, 0.5]] * 2, [0, 1, 1], {}),
    ("labels", [[0.5, 0.5]] * 2, [0, np.nan], {}),
    ("labels", [[0.5, 0.5]] * 2, None, {}),
    ("sample_weight", [[0.5, 0.5]] * 2, [0, 1], {"sample_weight": [1, -1]}),
    ("sample_weight", [[0.5, 0.5]] * 2, [0, 1], {"sample_weight": [0, 0]}),
    ("score", [[0.5, 0.5]] * 2, [0, 1], {"score": "doubt"}),
    ("score", [[0.5, 0.5]] * 2, [0, 1], {"score": [0.1]}),
    ("score", [[0.5, 0.5]] * 2, [0, 1], {"score": [0.1, np.nan]}),
    ("score", [[0.5, 0.5]] * 2, [0, 1], {"score": None}),
    ("probs", [[0.5, 0.5]] * 2, [0, 1], {"score": "mutual_information"}),
    ("loss", [[0.5, 0.5]] * 2, [0, 1], {"loss": [0.1]}),
    ("loss", [[0.5, 0.5]] * 2, [0, 1], {"loss": [0.1, -1]}),
    ("loss", [[0.5, 0.5]] * 2, [0, 1], {"loss": [0.1, np.inf]}),
    ("loss", [[0.5, 0.5]] * 2, [0, 1], {"loss": lambda probs, labels: 0.0}),
    ("from_logits", [[0.5, 0.5]] * 2, [0, 1], {"from_logits": "no"}),
    ("multi_label", [[0.5, 0.5]] * 2, [0, 1], {"multi_label": 2}),
]


@pytest.mark.parametrize("argument, probs, labels, options", BAD)
def test_bad_data_raise(argument, probs, labels, options):
    for function in (selective.aurc, selective.risk_coverage_curve):
        with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
            function(probs, labels, **options)


def test_bad_points_raise():
    for risk in (-0.1, np.nan, np.inf, "0.1", None, True):
        with pytest.raises(ValueError, match="`risk` must be a finite number of at least 0"):
            selective.coverage_at_risk(PROBS, LABELS, risk)
    for coverage in (0, -0.1, 1.1, np.nan, "1", None):
        with pytest.raises(ValueError, match="`coverage` must be in"):
            selective.risk_at_coverage(PROBS, LABELS, coverage)
    for function in (selective.coverage_at_risk, selective.risk_at_coverage):
        with pytest.raises(ValueError, match="`attainable` must be True or False"):
            function(PROBS, LABELS, attainable=1)


def test_weights_that_cannot_count_examples_are_refused():
    for function in (selective.aurc, selective.eaurc):
        with pytest.raises(ValueError, match="`sample_weight` must have a mean of 1"):
            function(PROBS, LABELS, sample_weight=np.full(N, 1 / N))
    area = selective.augrc(PROBS, LABELS, sample_weight=np.full(N, 1 / N))
    assert area == pytest.approx(selective.augrc(PROBS, LABELS))
