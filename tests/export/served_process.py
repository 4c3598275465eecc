"""Loads exported models where TensorFlow alone is to be had, and writes down what they say.

    python served_process.py FOLDER

Each folder in FOLDER is a case: `inputs.npz` and the SavedModel `moved`. The answers are written
beside them as `served.npz`: for batches of 1, 7 and 64 rows, each asked for twice.
"""

import pathlib
import sys

import numpy as np

BATCHES = (1, 7, 64)
HIDDEN = ("tfuq", "keras", "tf_keras", "tensorflow_probability", "scipy")


def is_hidden(name):
    return name.split(".")[0] in HIDDEN


def main(folder):
    for name in HIDDEN:
        sys.modules[name] = None  # Python's own way to say: there is no such module
        try:
            __import__(name)
        except ImportError:
            continue
        raise AssertionError(f"{name} can be imported")
    import tensorflow as tf

    for path in sorted(pathlib.Path(folder).glob("*/inputs.npz")):
        inputs, answers = dict(np.load(path)), {}
        loaded = tf.saved_model.load(str(path.with_name("moved")))
        serve = loaded.signatures["serving_default"]
        for size in BATCHES:
            batch = {name: tf.constant(array[:size]) for name, array in inputs.items()}
            for turn in (1, 2):
                answers |= {f"{size}/{turn}/{k}": v.numpy() for k, v in serve(**batch).items()}
        np.savez(path.with_name("served.npz"), **answers)
    assert not [name for name, module in sys.modules.items() if module and is_hidden(name)]


if __name__ == "__main__":
    main(sys.argv[1])
