"""The report of predicted numbers shows what the arrays and the metrics say."""

import base64
import json
import re

import keras
import numpy as np
import pytest
from scipy import stats
from test_report import content_of, numbers

import tfuq
from tfuq import metrics
from tfuq.predictive import RegressionUncertainty
from tfuq.report import html, to_markdown
from tfuq.selective import RegressionRule, RejectionRule

RNG = np.random.default_rng(6)
N = 200
SCALE = RNG.uniform(0.2, 2, N)
MEAN = RNG.normal(size=N)
Y = MEAN + SCALE * RNG.normal(size=N)
FOUND = RegressionUncertainty(np.stack([MEAN, SCALE], -1)[None], "normal")
WIDTH = 2 * stats.norm.ppf(0.95) * SCALE
ERROR = np.abs(Y - MEAN)
HOSPITAL = RNG.choice(["north", "south"], N)
TWO = RegressionUncertainty(np.stack([MEAN, MEAN + 9, SCALE, SCALE], -1)[None], "normal")
IMAGES = RNG.uniform(size=(N, 6, 6))


def cells(text, title):
    """Rows of the table under a title, by their first cell."""
    return numbers(text[text.index(title) :].split("\n\n**")[0].split("\n\n#")[0])


def figure(value):
    return f"{value:.4g}"


def percent(value):
    return f"{100 * value:.1f} %"


def test_summary_is_that_of_the_metrics():
    found = numbers(to_markdown((FOUND, Y), tolerance=1.0))
    assert found["Examples"] == ["200"]
    assert found["Mean absolute error"] == [figure(ERROR.mean())]
    assert found["Root of the mean squared error"] == [figure(np.sqrt(np.mean(ERROR**2)))]
    for name, metric in (
        ("Continuous ranked probability score", metrics.crps),
        ("Negative log-likelihood (nats)", metrics.number_negative_log_likelihood),
        ("Quantile calibration error", metrics.quantile_calibration_error),
        ("Area under the sparsification error (AUSE)", metrics.ause),
    ):
        assert found[name] == [figure(metric(Y, FOUND))]
    inside = metrics.prediction_interval_coverage(Y, FOUND)
    assert found["In their 90 % interval"] == [percent(inside)]
    assert found["Mean width of these intervals"] == [figure(WIDTH.mean())]
    assert found["Off by more than 1"] == [percent(np.mean(ERROR > 1))]


@pytest.mark.parametrize("threshold", [0.0, 3.0, float(np.float32(WIDTH[7])), 99.0])
def test_a_threshold_accepts_the_narrow_ones(threshold):
    options = {"threshold": threshold, "tolerance": 1.0, "groups": HOSPITAL}
    text = to_markdown((FOUND, Y), **options)
    accepted = WIDTH.astype("float32") <= np.float32(threshold)
    assert f"## Interval width of at most {threshold:g}" in text

    def expected(of):
        chosen = accepted & of
        count = chosen.sum()
        inside = percent((ERROR <= WIDTH / 2)[chosen].mean()) if count else "–"
        error = figure(ERROR[chosen].mean()) if count else "–"
        wrong = str((ERROR[chosen] > 1).sum())
        return [error, inside, str(count), str(of.sum() - count), wrong]

    every = np.ones(N, bool)
    chosen = cells(text, "## Interval width")
    assert chosen[percent(accepted.mean())] == expected(every)
    by_group = cells(text, "**By group**")
    for name in ("north", "south"):
        own = name == HOSPITAL
        assert by_group[name][1:] == expected(own)


def test_levels_calibration_and_the_largest_errors_are_tables():
    text = to_markdown((FOUND, Y))
    levels = cells(text, "**What a threshold of the interval width accepts**")
    assert len(levels) == 12  # with header and line
    below = metrics.quantile_calibration_curve(Y, FOUND)
    calibration = cells(text, "**Labels below each quantile**")
    low, high = stats.binom.interval(0.95, N, 0.5)
    assert calibration["0.5"] == [
        percent(below["share"][9]),
        f"{percent(low / N)} to {percent(high / N)}",
    ]
    worst = [row for row in cells(text, "**Largest errors of all**") if row.isdigit()]
    assert [int(row) for row in worst] == np.argsort(-ERROR)[:10].tolist()


