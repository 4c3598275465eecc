"""How soon a report of 20,000 examples answers its slider, in headless Chromium.

    make bench-report-page

The page is written, opened from the disk, and its slider moved to 200 places. A time is that from
the event of the slider to the end of the script's work and of the layout that follows, as the page
itself measures it. It must stay under 50 ms.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np

from tfuq.report import html

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "report"))
from browser import launched

MOVES = """() => {
    const slider = document.getElementById("threshold");
    const times = [];
    for (let i = 0; i < 200; i++) {
        const start = performance.now();
        slider.value = (i * 61 % 200) / 200;
        slider.dispatchEvent(new Event("input"));
        document.body.getBoundingClientRect();
        times.push(performance.now() - start);
    }
    return times;
}"""


def data(count, classes, rng):
    """Probabilities, labels and pictures of noise, which PNG cannot compress."""
    probs = rng.dirichlet(np.full(classes, 0.3), size=count)
    labels = np.where(rng.random(count) < 0.7, probs.argmax(-1), rng.integers(classes, size=count))
    images = rng.integers(256, size=(count, 32, 32, 3), dtype="uint8")
    return (probs, labels), images


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=20_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| classes | megabytes | seconds to write | median ms | longest ms |")
    print("|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        for classes in (2, 7, 20, 1000):
            source, images = data(options.examples, classes, rng)
            path, start = pathlib.Path(folder) / "page.html", time.perf_counter()
            html(source, path, images=images, groups=source[1] % 5)
            seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
            page = browser.new_page()
            page.goto(path.as_uri())
            times = page.evaluate(MOVES)
            figures = f"{size:.2f} | {seconds:.1f} | {np.median(times):.1f} | {max(times):.1f}"
            print(f"| {classes} | {figures} |", flush=True)
            assert max(times) < 50


if __name__ == "__main__":
    main()
