"""The benchmark of heads for segmentation: a run on made-up places, its tables, its squares."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NAMES = "methods", "segmentation"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The script and the files beside it, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(name) for name in NAMES}
        for name in ("nuclei", "pages", "rows", "vessels"):
            found[name] = importlib.import_module(f"evidence.{name}")
        yield found
    finally:
        sys.path.remove(str(FOLDER))
        for name in [n for n in sys.modules if n.split(".")[0] in ("evidence", *NAMES)]:
            del sys.modules[name]


def test_no_table_is_stale(parts):
    script, pages = parts["segmentation"], parts["pages"]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages.PAGES}
    marked = sum(len(pages.marked("segmentation").findall(t)) for t in texts.values())
    assert (marked > 0) == script.RESULTS.is_file()
    if marked:
        found = json.loads(script.RESULTS.read_text(encoding="utf-8"))
        for page, text in texts.items():
            again = pages.written(text, found, "segmentation", script.TABLES)
            assert again == text, f"{page}: benchmarks/segmentation.py --report"


def test_it_runs_on_made_up_places(parts, tmp_path, monkeypatch, capsys):
    script = parts["segmentation"]
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    found = script.main(["--quick", "--cache", str(tmp_path)])
    task = found["tasks"]["made up"]
    assert set(task["runs"]) == {"Dense", "temperature scaling"}
    assert task["runs"]["Dense"]["0"]["dice"] > 0.65
    assert len(task["trials"]["Dense"]) == parts["rows"].TRIALS
    mean, low, high = task["differences"]["temperature scaling"]["dice"]
    assert mean == low == high == 0  # a temperature moves no label
    for name, table in script.TABLES.items():
        assert "Dense" in table(found) and "Dice" in table(found), name
    capsys.readouterr()
    assert script.main(["--quick", "--cache", str(tmp_path)]) == found
    assert capsys.readouterr().out == ""


def test_squares_lie_inside_of_the_view_and_places_are_where_the_pixels_are(parts):
    vessels, rng = parts["vessels"], np.random.default_rng(0)
    truth = np.zeros((200, 180), bool)
    truth[:, 40:44] = True
    image = np.repeat(truth[..., None], 3, axis=-1).astype("uint8") * 200
    view = np.zeros((200, 180), bool)
    view[20:190, 10:170] = True
    image[~view] = 99
    x, labels = vessels.squares(image, truth, view, rng)
    assert x.shape == (vessels.SQUARES, 128, 128, 3) and labels.shape[1:] == (32, 32)
    assert not (x == 99).all(axis=-1).any()
    bright = x.reshape(vessels.SQUARES, 32, 4, 32, 4, 3).mean(axis=(2, 4, 5)) > 100
    assert (bright == labels).mean() > 0.99 and labels.any()