def test_off_the_rule_nothing_is_promised():
    rule = RejectionRule.fit(FOUND, Y, tolerance=2.0, target_risk=0.5, confidence=0.8)
    at = to_markdown((FOUND, Y), rule=rule)
    assert "This is the rule's threshold: what is said of it above is promised here." in at
    off = to_markdown((FOUND, Y), rule=rule, threshold=rule.threshold / 2)
    assert "Nothing is promised at this threshold, only at the rule's, " in off
    assert "are off by more than 2, an interval for a threshold that was chosen" in off
    alone = to_markdown((FOUND, Y))
    assert "Nothing is promised: there is no rule.\n" in alone  # what is wrong nobody has said


def test_a_rule_brings_its_score_threshold_and_tolerance(tmp_path):
    rule = RejectionRule.fit(FOUND, Y, tolerance=1.0, target_coverage=0.6)
    text = to_markdown((FOUND, Y), rule=rule)
    accepted = rule.accept(FOUND)[:, 0]
    wrong = (ERROR > 1)[accepted].sum()
    assert f"accepts {accepted.sum()} ({percent(accepted.mean())}), of which {wrong} are" in text
    assert f"## Std of at most {rule.threshold:g}" in text
    found = content_of(html((FOUND, Y), tmp_path / "page.html", rule=rule))
    assert found["marks"] == [["rule", repr(float(rule.threshold))]]
    assert (found["score"], found["tolerance"]) == ("std", 1.0)
    by_group = RegressionRule("std", [0.5, np.inf], by="group", keys=["north", "south"])
    page = html((FOUND, Y), tmp_path / "page.html", rule=by_group, groups=HOSPITAL)
    assert content_of(page)["marks"] == [["rule, north", "0.5"], ["rule, south", "Infinity"]]
    count = by_group.accept(FOUND, HOSPITAL).sum()
    assert f"the rule accepts {count} (" in page.read_text(encoding="utf-8")


def test_all_forms_say_the_same():
    expected = to_markdown((FOUND, Y))
    both = np.stack([Y, Y + 9], -1)
    assert to_markdown((FOUND, Y[:, None])) == expected
    assert numbers(to_markdown((TWO, both), unit=1))["Mean absolute error"] == [
        figure(ERROR.mean())
    ]
    x = np.stack([MEAN, SCALE], -1).astype("float32")
    head = tfuq.layers.NormalDense(1)
    model = keras.Sequential([keras.Input((2,)), head])
    model.compile("sgd", head.negative_log_likelihood())
    own = tfuq.predictive.predict_uncertainty(model, x)
    found = to_markdown(model, data=(x, Y))
    assert numbers(found)["Mean absolute error"] == [figure(np.abs(own.mean[:, 0] - Y).mean())]
    assert "no epistemic part" in found


def test_unknown_predictions_are_rejected_and_told():
    params = FOUND.params.copy()
    params[:, [3, 50]] = np.nan
    spoiled = RegressionUncertainty(params, "normal")
    text = to_markdown((spoiled, Y), threshold=99.0)
    assert "2 of 200 predictions hold NaN or infinity" in text
    assert cells(text, "## Interval width")["99.0 %"][2:] == ["198", "2"]
    kept = np.delete(np.arange(N), [3, 50])
    alone = numbers(to_markdown((FOUND[kept], Y[kept])))
    assert numbers(text)["Mean absolute error"] == alone["Mean absolute error"]


