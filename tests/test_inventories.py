"""The inventories of docs/inventories, by which the site links names of other packages."""

import importlib.util
import pathlib
import pydoc

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "inventories"
ROOTS = {"keras": keras, "tf": tf, "tfp": tfp}


def load_make():
    spec = importlib.util.spec_from_file_location("make_inventories", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def exists(name):
    first, *rest = name.split(".")
    thing = ROOTS.get(first)
    if thing is None:
        return pydoc.locate(name) is not None
    for part in rest:
        thing = getattr(thing, part, None)
    return thing is not None


@pytest.mark.parametrize("project", make.PROJECTS)
def test_names_exist_and_have_the_page_that_the_script_says(project):
    found = make.read(FOLDER / f"{project}.inv")
    assert found
    for name, page in found.items():
        assert exists(name), name
        assert make.address(name) == (project, page)


def test_most_of_what_is_written_is_there():
    """A name that came since leads nowhere: `python docs/inventories/make.py` makes them anew."""
    known = {name for project in make.PROJECTS for name in make.read(FOLDER / f"{project}.inv")}
    written = set(make.referred())
    assert len(written - known) <= len(written) / 10, written - known


def test_the_longest_beginning_decides_and_a_name_without_a_page_raises():
    assert make.address("keras.Model.fit") == ("keras", "models/model_training_apis/")
    assert make.address("keras.layers.Unheard") == ("keras", "layers/")
    page = "api_docs/python/tf/data/Dataset"
    assert make.address("tf.data.Dataset.shuffle") == ("tensorflow", f"{page}#shuffle")
    with pytest.raises(KeyError, match=r"keras\.unheard"):
        make.address("keras.unheard.Of")
