"""Words and bars of progress, on stderr."""

import sys


def progress(text):
    print(text, file=sys.stderr, flush=True)


def bars():
    """1 where a person watches a bar of progress, 0 in pipes and logs, as of Keras' `verbose`."""
    return int(sys.stderr.isatty())
