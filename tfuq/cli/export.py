"""tfuq export: a SavedModel with the uncertainty and the decision in it."""

import pathlib

from tfuq import export as exporting
from tfuq._command_inputs import (
    MODEL_HELP,
    add_model,
    add_prediction,
    load_calibration,
    load_model,
    load_rule,
    prediction_options,
    progress,
)

HELP = "writes a SavedModel with the uncertainty and the decision in it"
EPILOG = f"""\
{MODEL_HELP}
(A SavedModel is exported already.)

What is written is loaded by TensorFlow alone, `tf.saved_model.load(OUT)`; its `serve` returns
probabilities, label, entropies and, with a rule, `accept`.

examples:
  tfuq export model.keras served/ --rule rule.json
  tfuq export model.keras served/ --calibration temperature.json --num-samples 50

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    parser.add_argument("out", metavar="OUT", help="folder to write, new or empty")
    add_prediction(parser)
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
    parser.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    parser.add_argument("--overwrite", action="store_true", help="replaces what is there")


def run(arguments):
    """Writes the folder."""
    rule, calibration = load_rule(arguments.rule), load_calibration(arguments.calibration)
    model = load_model(arguments.model)
    if hasattr(model, "signatures"):
        raise ValueError(f"MODEL must be no SavedModel already. Received: {arguments.model}")
    progress(f"exporting {arguments.model}")
    exporting.export(
        model,
        arguments.out,
        rule=rule,
        calibration=calibration,
        overwrite=arguments.overwrite,
        **prediction_options(arguments),
    )
    files = [file for file in pathlib.Path(arguments.out).rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return {"wrote": str(arguments.out), "files": len(files), "bytes": size}, True


def text_of(figures):
    """The figures for a person."""
    return f"wrote {figures['wrote']}: {figures['files']} files, {figures['bytes']} bytes"
