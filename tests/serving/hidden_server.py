"""Runs the server of `examples/serving` where TensorFlow alone is to be had.

python hidden_server.py ARGUMENTS OF server.py
"""

import pathlib
import sys

HIDDEN = ("tfuq", "keras", "tf_keras", "tensorflow_probability", "scipy")
SERVING = pathlib.Path(__file__).parents[2] / "examples" / "serving"

for name in HIDDEN:
    sys.modules[name] = None  # Python's own way to say: there is no such module
sys.path.insert(0, str(SERVING))

if __name__ == "__main__":
    from server import main

    main(sys.argv[1:])
