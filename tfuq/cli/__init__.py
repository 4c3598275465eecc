"""tfuq on the command line: `python -m tfuq evaluate MODEL DATA`, and so on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence

from tfuq.cli.parser import OPTIONS, make_parser

__all__ = ["main"]

_MOST_NAMED = 20

COMMANDS = tuple(OPTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments, without the name of the program; None for those of the process.

    Returns:
        The exit code: 0 fine; 1 a promise is broken, or a figure is not what was asked for; 2 bad
        input; 3 done, but for images that were left out. (`--help` and bad usage leave by
        `SystemExit`, with 0 and 2, as argparse does.)

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.cli import main

    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    model.save("model.keras")
    x = np.random.default_rng(0).normal(size=(400, 2))
    np.savez("test.npz", x=x, y=x.argmax(-1))
    print(main(["evaluate", "model.keras", "test.npz", "--min-accuracy", "0.9"]))  # 0
    ```

    See also: `tfuq.export.export`, `tfuq.report.html`, `tfuq.serving.serve`.
    """
    arguments = make_parser().parse_args(argv)
    command = _command(arguments.command)
    try:
        with _progress(arguments.quiet):
            figures, fine = command.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"tfuq {arguments.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tfuq {arguments.command}: interrupted", file=sys.stderr)
        return 130
    if skipped := getattr(arguments, "skipped", None):
        figures = {**figures, "skipped": skipped}
    if arguments.json:
        print(json.dumps(_plain({"command": arguments.command, "ok": fine, **figures}), indent=1))
    elif text := command.text_of(figures):
        print(text)
    for line in figures.get("failures", ()):
        print(f"tfuq {arguments.command}: {' '.join(line.split())}", file=sys.stderr)
    for text in _told_of(skipped or ()):
        print(f"tfuq {arguments.command}: {text}", file=sys.stderr)
    return 1 if not fine else 3 if skipped else 0


def _told_of(skipped):
    """A line for each of the first images that were left out, and one that counts them."""
    for each in skipped[:_MOST_NAMED]:
        yield f"left out {each['file']}: {' '.join(each['why'].split())}"
    if skipped:
        more = len(skipped) - _MOST_NAMED
        rest = f", {more} of which are not named here (see --json)" if more > 0 else ""
        yield f"{len(skipped)} images were left out{rest}"


def __dir__():
    return list(__all__)


def _command(name):
    """The module of a command; here, as they import TensorFlow."""
    from tfuq.cli import calibrate, evaluate, export, monitor, predict, report, serve, verify

    commands = (calibrate, evaluate, export, monitor, predict, report, serve, verify)
    return {command.__name__.rpartition(".")[2]: command for command in commands}[name]


@contextlib.contextmanager
def _progress(quiet):
    """What is printed meanwhile goes to stderr, or nowhere; warnings are a line each."""
    show = warnings.showwarning

    def line(message, category, *_):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(open(os.devnull, "w")) if quiet else sys.stderr
        opened.enter_context(contextlib.redirect_stdout(stream))
        if quiet:
            opened.enter_context(contextlib.redirect_stderr(stream))
        warnings.showwarning = line
        opened.callback(setattr, warnings, "showwarning", show)
        yield


def _one_line(error):
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _plain(value):
    """As JSON can hold it: what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
