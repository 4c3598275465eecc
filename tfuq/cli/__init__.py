"""tfuq on the command line: `python -m tfuq evaluate MODEL DATA`, and so on."""

import argparse
import contextlib
import json
import math
import os
import sys
import warnings

from tfuq._arguments import public_dir
from tfuq._version import __version__
from tfuq.cli import calibrate, evaluate, export, monitor, predict, report, serve

__all__ = ["main"]
__dir__ = public_dir(__all__)

COMMANDS = {
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "export": export,
    "report": report,
    "monitor": monitor,
    "serve": serve,
}
EPILOG = """\
a first tour:
  tfuq evaluate  model.keras test.npz
  tfuq calibrate model.keras validation.npz --target-risk 0.1 --out rule.json
  tfuq evaluate  model.keras test.npz --rule rule.json
  tfuq report    model.keras test.npz report.html --rule rule.json
  tfuq predict   model.keras new_images/ predictions.csv --rule rule.json --scale 1
  tfuq export    model.keras served/ --rule rule.json
  tfuq monitor   model.keras monday.npz state.json --rule rule.json
  tfuq serve     served/ --port 8000

`tfuq COMMAND --help` tells more. Answers go to stdout, progress and errors to stderr.

exit code: 0 fine; 1 a promise is broken, or a figure is not what was asked for; 2 bad input."""


def make_parser():
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tfuq",
        description="Models that know what they do not know: measured, calibrated, shipped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tfuq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
        sub.add_argument("--quiet", action="store_true", help="no progress")
        sub.add_argument("--debug", action="store_true", help="errors with where they come from")
    return parser


def main(argv=None):
    """Runs the command line.

    Args:
        argv: Arguments, without the name of the program; None for those of the process.

    Returns:
        The exit code: 0 fine; 1 a promise is broken, or a figure is not what was asked for; 2 bad
        input. (`--help` and bad usage leave by `SystemExit`, with 0 and 2, as argparse does.)

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
    """
    arguments = make_parser().parse_args(argv)
    command = COMMANDS[arguments.command]
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
    if arguments.json:
        print(json.dumps(_plain({"command": arguments.command, "ok": fine, **figures}), indent=1))
    elif text := command.text_of(figures):
        print(text)
    for line in figures.get("failures", ()):
        print(f"tfuq {arguments.command}: {' '.join(line.split())}", file=sys.stderr)
    return 0 if fine else 1


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
