"""The example of why a model errs, and the gallery."""

import json
import pathlib
import re

import pytest
from PIL import Image
from test_ood_example import ROOT, load_script, script  # noqa: F401 (a fixture)

from tfuq import plots


@pytest.mark.slow
def test_it_runs_from_end_to_end(script, tmp_path, capsys, monkeypatch):  # noqa: F811
    """On networks too poor to say anything; what they say is the next test's."""
    example = script("examples/why_it_errs.py")
    few = {"runs": 2, "epochs": 2, "width": 4, "stages": 1, "judged": 8}
    monkeypatch.setattr(example, "QUICK", example.Settings(**few))
    monkeypatch.setattr(example, "CONFIDENT", 0.0)
    example.main(["--quick", "--output", str(tmp_path / "new")])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert set(found) == {"accuracy", "pairs", "maps", "centre", "confounder", "corrections"}
    assert set(found["confounder"]["accuracy"]) == {"clean", "ink", "ink, removed"}
    assert "Field of view and light" in said
    for name in ("pairs.png", "confounder.png", "corrections.png"):
        with Image.open(tmp_path / "new" / name) as figure:
            assert min(figure.size) > 200


@pytest.mark.slow
def test_quick_run_says_what_was_planted(script, tmp_path, capsys):  # noqa: F811
    example = script("examples/why_it_errs.py")
    example.main(["--quick", "--output", str(tmp_path / "new")])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    for name in ("pairs.png", "maps.png", "confounder.png", "corrections.png"):
        with Image.open(tmp_path / "new" / name) as figure:
            assert min(figure.size) > 200
    assert re.search(r"\| \d and \d \| [\d.]+ ± [\d.]+ \| [\d.]+ \| [12] of 2 \|", said)
    assert found["centre"]["hidden_accuracy"][0] == found["centre"]["kept_accuracy"][-1] == 1
    accuracy = {
        name: row["ink on other classes"] for name, row in found["confounder"]["accuracy"].items()
    }
    assert accuracy["ink"] < accuracy["ink, removed"] - 0.2
    assert accuracy["ink, removed"] > found["confounder"]["accuracy"]["clean"]["clean images"] - 0.1
    assert min(found["confounder"]["points_at_ink"].values()) > 0.7
    corrected = list(found["corrections"].values())
    assert corrected[2] > corrected[1] + 0.1 and corrected[4] > corrected[3] + 0.1


def test_gallery_shows_every_picture():
    folder = ROOT / "docs" / "gallery"
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^## `plots\.(\w+)`$", text, re.MULTILINE))
    assert named == set(plots.__all__) - {"error_map"}  # which is an array
    scripts = re.findall(r"^## `(examples/[\w/]+\.py)`$", text, re.MULTILINE)
    assert len(set(scripts)) == len(scripts) >= 6
    assert all((ROOT / path).is_file() for path in scripts)
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        with Image.open(folder / picture) as image:
            assert min(image.size) > 200
    assert (folder / "report.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", ["screen", "print"])
def test_gallery_is_made_by_its_script(width, tmp_path):
    load_script("docs/gallery/make.py").main(["--output", str(tmp_path), "--width", width])
    kept = {path.name for path in pathlib.Path(ROOT / "docs" / "gallery").glob("*.png")}
    made = {path.name for path in tmp_path.glob("*.png")}
    assert made in (kept, kept - {"report.png"})
    pixels = {"screen": 500, "print": 900}[width]
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 0.7 * pixels
