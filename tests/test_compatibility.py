"""What docs/compatibility.md says works, works: on its small networks; the others by its script."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location(
    "compatibility", ROOT / "benchmarks" / "compatibility.py"
)
compatibility = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compatibility)
QUICK = ("replace_head", "mc_dropout", "variational", "Energy", "saved")
# Of ONNX and of what is traced anew.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def check(name, cells):
    recorded = json.loads((compatibility.RESULTS / f"{name}.json").read_text())
    trial = compatibility.Trial(name)
    for cell in cells:
        said = compatibility.tried(trial, cell)
        assert said == "works" or said.startswith("refused: "), f"{cell}: {said}"
        assert said == "works" or recorded[cell] != "works", f"{cell}: {said}"


@pytest.mark.parametrize("name", ["vit", "unet", "subclassed"])
def test_what_worked_works(name):
    check(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "unet", "subclassed", "mobilenetv3"])
def test_every_cell(name):
    check(name, compatibility.CELLS)


def test_the_page_is_that_of_the_results():
    assert compatibility.PAGE.read_text() == compatibility.page()


def test_every_family_has_results_without_a_failure():
    for name in compatibility.CHEAPEST_FIRST:
        path = compatibility.RESULTS / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        assert not [said for said in found.values() if said.startswith("fails")], name
