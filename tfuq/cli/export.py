"""Command `tfuq export`: a model with its uncertainty and decisions, for other programs."""

import pathlib

from tfuq import export as exporting
from tfuq.cli._inputs import (
    MODEL_HELP,
    add_intervals,
    add_model,
    add_ood,
    add_prediction,
    interval_options,
    load_calibration,
    load_model,
    load_ood,
    load_rule,
    prediction_options,
    progress,
)

HELP = "writes a SavedModel, LiteRT or ONNX with the uncertainty and the decision in it"
FORMATS = {".tflite": exporting.export_litert, ".onnx": exporting.export_onnx}
EPILOG = f"""\
{MODEL_HELP}
(A SavedModel is exported already.)

OUT is a folder, which TensorFlow alone loads, `tf.saved_model.load(OUT)`; or a file that ends in
.tflite (LiteRT) or .onnx. Each returns probabilities, label, entropies and, with a rule, `accept`;
of a regression mean, deviations and an interval.

examples:
  tfuq export model.keras served/ --rule rule.json
  tfuq export model.keras served/ --calibration temperature.json --num-samples 50
  tfuq export model.keras model.tflite --rule rule.json --weights int8

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    parser.add_argument("out", metavar="OUT", help="folder to write, new or empty; or a file")
    add_prediction(parser)
    add_intervals(parser)
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
    add_ood(parser)
    parser.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    parser.add_argument(
        "--weights",
        choices=("float32", "float16", "int8"),
        help="how a LiteRT file holds them (float32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replaces what is there")


def run(arguments):
    """Writes the folder, or the file and what is known of it."""
    out = pathlib.Path(arguments.out)
    write, options = FORMATS.get(out.suffix.lower(), exporting.export), {}
    if arguments.weights is not None:
        if write is not exporting.export_litert:
            raise ValueError(f"--weights needs an OUT that ends in .tflite. Received: {out}")
        options = {"weights": arguments.weights}
    rule, calibration = load_rule(arguments.rule), load_calibration(arguments.calibration)
    model = load_model(arguments.model)
    if hasattr(model, "signatures"):
        raise ValueError(f"MODEL must be no SavedModel already. Received: {arguments.model}")
    progress(f"exporting {arguments.model}")
    write(
        model,
        out,
        rule=rule,
        ood=load_ood(arguments.ood, model),
        calibration=calibration,
        overwrite=arguments.overwrite,
        **options,
        **prediction_options(arguments),
        **interval_options(arguments),
    )
    files = [file for file in (out, *out.rglob("*")) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return {"wrote": str(arguments.out), "files": len(files), "bytes": size}, True


def text_of(figures):
    """The figures for a person."""
    return f"wrote {figures['wrote']}: {figures['files']} files, {figures['bytes']} bytes"
