"""The numbered tutorials run with --quick; each draws a picture and says what was learned."""

import pathlib
import re
import runpy
import sys

import matplotlib
import matplotlib.pyplot as plt
import pytest

pytestmark = pytest.mark.every_case
FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "tutorials"
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
# What a script says must have: figures in [0, 1] or a table.
FIGURE = re.compile(r"\b[01]\.\d{2,}|\d\d\.\d %")
FAST = ("04", "06")  # the others train networks of the same kinds


def cases():
    for script in SCRIPTS:
        marks = [] if script.name[:2] in FAST else [pytest.mark.slow]
        yield pytest.param(script, id=script.stem, marks=marks)


@pytest.mark.parametrize("script", cases())
def test_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--quick"])
    matplotlib.use("agg")
    plt.close("all")
    runpy.run_path(str(script), run_name="__main__")
    assert FIGURE.search(capsys.readouterr().out), "says no figure"
    assert plt.get_fignums(), "draws nothing"
    for number in plt.get_fignums():
        assert any(axis.has_data() for axis in plt.figure(number).axes)
    plt.close("all")


def test_there_are_twelve():
    assert [script.name[:2] for script in SCRIPTS] == [f"{n:02d}" for n in range(1, 13)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_says_what_was_learned_and_how_it_is_run(script):
    text = script.read_text(encoding="utf-8")
    assert text.count("**What was learned.**") == 1
    assert f"python examples/tutorials/{script.name} --quick" in text
    title, line = text.removeprefix('"""').splitlines()[:2]
    assert line == "=" * len(title)
