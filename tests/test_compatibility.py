"""What docs/compatibility.md says works, works: on its small networks; the others by its script."""

import importlib.util
import inspect
import pathlib

import keras
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
    recorded = compatibility.results(name)
    trial = compatibility.Trial(name)
    for cell in cells:
        said = compatibility.tried(trial, cell)
        assert said == recorded[cell], f"{cell}; if it is right, run benchmarks/compatibility.py"


@pytest.mark.parametrize("name", ["vit", "unet", "subclassed"])
def test_what_worked_works(name):
    check(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "unet", "subclassed", "mobilenetv3"])
def test_every_cell(name):
    check(name, compatibility.CELLS)


def test_the_page_is_that_of_the_results():
    assert compatibility.PAGE.read_text() == compatibility.page()


@pytest.mark.parametrize("name", compatibility.CHEAPEST_FIRST)
def test_every_network_has_all_cells_and_no_failure(name):
    found = compatibility.results(name)
    assert all(said == "works" or said.startswith("refused: ") for said in found.values())
    missing = [cell for cell in compatibility.CELLS if cell not in found]
    if missing:
        pytest.skip(f"not run: {', '.join(missing)}")


def test_every_family_of_keras_is_among_the_networks():
    """A family is a module of `keras.applications`."""
    same = {"imagenet_utils": None, "resnet50": "resnet", "vgg16": "vgg", "vgg19": "vgg"}
    modules = [name for name, each in vars(keras.applications).items() if inspect.ismodule(each)]
    families = {same.get(name, name.replace("_", "")) for name in modules} - {None}
    assert families == set(compatibility.FAMILIES)
