"""Loads what the contract wrote, in a process that has not run the code that wrote it.

    python new_process.py tfuq FOLDER         models, weights and metrics, after `import tfuq`
    python new_process.py tensorflow FOLDER   SavedModels, where nothing but TensorFlow is to be had

Each folder in FOLDER is a case: `inputs.npz` and the artifacts. The answers are written beside
them, one `.npz` per artifact, or what went wrong, as `.error`.
"""

import pathlib
import sys
import traceback

import numpy as np

BATCHES = (1, 3, None)  # examples given at once; None is all


def answers(call, x):
    """What `call` says to batches of several sizes, as a flat list of arrays."""
    return [np.asarray(array, "float32") for batch in BATCHES for array in call(x[:batch])]


def read_keras(path, inputs):
    import keras

    model = keras.models.load_model(path, safe_mode=True)
    return answers(lambda x: keras.tree.flatten(model(x)), inputs["x"])


def read_weights(path, inputs):
    import keras

    model = keras.models.model_from_json(path.with_name("weights.json").read_text())
    model.load_weights(path)
    return answers(lambda x: keras.tree.flatten(model(x)), inputs["x"])


def read_compiled(path, inputs):
    import keras

    model = keras.models.load_model(path, safe_mode=True)
    return model.evaluate(inputs["x"], inputs["y"], 4, sample_weight=inputs["weight"], verbose=0)


def read_saved_model(path, inputs):
    import tensorflow as tf

    model = tf.saved_model.load(str(path))
    x = inputs["images" if path.name.startswith("images") else "x"]
    served = model.serve(x)
    named = served._asdict() if hasattr(served, "_asdict") else {"output_0": served}
    by_signature = model.signatures["serving_default"](tf.constant(x))
    assert by_signature.keys() == named.keys(), (by_signature.keys(), named.keys())
    for name in named.keys() if inputs["repeats"] else ():
        np.testing.assert_allclose(by_signature[name], named[name], rtol=1e-6, atol=1e-6)
    if inputs["takes_none"]:
        assert all(tensor.shape[0] == 0 for tensor in tf.nest.flatten(model.serve(x[:0])))
    return answers(lambda rows: tf.nest.flatten(model.serve(rows)), x)


READERS = {
    "tfuq": {
        "compiled.keras": read_compiled,
        "functional.keras": read_keras,
        "sequential.keras": read_keras,
        "model.weights.h5": read_weights,
    },
    "tensorflow": {"saved_model": read_saved_model, "images_saved_model": read_saved_model},
}


def hide(*packages):
    """Makes each package one that cannot be imported, and proves it."""
    for package in packages:
        assert sys.modules.get(package) is None
        sys.modules[package] = None  # Python's own way to say: there is no such module
        try:
            __import__(package)
        except ImportError:
            continue
        raise AssertionError(f"{package} can be imported")


def main(world, folder):
    if world == "tfuq":
        import tfuq  # noqa: F401 (registers the classes; nothing else does)
    else:
        hide("tfuq", "keras", "tf_keras", "tensorflow_probability")
    for inputs in pathlib.Path(folder).glob("*/inputs.npz"):
        for name, read in READERS[world].items():
            path = inputs.with_name(name)
            if path.exists():
                try:
                    np.savez(f"{path}.npz", *read(path, np.load(inputs)))
                except Exception:
                    pathlib.Path(f"{path}.error").write_text(traceback.format_exc())
    if world == "tensorflow":
        assert not [name for name in sys.modules if name.startswith("tfuq.")]


if __name__ == "__main__":
    main(*sys.argv[1:])
