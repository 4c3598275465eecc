"""The page of numbers in a real browser: what it shows are Python's numbers."""

import numpy as np
import pytest
import test_page
from test_page import EVIL, browser, cells  # noqa: F401 (a fixture)
from test_report_numbers import ERROR, FOUND, HOSPITAL, IMAGES, WIDTH, N, Y

from tfuq.report import html
from tfuq.report._accepted import rate

pytestmark = test_page.pytestmark


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("page") / "numbers.html"
    options = {"images": IMAGES, "groups": {EVIL: HOSPITAL}, "tolerance": 1.0}
    html((FOUND, Y), path, title=EVIL, quantity=EVIL, **options)
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda message: opened.faults.append(message.text))
    opened.goto(path.as_uri())
    return opened


@pytest.mark.parametrize("threshold", [1.5, 3.25, 6.0])
def test_numbers_at_a_threshold_are_those_of_python(page, threshold):
    page.locator("#exact").fill(str(threshold))
    accepted = np.float32(threshold) >= WIDTH.astype("float32")
    names = ("coverage", "error", "inside", "accepted", "rejected", "wrong")
    found = page.evaluate(
        "ids => ids.map(id => Number(document.getElementById(id).value))", list(names)
    )
    count = accepted.sum()
    inside = (ERROR <= WIDTH / 2)[accepted].mean()
    expected = [count / N, ERROR[accepted].mean(), inside, count, N - count]
    np.testing.assert_allclose(found, [*expected, (ERROR > 1)[accepted].sum()], rtol=1e-5)
    groups = {row[0]: row[1:] for row in cells(page, "#groups")}
    for name in ("north", "south"):
        own = name == HOSPITAL
        assert groups[name][:2] == [str(own.sum()), str((own & accepted).sum())]
    worst = page.evaluate(
        "[...document.querySelectorAll('#worst li')].map(li => Number(li.dataset.index))"
    )
    order = np.argsort(-ERROR)
    assert worst == order[accepted[order]][:6].tolist()
    refused = page.locator("#scatter g.refused").count()
    assert refused == N - count


def test_the_promise_and_pictures_at_their_own_size(page):
    page.locator("#exact").fill("3.25")
    accepted = np.float32(3.25) >= WIDTH.astype("float32")
    said = page.locator("#promise").inner_text()
    assert said.startswith("Nothing is promised: there is no rule. Of the accepted here ")
    assert rate(int((ERROR > 1)[accepted].sum()), int(accepted.sum())) in said
    page.locator("#worst button").first.click()
    shown = page.get_by_role("dialog").get_by_role("img")
    height, width = IMAGES[0].shape[:2]
    assert shown.evaluate("img => [img.width, img.height]") == [width, height]
    page.keyboard.press("Escape")


def test_names_are_text_and_nothing_fails(page):
    assert page.title() == EVIL and page.locator("main script, [onerror]").count() == 0
    assert page.faults == []
    assert page.evaluate("document.querySelectorAll('table:not(:has(caption))').length") == 0
    assert page.locator("svg[role=img][aria-label*='table below']").count() >= 2
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