def test_the_page_holds_what_its_script_works_on(tmp_path):
    options = {"images": IMAGES, "groups": HOSPITAL, "tolerance": 1.0, "num_examples": 20}
    path = html((FOUND, Y), tmp_path / "page.html", quantity="<b>age</b> & co", **options)
    found = content_of(path)

    def floats(name):
        return np.frombuffer(base64.b64decode(found[name]), "<f4")

    order = np.argsort(WIDTH, kind="stable")
    np.testing.assert_allclose(floats("scores"), WIDTH[order], rtol=1e-6)
    for name, values in (("means", MEAN), ("trues", Y), ("uppers", MEAN + WIDTH / 2)):
        np.testing.assert_allclose(floats(name), values[order], rtol=1e-5, atol=1e-6)
    bits = np.frombuffer(base64.b64decode(found["bits"]), "uint8")
    expected = (ERROR <= WIDTH / 2) + 2 * (ERROR > 1)
    np.testing.assert_array_equal(bits, expected[order])
    assert found["index"] == order.tolist() and found["drawn"] == list(range(N))
    largest = {str(rank) for rank in np.argsort(-ERROR[order])[:6]}
    assert largest <= set(found["pictures"]) and len(found["pictures"]) == 20
    pictures = found["pictures"].values()
    assert all(re.match("data:image/png;base64,", picture["uri"]) for picture in pictures)
    assert all(picture["of"] == [picture["width"], picture["height"]] for picture in pictures)
    page = path.read_text(encoding="utf-8")
    assert "&lt;b&gt;age&lt;/b&gt; &amp; co" in page and "<b>age" not in page
    assert json.loads(json.dumps(found["quantity"])) == "<b>age</b> & co"


def test_many_examples_are_drawn_in_part(tmp_path):
    found = RegressionUncertainty(np.tile(FOUND.params, (1, 50, 1)), "normal")
    path = html((found, np.tile(Y, 50)), tmp_path / "page.html")
    content = content_of(path)
    assert len(content["drawn"]) == 400 and path.stat().st_size < 5e5
    assert content["pictures"] == {}


def test_learned_quantiles_are_reported_within_their_levels():
    quantiles = np.stack([MEAN - SCALE, MEAN, MEAN + SCALE], -1)[None]
    family = {"name": "quantiles", "levels": [0.16, 0.5, 0.84]}
    text = to_markdown((RegressionUncertainty(quantiles, family), Y))
    assert "In their 68 % interval" in text and "likelihood" not in text


@pytest.mark.parametrize(
    "argument, source, options",
    [
        ("labels", (FOUND, Y[:-1]), {}),
        ("labels", (FOUND, np.where(np.arange(N) == 3, np.nan, Y)), {}),
        ("labels", (FOUND, ["a"] * N), {}),
        ("source", (RegressionUncertainty(MEAN[None, :, None], "point"), Y), {}),
        ("source", (RegressionUncertainty(FOUND.params * np.nan, "normal"), Y), {}),
        ("unit", (TWO, np.stack([Y, Y], -1)), {}),
        ("unit", (TWO, np.stack([Y, Y], -1)), {"unit": 2}),
        ("unit", (FOUND, Y), {"unit": 1}),
        ("rule", (FOUND, Y), {"rule": RejectionRule()}),
        ("found", (TWO, np.stack([Y, Y], -1)), {"unit": 0, "rule": RegressionRule()}),
        ("names", (FOUND, Y), {"names": ["a", "b"]}),
        ("from_logits", (FOUND, Y), {"from_logits": True}),
        ("tolerance", (FOUND, Y), {"tolerance": 0}),
        ("quantity", (FOUND, Y), {"quantity": ""}),
        ("data", (FOUND, Y), {"data": (MEAN, Y)}),
        ("num_samples", (FOUND, Y), {"num_samples": 5}),
        ("images", (FOUND, Y), {"images": IMAGES[:7]}),
        ("groups", (FOUND, Y), {"groups": HOSPITAL[:3]}),
        ("threshold", (FOUND, Y), {"threshold": float("nan")}),
        ("title", (FOUND, Y), {"title": " "}),
        ("tolerance", ([0.2, 0.8], [0, 1]), {"tolerance": 1.0}),
        ("quantity", ([0.2, 0.8], [0, 1]), {"quantity": "age"}),
        ("source", (FOUND, Y, Y), {}),
    ],
)
def test_bad_input_is_refused(argument, source, options, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)must.*Received: ") as caught:
        html(source, tmp_path / "page.html", **options)
    assert f"`{argument}`" in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"`{argument}`"):
        to_markdown(source, **options)
