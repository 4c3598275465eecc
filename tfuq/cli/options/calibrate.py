"""Arguments of `tfuq calibrate`."""

import argparse

from tfuq.cli.options.shared import (
    CALIBRATIONS,
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_model,
    add_prediction,
    number,
    share,
)

# As `tfuq._predictions.scores` has them.
RANKINGS = (
    *("confidence", "margin", "predictive_entropy", "expected_entropy", "mutual_information"),
    *("variation_ratio", "pnorm"),
)
OF_NUMBERS = ("std", "interval_width", "aleatoric_std", "epistemic_std")
INTERVALS = ("split", "normalized", "cqr")

HELP = "fits a calibration, or a rule that keeps a promise, to labelled data"
EPILOG = f"""\
DATA are labelled examples that the model was not trained on. With --target-risk or
--target-coverage a rule is fitted: which answers to accept. Without, a calibration:
probabilities that are right as often as they say; of a regression intervals that hold. A rule
needs other examples than the calibration it stands on, or its promise does not hold: with
--calibrate DATA are split.

{MODEL_HELP}

{DATA_HELP}

examples:
  tfuq calibrate model.keras validation.npz --target-risk 0.1 --confidence 0.95 --out rule.json
  tfuq calibrate model.keras validation.npz --target-coverage 0.8 --out rule.json
  tfuq calibrate numbers.keras validation.npz --target-risk 0.1 --tolerance 5 --out rule.json
  tfuq calibrate numbers.keras validation.npz --alpha 0.1 --method cqr --out intervals.json
  tfuq calibrate model.keras validation.npz --target-risk 0.1 --calibrate isotonic --out rule.json
  tfuq calibrate model.keras validation.npz --ood knn.npz --target-risk 0.1 --out rule.json
  tfuq calibrate model.keras validation.npz --method temperature --out temperature.json
  tfuq calibrate model.keras more.npz --calibration temperature.json --target-risk 0.1 \\
      --out rule.json

exit code: 0 fine; 1 no rule can promise that risk (the message says what can); 2 bad input;
3 done, but for images that were left out, which are named."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    add_prediction(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument(
        "--overwrite", "--force", action="store_true", help="replaces the file that is there"
    )
    rule = parser.add_argument_group("a rule")
    rule.add_argument("--target-risk", type=share, metavar="R", help="share of wrong answers kept")
    rule.add_argument("--target-coverage", type=share, metavar="C", help="share accepted")
    rule.add_argument(
        "--thresholds",
        type=number_list,
        metavar="T1,T2",
        help="with --target-risk: the only values of the score where the rule may end, declared "
        "before DATA were seen; the first has to pass",
    )
    rule.add_argument("--confidence", type=share, default=0.95, help="of the promise (0.95)")
    rule.add_argument(
        "--score",
        type=score_word,
        metavar="SCORE",
        help=f"{', '.join(RANKINGS)} or pnorm(3); of a regression {', '.join(OF_NUMBERS)}",
    )
    rule.add_argument(
        "--tolerance", type=number, metavar="T", help="how far off a number is wrong, in its unit"
    )
    rule.add_argument(
        "--ood", metavar="FILE", help="a detector, whose score the rule is of, not --score"
    )
    rule.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    rule.add_argument(
        "--calibrate",
        choices=list(CALIBRATIONS),
        metavar="KIND",
        help=f"{', '.join(CALIBRATIONS)}: fitted to a part of DATA, the rule to the rest; the "
        "rule's file holds it",
    )
    rule.add_argument(
        "--calibration-share", type=share, default=0.5, help="of the examples, for that (0.5)"
    )
    parser.add_argument(
        "--method",
        choices=[*CALIBRATIONS, *INTERVALS],
        metavar="KIND",
        help=f"of a calibration, {', '.join(CALIBRATIONS)} (temperature); of intervals of a "
        f"regression, {', '.join(INTERVALS)} (split)",
    )
    parser.add_argument(
        "--alpha", type=share, metavar="A", help="share of numbers outside of their interval (0.1)"
    )


def number_list(text):
    """Numbers between commas, or an error of `argparse`."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers between commas, as .9,.8; not {text}") from None


def score_word(text):
    """The name of a score, or an error of `argparse`."""
    if text in (*OF_NUMBERS, *RANKINGS):
        return text
    from tfuq._predictions.scores import score_name  # which imports Keras

    try:
        return score_name(text, RANKINGS)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
