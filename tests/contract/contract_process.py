"""The contract across processes: what is written here is loaded by `new_process.py`."""

import os
import pathlib

import keras
import numpy as np
import processes
from contract import arrays, assert_close, perturb, whole
from contract_metrics import BATCH, passing
from new_process import BATCHES, READERS

import tfuq

LAYER_ARTIFACTS = [
    name for readers in READERS.values() for name in readers if name != "compiled.keras"
]
CLASS_ARTIFACTS = ("functional.keras", "saved_model")
CASE_ARTIFACTS = ("functional.keras",)


def layer_artifacts(cases):
    """What each case writes, as `(case, name, whether it is slow)`.

    The first case of a family writes all there is, that of a class is saved and exported, further
    ones of a class are saved. `make test` saves each class, exports each family, and has all of an
    example.
    """
    layers, families = set(), set()
    for case in cases:
        family = case.layer.__bases__[0]
        is_further = case.layer in layers or case.is_twin
        is_first = family not in families and not case.is_twin
        names = CASE_ARTIFACTS if is_further else CLASS_ARTIFACTS
        quick = () if is_further else CLASS_ARTIFACTS if is_first else CASE_ARTIFACTS
        if is_first or case.is_example:
            names = LAYER_ARTIFACTS
        if case.is_example:
            quick = names
        layers.add(case.layer)
        families |= {family} if is_first else set()
        for name in names:
            yield case, name, name not in quick


def expected_answers(model, x):
    return [a for batch in BATCHES for a in arrays(model(x[:batch]))]


def write_layer(case, folder, artifacts=LAYER_ARTIFACTS):
    """Writes artifacts of a layer; returns what each is to answer, by its name."""
    x, images = case.inputs(), case.inputs(shape=case.more_shapes[-1])
    flags = {"repeats": case.repeats, "takes_none": case.takes_none}
    np.savez(folder / "inputs.npz", x=x, images=images, **flags)
    model = whole(case)
    perturb(model)
    expected = dict.fromkeys(
        [name for name in artifacts if name in WHOLE], expected_answers(model, x)
    )
    for name in expected:
        WHOLE[name](model, folder / name)
    if "sequential.keras" in artifacts:
        stack = case.prepared(keras.Sequential([keras.Input(case.shape), case.make()]))
        perturb(stack)
        stack.save(folder / "sequential.keras")
        expected["sequential.keras"] = expected_answers(stack, x)
    if "images_saved_model" in artifacts:
        model = whole(case, (*[None] * (images.ndim - 2), images.shape[-1]))
        perturb(model)
        model.export(folder / "images_saved_model", verbose=False)
        expected["images_saved_model"] = expected_answers(model, images)
    return expected


def write_weights(model, path):
    path.with_name("weights.json").write_text(model.to_json())
    model.save_weights(path)


WHOLE = {
    "functional.keras": lambda model, path: model.save(path),
    "model.weights.h5": write_weights,
    "saved_model": lambda model, path: model.export(path, verbose=False),
}


def write_metric(case, folder):
    y, x, weight = case.data()
    model = passing(case, x.shape[-1], run_eagerly=True)
    expected = model.evaluate(x, y, BATCH, sample_weight=weight, verbose=0)
    model.save(folder / "compiled.keras")
    np.savez(folder / "inputs.npz", x=x, y=y, weight=weight)
    return {"compiled.keras": expected}


def start(world, folder):
    """Starts `new_process.py` with no more than the environment and, for tfuq, where it lies."""
    script = pathlib.Path(__file__).with_name("new_process.py")
    paths = [str(pathlib.Path(tfuq.__file__).parents[1])] if world == "tfuq" else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}}
    imported = {"tfuq": "keras", "tensorflow": "tensorflow"}[world]  # `tfuq` by the script itself
    return processes.start(script, world, folder, **options, world=imported)


def run_all(folder):
    """Runs one new process for each world, both at once, to their ends."""
    for process in [start(world, folder) for world in READERS]:
        said = process.communicate()
        assert process.returncode == 0, said


def compare(case_folder, name, expected, repeats=True):
    error = case_folder / f"{name}.error"
    assert not error.exists(), error.read_text()
    with np.load(case_folder / f"{name}.npz") as found:
        found = [found[key] for key in found.files]
    if repeats:
        assert_close(found, expected)
    else:
        assert [array.shape for array in found] == [array.shape for array in expected]
