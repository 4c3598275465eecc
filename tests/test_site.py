"""The site that `make docs` builds, in a browser: every page, no error, no dead link, a phone.

Skips, saying so, where the site is not built or there is no Chromium.
"""

import functools
import http.server
import importlib.util
import pathlib
import posixpath
import threading
import urllib.parse

import pytest
from report.browser import executable, launched

import tfuq

SITE = pathlib.Path(__file__).parents[1] / "docs" / "_build" / "html"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make docs` has not been run"),
    pytest.mark.skipif(
        not executable() or not importlib.util.find_spec("playwright"),
        reason="needs Chromium and the package playwright",
    ),
]
PHONE = {"width": 390, "height": 844}
LINKS = "all => all.map(each => each.getAttribute('href'))"
# How far a page can be scrolled sideways, in pixels: its own width, not that of hidden drawers.
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Says nothing."""


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    with launched() as browser:
        yield browser


def pages():
    found = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return [page for page in found if not page.startswith(("_static", "_modules", "genindex"))]


def leads_nowhere(page, link):
    """Whether a link of a page is inside the site and there is no such file."""
    parts = urllib.parse.urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return False
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), parts.path))
    target = SITE / urllib.parse.unquote(path)
    return not (target.is_file() or (target / "index.html").is_file())


def test_every_page(address, chromium, counts):
    """One tab at a phone's width: no console error, no dead link, nothing wider than the phone."""
    tab, faults = chromium.new_page(viewport=PHONE), []
    tab.on("console", lambda said: said.type == "error" and faults.append(said.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    wrong = {}
    for page in pages():
        faults.clear()
        tab.goto(f"{address}/{page}", wait_until="load")
        links = tab.eval_on_selector_all("a[href]", LINKS)
        found = [*faults, *(f"dead: {link}" for link in links if leads_nowhere(page, link))]
        if (wide := tab.evaluate(SIDEWAYS)) > 1:
            found.append(f"{wide} pixels too wide")
        if found:
            wrong[page] = found
    counts("pages of the site in a browser", len(pages()))
    assert len(pages()) > 300
    assert not wrong


def test_every_page_names_its_version():
    """And where the pages of another one are; without a browser."""
    for page in pages():
        if not page.startswith(("search", "404")):
            text = (SITE / page).read_text(encoding="utf-8")
            assert f"Version {tfuq.__version__}" in text, page
            assert "versions.html" in text or page == "versions.html", page


def test_names_of_other_packages_are_links(address, chromium):
    """From the inventories of docs/inventories: offline, without a warning."""
    tab = chromium.new_page()
    for page, site in (
        (
            "api/names/layers/DenseVariational.html",
            "https://keras.io/api/layers/core_layers/dense/",
        ),
        ("api/names/predictive/score_dataset.html", "https://www.tensorflow.org/api_docs/"),
        (
            "api/names/metrics/bootstrap_interval.html",
            "https://docs.scipy.org/doc/scipy/reference/",
        ),
    ):
        tab.goto(f"{address}/{page}", wait_until="load")
        links = tab.eval_on_selector_all("a.external", LINKS)
        assert any(link.startswith(site) for link in links), page


def test_search_finds_a_name(address, chromium):
    tab = chromium.new_page()
    tab.goto(f"{address}/search.html?q=VBLLDense", wait_until="load")
    tab.wait_for_selector("#search-results li a", timeout=60_000)
    found = tab.eval_on_selector_all("#search-results li a", LINKS)
    assert any("VBLLDense" in link for link in found)


def test_dark_mode_and_keyboard(address, chromium):
    tab = chromium.new_page()
    tab.goto(f"{address}/index.html", wait_until="load")
    color = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(color)
    for _ in range(3):  # automatic, light, dark
        tab.eval_on_selector(".theme-toggle", "each => each.click()")
        if tab.evaluate(color) != light:
            break
    assert tab.evaluate(color) != light
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") in {"A", "BUTTON", "INPUT"}


def test_code_can_be_copied(address, chromium):
    tab = chromium.new_page()
    tab.goto(f"{address}/start.html", wait_until="load")
    tab.wait_for_selector("button.copybtn", state="attached", timeout=30_000)
