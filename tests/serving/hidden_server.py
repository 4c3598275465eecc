"""Runs the server of `examples/serving` where TensorFlow alone is to be had.

python hidden_server.py ARGUMENTS OF server.py
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
HIDDEN = ["keras", "tf_keras", "tensorflow_probability", "scipy"]
HIDDEN += [
    f"tfuq.{path.stem}"
    for path in (ROOT / "tfuq").iterdir()
    if path.name not in ("serving", "__pycache__")
]

for name in HIDDEN:
    sys.modules[name] = None  # Python's own way to say: there is no such module
sys.path.insert(0, str(ROOT / "examples" / "serving"))

if __name__ == "__main__":
    from server import main

    main(sys.argv[1:])
