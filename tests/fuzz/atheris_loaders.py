"""Coverage-guided fuzzing of the loaders, by atheris (libFuzzer):

    python tests/fuzz/atheris_loaders.py -max_total_time=60 [any option of libFuzzer]

The first byte of an input chooses the loader; good files are where it begins. It tells how many
inputs it has run ("Done ... runs"), and writes what made another error to a file `crash-...`.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent

import atheris  # noqa: E402
import keras  # noqa: E402, F401 (not instrumented: only the package is)
import tensorflow as tf  # noqa: E402, F401

with atheris.instrument_imports(include=["tfuq"]):
    sys.path.insert(0, str(HERE))
    from fuzz_loaders import accepts, make_targets

    TARGETS = make_targets()

LOADERS = [loader for loader, _ in TARGETS.values()]


def one(data):
    """Runs the loader that the first byte names."""
    if data:
        accepts(LOADERS[data[0] % len(LOADERS)], data[1:])


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tfuq_corpus_"))
    for number, (_, seeds) in enumerate(TARGETS.values()):
        for place, seed in enumerate(seeds):
            (folder / f"{number}_{place}").write_bytes(bytes([number]) + seed)
    limits = ["-max_len=20000", "-timeout=30", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
