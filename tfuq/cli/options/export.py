"""Arguments of `tfuq export`."""

from tfuq.cli.options.shared import (
    MODEL_HELP,
    add_intervals,
    add_model,
    add_ood,
    add_prediction,
    add_rule,
)

HELP = "writes a SavedModel, LiteRT or ONNX with the uncertainty and the decision in it"
EPILOG = f"""\
{MODEL_HELP}
(A SavedModel is exported already.)

OUT is a folder, which TensorFlow alone loads, `tf.saved_model.load(OUT)`; or a file that ends in
.tflite (LiteRT) or .onnx. Each returns probabilities, label, entropies and, with a rule, `accept`;
of a regression mean, deviations and an interval. --sign needs pip install "tfuq[signing]"; a key is
made by `openssl genpkey -algorithm ed25519 -out key.pem`, and what --key takes elsewhere by
`openssl pkey -in key.pem -pubout -out public.pem`.

examples:
  tfuq export model.keras served/ --rule rule.json
  tfuq export model.keras served/ --calibration temperature.json --num-samples 50
  tfuq export model.keras model.tflite --rule rule.json --weights int8
  tfuq export model.keras served/ --rule rule.json --sign key.pem

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    parser.add_argument("out", metavar="OUT", help="folder to write, new or empty; or a file")
    add_prediction(parser)
    add_intervals(parser)
    add_rule(parser)
    add_ood(parser)
    parser.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    parser.add_argument(
        "--weights",
        choices=("float32", "float16", "int8"),
        help="how a LiteRT file holds them (float32)",
    )
    parser.add_argument(
        "--monitor", metavar="FILE", help="what was seen since, as `tfuq monitor` keeps it"
    )
    parser.add_argument(
        "--card",
        metavar="FILE",
        help="JSON object for the model card: use, data, figures, groups, not_tested_on",
    )
    parser.add_argument(
        "--sign", metavar="KEY", help="private key (PEM, Ed25519) that signs what is written"
    )
    parser.add_argument("--overwrite", action="store_true", help="replaces what is there")
