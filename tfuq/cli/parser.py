"""The parser of all commands, which imports nothing of TensorFlow: help comes at once."""

import argparse

from tfuq._version import __version__
from tfuq.cli.options import calibrate, evaluate, export, monitor, predict, report, serve, verify

OPTIONS = {
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "export": export,
    "report": report,
    "monitor": monitor,
    "serve": serve,
    "verify": verify,
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
  tfuq verify    served/

`tfuq COMMAND --help` tells more. Answers go to stdout, progress and errors to stderr.

exit code: 0 fine; 1 a promise is broken, or a figure is not what was asked for; 2 bad input;
3 done, but for images that were left out, which are named."""


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
    for name, command in OPTIONS.items():
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
