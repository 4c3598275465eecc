"""Serves a model of `tfuq export` with TensorFlow alone: neither Keras nor the rest of tfuq.

    python server.py demo_output/saved_model --port 8000

It is `tfuq serve`, for a smaller environment: `requirements.txt` beside this file. The folder
`tfuq` of the repository has to be there; of it only `tfuq/serving` is imported, and, with
--monitor, what a monitor needs (which is Keras, too).
"""

import pathlib
import sys
import types

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "tfuq"


def main(arguments=None):
    if "tfuq" not in sys.modules:  # its own file would import Keras and all else
        sys.modules["tfuq"] = types.ModuleType("tfuq")
        sys.modules["tfuq"].__path__ = [str(PACKAGE)]
    from tfuq.serving.command import main as serve

    serve(arguments)


if __name__ == "__main__":
    main()
