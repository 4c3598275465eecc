"""Words and bars of progress, and notices, on stderr."""

import sys


def progress(text):
    """Tells a person at a terminal what goes on; in pipes and logs nobody waits for it."""
    if bars():
        print(text, file=sys.stderr, flush=True)


def notice(text):
    """Tells what the answer leaves out, wherever stderr goes."""
    print(text, file=sys.stderr, flush=True)


def bars():
    """1 where a person watches a bar of progress, 0 in pipes and logs, as of Keras' `verbose`."""
    return int(sys.stderr.isatty())
