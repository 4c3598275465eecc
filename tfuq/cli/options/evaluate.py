"""Arguments of `tfuq evaluate`."""

from tfuq.cli.options.shared import (
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_intervals,
    add_model,
    add_ood,
    add_prediction,
    add_rule,
    number,
    share,
)

HELP = "how good a model is, and whether a rule keeps what it promised"
EPILOG = f"""\
{MODEL_HELP}

{DATA_HELP}

With a rule, the promise that was made when it was fitted is compared with what is found. The
promise is broken when these data contradict it: the 95 % interval of the risk lies above what
was promised. A risk a little above it is no contradiction, if examples are few.

examples:
  tfuq evaluate model.keras test.npz
  tfuq evaluate model.keras test_images/ --scale 0.00392156862745098 --rule rule.json
  tfuq evaluate saved_model/ test.npz --trust --json --min-accuracy 0.9 --max-ece 0.05

exit code: 0 fine; 1 a promise is broken, or a figure is not what was asked for; 2 bad input;
3 done, but for images that were left out, which are named."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    add_prediction(parser)
    add_intervals(parser)
    add_rule(parser)
    add_ood(parser)
    parser.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    group = parser.add_argument_group("what is asked for (exit code 1 otherwise)")
    for name, kind, text in (
        ("min-accuracy", share, "accuracy over all examples"),
        ("max-ece", share, "expected calibration error"),
        ("max-nll", number, "negative log-likelihood, nats"),
        ("max-mae", number, "mean absolute error, of a regression"),
        ("max-risk", share, "share of wrong answers among the accepted"),
        ("min-coverage", share, "share of examples that are accepted"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="X", help=text)
