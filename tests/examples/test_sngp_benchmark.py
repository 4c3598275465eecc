"""The tables of SNGP in benchmarks/README.md are those of the results."""

import json
import pathlib
import sys

import pytest
from test_examples import load_script

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield load_script("benchmarks/sngp.py")
    sys.modules.pop("turns", None)


def test_tables_are_those_of_the_results(script, capsys):
    found = json.loads((ROOT / "benchmarks" / "sngp.json").read_text(encoding="utf-8"))
    script.report(found)
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 6 and not [line for line in printed if line not in text]


def test_an_error_is_told_in_the_place_of_a_difference(script, capsys):
    said = {form: 0.0 for form in script.FORMS}
    theirs = {**said, "keras": "ValueError: no such layer", "weights": 0.5}
    script.report({"saving": {"tfuq": said, "keras_proba": theirs}})
    out = capsys.readouterr().out
    assert "| `.keras` | same | ValueError: no such layer |" in out
    assert "| weights | same | differs by 0.5 |" in out
