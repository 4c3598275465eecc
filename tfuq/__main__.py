"""The command `tfuq`, and `python -m tfuq`."""

import contextlib
import os
import sys
import tempfile

from tfuq import cli
from tfuq.cli.parser import make_parser


def main():
    """Runs the command line of this process, and returns its exit code."""
    make_parser().parse_args()  # help, the version and bad usage end here, in no time
    # TensorFlow's lines about processors and libraries are for no user; errors are raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _stderr_kept():
        _load()
    return cli.main()


@contextlib.contextmanager
def _stderr_kept():
    """Keeps what libraries in C++ write to stderr meanwhile, and shows it if something fails."""
    stderr = sys.__stderr__.fileno()
    before = os.dup(stderr)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), stderr)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, stderr)
            os.close(before)


def _load():
    """Imports what registers classes with Keras, which `tfuq` itself leaves out in a command."""
    from tfuq import (  # noqa: F401
        callbacks,
        convert,
        corruptions,
        ensembles,
        layers,
        losses,
        metrics,
        ood,
        optimizers,
        preprocessing,
        selective,
    )


if __name__ == "__main__":
    sys.exit(main())
