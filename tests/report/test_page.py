"""The page in a real browser: its numbers are Python's, and it can be used by anyone."""

import importlib.util
import re

import numpy as np
import pytest
from browser import executable, launched
from sklearn.metrics import confusion_matrix

import tfuq
from tfuq.report import html
from tfuq.report._accepted import class_table, only_text, rate
from tfuq.selective import RejectionRule

MISSING = not executable() or not importlib.util.find_spec("playwright")
pytestmark = [
    pytest.mark.skipif(MISSING, reason="needs Chromium and the package playwright"),
    pytest.mark.xdist_group("browser"),  # one browser serves all
]

EVIL = "<script>alert(1)</script>"
NAMES = ["naevus", EVIL, "</script><img src=x onerror=alert(2)>", "${x} & \u2028 'q' \"q\""]
RNG = np.random.default_rng(8)
PROBS = RNG.dirichlet(np.full(4, 0.4), size=500)
LABELS = np.where(RNG.random(500) < 0.6, PROBS.argmax(-1), RNG.integers(4, size=500))
CONFIDENCE = PROBS.max(-1).astype("float32")
HOSPITAL = RNG.choice(["north", "<b>south</b>"], 500)
RULE = RejectionRule("entropy", 0.6321)
TILES = ("coverage", "accuracy", "accepted", "rejected", "right", "wrong")


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """A function that writes a page and opens it; all that it asks for is in `page.asked`."""

    def open_page(name, **options):
        path = tmp_path_factory.mktemp("page") / f"{name}.html"
        html((PROBS, LABELS), path, names=NAMES, title=EVIL, **options)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.asked, page.faults = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("dialog", lambda dialog: (page.faults.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    return open_page


@pytest.fixture(scope="module")
def page(opened):
    images = RNG.uniform(size=(500, 8, 8, 3))
    return opened("main", images=images, groups={EVIL: HOSPITAL}, ood={EVIL: {EVIL: 0.5}})


@pytest.fixture(scope="module")
def ruled(opened):
    return opened("ruled", rule=RULE)


def tiles(page):
    return page.evaluate(
        "ids => ids.map(id => Number(document.getElementById(id).value))", list(TILES)
    )


def cells(page, place):
    """Texts of the cells of a table, a list for each row of its body."""
    rows = f"[...document.querySelectorAll('{place} tbody tr')]"
    return page.evaluate(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")


def expected_tiles(accepted):
    right = (PROBS.argmax(-1) == LABELS)[accepted].sum()
    count = accepted.sum()
    return [count / 500, right / count, count, 500 - count, right, count - right]


def class_counts(probs, labels, accepted):
    """Of each class: examples, accepted ones, those called so, answers."""
    answers, each = probs.argmax(-1), np.arange(probs.shape[-1])[:, None]
    parts = [labels == each, accepted & (labels == each)]
    parts += [parts[1] & (answers == each), accepted & (answers == each)]
    return np.stack([part.sum(-1) for part in parts], axis=-1)


def drag(page, threshold):
    """Moves the slider with the mouse, as near to a threshold as pixels go."""
    box = page.locator("#threshold").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 8 + threshold * (box["width"] - 16), middle, steps=4)
    page.mouse.up()


@pytest.mark.parametrize("threshold", [0.35, 0.7, 0.95])
def test_numbers_at_a_threshold_are_those_of_python(page, threshold):
    drag(page, threshold)
    chosen = float(page.locator("#threshold").input_value())
    assert abs(chosen - threshold) < 0.02
    table = tfuq.metrics.rejection_table(LABELS, PROBS, [chosen])
    accepted = np.float32(chosen) <= CONFIDENCE
    found = tiles(page)
    np.testing.assert_allclose(found, expected_tiles(accepted), rtol=1e-12)
    np.testing.assert_allclose(found[:2], [table["coverage"][0], table["accuracy"][0]], rtol=1e-12)
    shown = page.locator("#coverage").inner_text(), page.locator("#accepted").inner_text()
    assert shown == (f"{100 * found[0]:.1f} %", f"{accepted.sum()}")
    matrix = confusion_matrix(LABELS[accepted], PROBS[accepted].argmax(-1), labels=range(4))
    assert [[int(c) for c in row[1:]] for row in cells(page, "#confusion")] == matrix.tolist()
    counts = class_counts(PROBS, LABELS, accepted)
    assert cells(page, "#classes") == class_table(counts, NAMES).rows
    only = page.locator("#only")
    said = only_text(counts, NAMES)
    assert (only.inner_text() == said) if said else only.is_hidden()
    groups = {row[0]: row[1:] for row in cells(page, "#groups")}
    for name in set(HOSPITAL):
        own = name == HOSPITAL
        counts = [str(own.sum()), str((own & accepted).sum())]
        assert groups[name][:2] == counts
    assert f"{accepted.sum()} of 500 accepted" in page.locator("#said").inner_text()


def test_an_exact_threshold_accepts_what_equals_it(page):
    chosen = float(CONFIDENCE[11])
    page.locator("#exact").fill(repr(chosen))
    assert tiles(page)[2] == np.count_nonzero(chosen <= CONFIDENCE)
    page.locator("#exact").fill("1.5")
    assert tiles(page)[2:4] == [0, 500] and page.locator("#accuracy").inner_text() == "–"
    assert "no answer is accepted" in page.locator("#said").inner_text()
    page.locator("#exact").fill("")  # while another is typed
    assert tiles(page)[2:4] == [0, 500]


def test_examples_stand_next_to_the_threshold(page):
    page.locator("#threshold").fill("0.6")
    sides = [
        page.evaluate(
            "id => [...document.querySelectorAll(`#${id} li`)].map(li => Number(li.dataset.index))",
            side,
        )
        for side in ("just-accepted", "just-rejected")
    ]
    above, below = (CONFIDENCE[side] for side in sides)
    assert len(above) == len(below) == 6
    assert (above >= np.float32(0.6)).all() and (np.diff(above) >= 0).all()
    assert (below < np.float32(0.6)).all() and (np.diff(below) <= 0).all()
    assert above.min() < 0.7 and below.max() > 0.5
    index = sides[0][0]
    card = page.locator("#just-accepted li").first
    verdict = "right" if PROBS[index].argmax() == LABELS[index] else "wrong"
    assert verdict in card.inner_text() and NAMES[PROBS[index].argmax()][:7] in card.inner_text()
    assert card.locator("img").evaluate("image => image.naturalWidth") == 8


def test_names_are_text(page):
    assert page.title() == EVIL and page.locator("h1").inner_text() == EVIL
    assert [row[0] for row in cells(page, "#confusion")] == NAMES
    assert {row[0] for row in cells(page, "#groups")} == set(HOSPITAL)
    assert page.locator("main script, main b, [onerror]").count() == 0
    assert page.faults == []


def test_nothing_is_asked_of_the_network(page):
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    tried = page.evaluate(
        """async () => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const asked = await fetch("https://example.org").then(() => true, () => false);
            return [window.ran === undefined, asked];
        }"""
    )
    assert tried == [True, False]  # whatever found its way in
    assert [url for url in page.asked if url.startswith("http")] == []
    page.faults.clear()  # the browser told of both


def test_the_keyboard_is_enough(ruled):
    def focused():
        return ruled.evaluate("document.activeElement.id || document.activeElement.textContent")

    for _ in range(12):
        ruled.keyboard.press("Tab")
        if focused() == "threshold":
            break
    assert focused() == "threshold"
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert ruled.evaluate(style) == "solid"
    ruled.keyboard.press("Home")
    score = RULE.score_of(PROBS)
    assert tiles(ruled)[2] == np.count_nonzero(score <= 0)
    step = float(ruled.locator("#threshold").get_attribute("step"))
    for _ in range(3):
        ruled.keyboard.press("PageUp")
    ruled.keyboard.press("ArrowRight")
    value = float(ruled.locator("#threshold").input_value())
    assert value > step and tiles(ruled)[2] == np.count_nonzero(score <= np.float32(value))
    ruled.keyboard.press("Tab")
    assert focused() == "exact"
    ruled.keyboard.press("Tab")
    assert focused() == "rule: 0.6321"
    ruled.keyboard.press("Enter")
    np.testing.assert_allclose(tiles(ruled), expected_tiles(RULE.accept(PROBS)), rtol=1e-12)
    assert ruled.faults == []


def test_off_the_rule_nothing_is_promised(opened):
    rule = RejectionRule.fit(PROBS, LABELS, target_risk=0.45, confidence=0.8)
    page = opened("promising", rule=rule)
    assert "is promised here" in page.locator("#promise").inner_text()
    page.locator("#exact").fill("0.9")
    wrong = (PROBS.argmax(-1) != LABELS)[np.float32(0.9) <= CONFIDENCE]
    said = page.locator("#promise").inner_text()
    assert said.startswith("Nothing is promised at this threshold, only at the rule's")
    assert rate(int(wrong.sum()), len(wrong)) in said
    page.locator("#marks button").click()
    assert "is promised here" in page.locator("#promise").inner_text()
    assert page.faults == []


def test_the_losses_of_a_rule_follow_the_threshold(opened):
    """The words, the curves and the table are of what the rule was fitted to, as of NumPy here."""
    promised = {"error": 0.5, "false negatives of 0": 0.8, "precision of 2": 0.5}
    rule = RejectionRule.fit(PROBS, LABELS, loss=promised, confidence=0.8)
    page, answers = opened("losses", rule=rule), PROBS.argmax(-1)
    for threshold in (0.5, 0.7):
        page.locator("#exact").fill(str(threshold))
        taken = np.float32(threshold) <= CONFIDENCE
        missed = int((taken & (LABELS == 0) & (answers != 0)).sum())
        precise = int((taken & (LABELS == 2) & (answers == 2)).sum())
        said = page.locator("#said").inner_text()
        of_class = int((taken & (LABELS == 0)).sum())
        assert f"; false negatives of 0 {rate(missed, of_class)}" in said
        assert f"; precision of 2 {rate(precise, int((taken & (answers == 2)).sum()))}" in said
        [row] = [row for row in cells(page, "details") if row[0] == f"{threshold:g}"]
        assert row[-2] == f"{100 * missed / of_class:.1f} %"
    legend = page.locator("#own li").all_inner_texts()
    assert [text.strip() for text in legend] == [
        "error, the rule's promise at most 50.0 %",
        "false negatives of 0, the rule's promise at most 80.0 %",
        "precision of 2, the rule's promise at least 50.0 %",
    ]
    assert page.locator("#curve path.own").count() == 3 == page.locator("#curve .promised").count()
    assert page.faults == []


def test_a_rule_of_errors_has_no_curve_of_its_own(ruled):
    assert not ruled.locator("#own").is_visible() and not ruled.locator("#curve .own").count()


def test_a_cost_of_errors_between_is_a_mean(opened):
    costs = np.where(np.eye(4) > 0, 0.0, 0.4)
    rule = RejectionRule.fit(PROBS, LABELS, loss=costs, target_risk=0.3, confidence=0.8)
    page = opened("costs", rule=rule)
    page.locator("#exact").fill("0.6")
    wrong = (PROBS.argmax(-1) != LABELS)[np.float32(0.6) <= CONFIDENCE]
    assert f"; mean cost {40 * wrong.mean():.1f} %" in page.locator("#said").inner_text()


def test_classes_that_are_never_answered_are_said(browser, tmp_path):
    probs = np.repeat([[0.9, 0.1], [0.8, 0.2], [0.85, 0.15], [0.45, 0.55]], 5, axis=0)
    labels, names = np.repeat([0, 1], 10), ["benign", "melanoma"]
    page = browser.new_page()
    page.goto(html((probs, labels), tmp_path / "only.html", names=names).as_uri())
    for threshold in (0.7, 0.87, 0.5):
        page.locator("#exact").fill(str(threshold))
        counts = class_counts(probs, labels, probs.max(-1) >= threshold)
        said = only_text(counts, names)
        assert bool(said) == (threshold > 0.5)
        only = page.locator("#only")
        assert (only.inner_text() == said) if said else only.is_hidden()
    page.close()


def test_pictures_enlarge_to_their_own_size(opened):
    images = np.broadcast_to(np.linspace(0, 1, 300)[:, None], (500, 300, 200))
    page = opened("pictures", images=images, num_examples=12)
    first = page.locator("#just-accepted button").first
    first.focus()
    page.keyboard.press("Enter")
    shown = page.get_by_role("dialog").get_by_role("img")
    assert shown.evaluate("img => [img.width, img.height, img.naturalWidth]") == [200, 300, 200]
    assert "200 x 300 pixels" in page.locator("#enlarged-title").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#enlarged").evaluate("dialog => dialog.open")
    assert page.evaluate("document.activeElement.className") == "picture"
    assert page.faults == []


def test_ten_classes_fit_and_colours_tell_right_from_wrong(browser, tmp_path):
    probs = RNG.dirichlet(np.full(12, 0.3), size=400)
    labels = np.where(RNG.random(400) < 0.7, probs.argmax(-1), RNG.integers(12, size=400))
    names = [f"class number {k}" for k in range(12)]
    path = html((probs, labels), tmp_path / "twelve.html", names=names)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    assert page.locator("#classes").evaluate("place => place.scrollWidth <= place.clientWidth")
    assert page.locator("#confusion").evaluate("place => place.scrollWidth <= place.clientWidth")
    colours = page.locator("#confusion tbody tr:first-child td").evaluate_all(
        "cells => cells.map(cell => cell.style.backgroundColor)"
    )
    assert colours[0].startswith("rgba(0, 114, 178")
    assert all(colour.startswith("rgba(213, 94, 0") for colour in colours[1:])
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_a_screen_reader_is_told(page):
    page.locator("#threshold").fill("0.5")
    status = page.locator("#status", has_text="≥ 0.5:")
    status.wait_for(state="attached")
    assert status.get_attribute("aria-live") == "polite"
    named = page.get_by_role("slider", name=re.compile("confidence is at least"))
    assert named.count() == 1 and named.get_attribute("aria-valuetext") == "0.5"
    assert page.get_by_role("spinbutton", name="Threshold as a number").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    without = "document.querySelectorAll('table:not(:has(caption)), img:not([alt])').length"
    assert page.evaluate(without) == 0
    assert page.get_by_role("img", name=re.compile("table below")).count() == 2
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels[0] == "H1" and levels.count("H1") == 1


def test_it_fits_a_telephone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#confusion[tabindex='0']").wait_for()  # so that keys can scroll it
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_threshold_below_zero_is_reached(opened):
    scores = RNG.normal(size=500) - 2
    rule = RejectionRule.fit(PROBS, LABELS, score=scores, target_coverage=0.5)
    page = opened("below", rule=rule, score=scores)
    for threshold in (rule.threshold, -3.25, float(scores.min()) + 0.01):
        page.fill("#exact", str(threshold))
        accepted = rule.accept(PROBS, score=scores - (threshold - rule.threshold))
        right = PROBS[accepted].argmax(-1) == LABELS[accepted]
        found = tiles(page)
        assert abs(found[2] - accepted.sum()) <= 1  # an example at the threshold
        assert abs(found[4] - right.sum()) <= 1
        assert float(page.input_value("#threshold")) == pytest.approx(threshold, abs=0.02)
    at = page.evaluate("[...document.querySelectorAll('#curve text')].map(t => t.textContent)")
    assert "-4" in at and "0" in at and "threshold of the given score" in at
    assert page.faults == []
