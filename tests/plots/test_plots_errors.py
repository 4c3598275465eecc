"""Pictures of confusions, ROC and single examples show scikit-learn's and the arrays' numbers."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from tfuq import plots
from tfuq.selective import RejectionRule, risk_coverage_curve

RNG = np.random.default_rng(1)
PROBS = RNG.dirichlet(np.full(3, 0.6), size=120)
OTHER = RNG.dirichlet(np.full(3, 0.6), size=120)
Y = np.where(RNG.random(120) < 0.6, PROBS.argmax(-1), RNG.integers(3, size=120))
IMAGES = RNG.uniform(size=(120, 6, 6, 3))


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    assert pyplot.get_fignums() == []


def free_axes():
    return Figure().subplots()


def cells(ax):
    return ax.images[0].get_array().filled(np.nan)


@pytest.mark.parametrize("normalize", ["true", "pred", None])
def test_confusion_matrix_is_that_of_scikit_learn(normalize):
    ours = {"pred": "predicted"}.get(normalize, normalize)
    weight = RNG.uniform(size=120)
    ax = plots.confusion_matrix(Y, PROBS, normalize=ours, sample_weight=weight, ax=free_axes())
    expected = confusion_matrix(Y, PROBS.argmax(-1), normalize=normalize, sample_weight=weight)
    np.testing.assert_allclose(cells(ax), expected)
    assert len(ax.texts) == 9
    assert ax.get_ylabel() == "true class"


def test_confusion_of_logits_of_one_hot_and_of_binary_predictions():
    ax = plots.confusion_matrix(np.eye(3)[Y], np.log(PROBS), from_logits=True, ax=free_axes())
    np.testing.assert_allclose(cells(ax), confusion_matrix(Y, PROBS.argmax(-1), normalize="true"))
    ax = plots.confusion_matrix(Y > 0, PROBS[:, :1], normalize=None, ax=free_axes())
    np.testing.assert_array_equal(cells(ax), confusion_matrix(Y > 0, PROBS[:, 0] > 0.5))


def test_a_class_without_examples_has_an_empty_row():
    ax = plots.confusion_matrix([0, 1], PROBS[:2], names=["a", "b", "cat"], ax=free_axes())
    assert np.isnan(cells(ax)[2]).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "cat"]


def test_many_classes_have_no_numbers_in_the_cells():
    probs = np.eye(21)
    ax = plots.confusion_matrix(np.arange(21), probs, ax=free_axes())
    assert not ax.texts


def test_difference_of_two_confusion_matrices():
    ax = plots.confusion_difference(Y, PROBS, OTHER, normalize=None, ax=free_axes())
    first, second = (confusion_matrix(Y, probs.argmax(-1)) for probs in (PROBS, OTHER))
    texts = [int(text.get_text()) for text in ax.texts]
    np.testing.assert_array_equal(texts, (first - second).ravel())
    low, high = ax.images[0].get_clim()
    assert low == -high
    better = np.where(np.eye(3), first - second, second - first)  # one colour for what is better
    np.testing.assert_array_equal(cells(ax), better)
    assert ax.get_title() == "first minus second"
    named = plots.confusion_difference(Y, PROBS, OTHER, models=("ours", "SGD"), ax=free_axes())
    assert named.get_title() == "ours minus SGD"
    with pytest.raises(ValueError, match="Argument `models` must be the names of the two models"):
        plots.confusion_difference(Y, PROBS, OTHER, models="ours")
    with pytest.raises(ValueError, match="Argument `other` must have the 3 classes"):
        plots.confusion_difference(Y % 2, PROBS, PROBS[:, :2] / PROBS[:, :2].sum(-1, keepdims=True))


def test_roc_is_that_of_scikit_learn_ties_included():
    probs = np.round(PROBS[:, 1], 1)
    ax = plots.roc_curves(Y == 1, probs, ax=free_axes())
    x, y, _ = roc_curve(Y == 1, probs, drop_intermediate=False)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), x)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), y)
    label = ax.get_legend().get_texts()[0].get_text()
    assert label == f"1: AUROC {roc_auc_score(Y == 1, probs):.3f}"


def test_roc_of_each_class_of_chosen_ones_and_of_labels():
    ax = plots.roc_curves(Y, PROBS, names=["a", "b", "c"], classes=[2, 0], ax=free_axes())
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    areas = [roc_auc_score(k == Y, PROBS[:, k]) for k in (2, 0)]
    assert said == [f"{n}: AUROC {a:.3f}" for n, a in zip("ca", areas, strict=True)]
    labels = (OTHER > 0.4).astype(int)
    labels[:, 2] = 0
    ax = plots.roc_curves(labels, PROBS, multi_label=True, ax=free_axes())
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[0] == f"0: AUROC {roc_auc_score(labels[:, 0], PROBS[:, 0]):.3f}"
    assert said[2] == "2: one class alone"


def test_grid_shows_what_is_nearest_to_the_line():
    figure = plots.accept_reject_grid(
        IMAGES, Y, PROBS, threshold=0.7, count=3, names=["a", "b", "c"], figure=Figure()
    )
    confidence = PROBS.max(-1)
    above = np.flatnonzero(confidence >= 0.7)
    nearest = above[np.argsort(confidence[above])][:3]
    for ax, i in zip(figure.axes[:3], nearest, strict=True):
        title = ax.get_title()
        assert title.endswith(f"{confidence[i]:.2f}")
        assert title.startswith("abc"[PROBS[i].argmax()])
        right = PROBS[i].argmax() == Y[i]
        assert ("true:" in title) != right
        assert ax.spines["left"].get_linestyle() == ("-" if right else "--")
        spread = IMAGES[i] - IMAGES[i].min()
        np.testing.assert_allclose(ax.images[0].get_array(), spread / spread.max(), atol=1e-6)
    assert figure.axes[0].get_ylabel() == f"accepted\n{len(above)} of 120"
    below = confidence[confidence < 0.7]
    assert figure.axes[3].get_title().endswith(f"{below.max():.2f}")


def test_grid_of_given_decisions_and_of_an_empty_row():
    figure = plots.accept_reject_grid(
        IMAGES[..., 0], Y, PROBS, accepted=np.zeros(120, bool), count=2, figure=Figure()
    )
    assert figure.axes[0].texts[0].get_text() == "none"
    assert figure.axes[2].images


def test_uncertainty_against_error_counts_in_equal_bins():
    score, wrong = RNG.uniform(size=100), RNG.random(100) < 0.3
    ax = plots.uncertainty_against_error(score, wrong, n_bins=4, ax=free_axes())
    order = np.argsort(score).reshape(4, 25)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), wrong[order].mean(-1))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), np.median(score[order], axis=-1))
    ax = plots.uncertainty_against_error(np.zeros(9), np.arange(9) < 3, ax=free_axes())
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1 / 3])


def test_risk_coverage_shows_curve_and_rule():
    rule = RejectionRule.fit(PROBS, Y, target_risk=0.5)
    ax = plots.risk_coverage(PROBS, Y, rule=rule, ax=free_axes())
    curve = risk_coverage_curve(PROBS, Y)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve.risk)
    found = rule.evaluate(PROBS, Y)
    assert (ax.lines[1].get_xdata()[0], ax.lines[1].get_ydata()[0]) == (found.coverage, found.risk)
    assert ax.lines[2].get_ydata()[0] == 0.5
    assert 0.5 < ax.get_ylim()[1] < 1.03
    sure = plots.risk_coverage(np.eye(3)[Y], Y, ax=free_axes())  # the band of few reaches 1
    assert sure.get_ylim()[1] < 0.1
    many = np.random.default_rng(3).dirichlet(np.ones(3), size=300)
    first_wrong = many.argmax(-1)
    first_wrong[many.max(-1).argmax()] = many[many.max(-1).argmax()].argmin()
    early = plots.risk_coverage(many, first_wrong, ax=free_axes())
    assert early.lines[0].get_ydata()[0] == 1 and early.get_ylim()[1] < 0.3
    ax = plots.risk_coverage({"a": PROBS, "b": OTHER}, Y, ax=free_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    for probs, given in (({}, None), ({"a": PROBS, "b": OTHER}, rule)):
        with pytest.raises(ValueError, match="Argument `probs` must hold at least one model"):
            plots.risk_coverage(probs, Y, rule=given)


def test_histograms_say_what_is_detected():
    sets = {"known": RNG.normal(size=50), "unknown": np.append(RNG.normal(3, size=20), np.inf)}
    ax = plots.detection_histograms(sets, threshold=2.0, n_bins=8, ax=free_axes())
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    shares = [100 * np.mean(values > 2) for values in sets.values()]
    assert said[:2] == [f"{n}: {s:.1f} % detected" for n, s in zip(sets, shares, strict=True)]
    heights = [patch.get_data().values for patch in ax.patches]
    np.testing.assert_allclose([h.sum() for h in heights[1:]], [1, 20 / 21])
    for scores in ({}, [1.0], {"known": []}, {"known": [np.nan]}):
        with pytest.raises(ValueError, match="Argument `scores` must"):
            plots.detection_histograms(scores)


def test_colours_differ_in_grey():
    ax = plots.roc_curves(Y, PROBS, ax=free_axes())
    drawn = ax.lines[:3]
    assert len({line.get_linestyle() for line in drawn}) == 3
    assert len({to_rgb(line.get_color()) for line in drawn}) == 3


@pytest.mark.parametrize(
    "argument, draw, arguments",
    [
        ("normalize", plots.confusion_matrix, {"normalize": "all"}),
        ("names", plots.confusion_matrix, {"names": ["a"]}),
        ("ax", plots.confusion_matrix, {"ax": 3}),
        ("classes", plots.roc_curves, {"classes": [3]}),
        ("classes", plots.roc_curves, {"classes": []}),
        ("names", plots.roc_curves, {"names": ["a", "b"]}),
    ],
)
def test_bad_options(argument, draw, arguments):
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: "):
        draw(Y, PROBS, **arguments)


def test_bad_examples():
    for images in (IMAGES[:5], IMAGES[..., :2], IMAGES[0, 0]):
        with pytest.raises(ValueError, match="Argument `images` must have shape"):
            plots.accept_reject_grid(images, Y, PROBS)
    for accepted in (np.ones(3, bool), np.ones(120)):
        with pytest.raises(ValueError, match="Argument `accepted` must hold 120 booleans"):
            plots.accept_reject_grid(IMAGES, Y, PROBS, accepted=accepted)
    for options in ({"threshold": 2}, {"count": 0}, {"figure": 3}, {"names": ["a"]}):
        (name,) = options
        with pytest.raises(ValueError, match=f"Argument `{name}` must "):
            plots.accept_reject_grid(IMAGES, Y, PROBS, **options)
    for score, wrong in (([], []), ([1.0], [0, 1]), ([np.nan], [0])):
        with pytest.raises(ValueError, match="Argument `uncertainty` must"):
            plots.uncertainty_against_error(score, wrong)
    with pytest.raises(ValueError, match="Argument `errors` must"):
        plots.uncertainty_against_error([1.0, 2.0], [0.5, 1])


def test_risk_coverage_is_of_the_rule_s_own_loss():
    goal = {"loss": "false_negative", "positive_class": 1, "target_risk": 0.6}
    rule = RejectionRule.fit(PROBS, Y, score="margin", **goal)
    ax = plots.risk_coverage(PROBS, Y, rule=rule, ax=free_axes())
    found = rule.evaluate(PROBS, Y)
    at = ax.lines[1].get_xdata()[0], ax.lines[1].get_ydata()[0]
    assert at == (found.coverage, found.risk)
    assert "false negatives of 1" in ax.get_ylabel()
    xs, ys = ax.lines[0].get_data()
    assert ys[np.argmin(np.abs(xs - found.coverage))] == pytest.approx(found.risk)
    costs = np.array([[0, 0.5, 0.5], [1, 0, 1], [0.5, 0.5, 0]])
    rule = RejectionRule.fit(PROBS, Y, loss=costs, target_risk=0.5)
    ax = plots.risk_coverage(PROBS, Y, rule=rule, ax=free_axes())
    assert "cost matrix" in ax.get_ylabel() and not ax.collections  # no band of such losses
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(costs[Y, PROBS.argmax(-1)].mean())
    ax = plots.risk_coverage(PROBS, Y, rule=rule, loss=1 - costs, ax=free_axes())
    assert "cost matrix" in ax.get_ylabel() and len(ax.lines) == 2  # nothing is promised of it
    ax = plots.risk_coverage(PROBS, Y, rule=rule, loss="error", ax=free_axes())
    assert "fraction wrong" in ax.get_ylabel()
    nothing = RejectionRule("confidence", 2.0)  # of which no risk is known, not 0
    ax = plots.risk_coverage(PROBS, Y, rule=nothing, ax=free_axes())
    assert ax.lines[1].get_label() == "the rule: coverage 0.00, no risk known"
    strange = RNG.normal(size=len(Y))
    rule = RejectionRule.fit(PROBS, Y, score=strange, target_coverage=0.5)
    ax = plots.risk_coverage(PROBS, Y, rule=rule, score=strange, ax=free_axes())
    found = rule.evaluate(PROBS, Y, score=strange)
    assert ax.lines[1].get_ydata()[0] == found.risk
    with pytest.raises(ValueError, match="`score` must be the scores of these predictions"):
        plots.risk_coverage(PROBS, Y, rule=rule)
