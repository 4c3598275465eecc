"""Command `tfuq calibrate`: fits a calibration, or a rule with a guarantee, to labelled data."""

import pathlib

import numpy as np

from tfuq._predictions.scores import SCORES, new_word
from tfuq.cli._inputs import (
    CALIBRATIONS,
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_model,
    add_prediction,
    load_calibration,
    load_data,
    load_model,
    predict,
    progress,
)
from tfuq.metrics import expected_calibration_error, negative_log_likelihood
from tfuq.selective import RejectionRule, UnattainableRisk

HELP = "fits a calibration, or a rule that keeps a promise, to labelled data"
EPILOG = f"""\
DATA are labelled examples that the model was not trained on. With --target-risk or
--target-coverage a rule is fitted: which answers to accept. Without, a calibration:
probabilities that are right as often as they say. A rule needs other examples than the
calibration it stands on, or its promise does not hold: with --calibrate DATA are split.

{MODEL_HELP}

{DATA_HELP}

examples:
  tfuq calibrate model.keras validation.npz --target-risk 0.1 --confidence 0.95 --out rule.json
  tfuq calibrate model.keras validation.npz --target-coverage 0.8 --out rule.json
  tfuq calibrate model.keras validation.npz --target-risk 0.1 --calibrate isotonic --out rule.json
  tfuq calibrate model.keras validation.npz --method temperature --out temperature.json
  tfuq calibrate model.keras more.npz --calibration temperature.json --target-risk 0.1 \\
      --out rule.json

exit code: 0 fine; 1 no rule can promise that risk (the message says what can); 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    add_prediction(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    rule = parser.add_argument_group("a rule")
    rule.add_argument("--target-risk", type=float, metavar="R", help="share of wrong answers kept")
    rule.add_argument("--target-coverage", type=float, metavar="C", help="share accepted")
    rule.add_argument("--confidence", type=float, default=0.95, help="of the promise (0.95)")
    rule.add_argument(
        "--score",
        type=new_word,
        default="confidence",
        choices=SCORES,
        metavar="SCORE",
        help=", ".join(SCORES),
    )
    rule.add_argument("--calibration", metavar="FILE", help="applied before the rule")
    rule.add_argument(
        "--calibrate",
        choices=list(CALIBRATIONS),
        help="fitted to a part of DATA, the rule to the rest; the rule's file holds it",
    )
    rule.add_argument(
        "--calibration-share", type=float, default=0.5, help="of the examples, for that (0.5)"
    )
    parser.add_argument(
        "--method", choices=list(CALIBRATIONS), default="temperature", help="of a calibration"
    )


def run(arguments):
    """Writes what was fitted, and says what it is."""
    check_out(arguments.out)
    targets = {"target_risk": arguments.target_risk, "target_coverage": arguments.target_coverage}
    wants_rule = any(value is not None for value in targets.values())
    if arguments.calibration and not wants_rule:
        raise ValueError(
            "--calibration must come with --target-risk or --target-coverage. Received: neither"
        )
    if arguments.calibrate and (arguments.calibration or not wants_rule):
        raise ValueError(
            "--calibrate must come with --target-risk or --target-coverage, without --calibration. "
            f"Received: --calibrate {arguments.calibrate}"
        )
    calibration = load_calibration(arguments.calibration)
    model = load_model(arguments.model)
    data = load_data(arguments, model)
    progress(f"predicting {arguments.data}")
    found = predict(model, data, arguments, score=arguments.score if wants_rule else None)
    if not wants_rule:
        return fit_calibration(arguments, found), True
    probs = found.probs
    if calibration is not None:
        config = {**calibration.get_config(), "from_logits": False}
        probs = np.asarray(type(calibration)(**config).transform(probs))
    try:
        rule = RejectionRule.fit(
            probs,
            found.labels,
            arguments.score,
            confidence=arguments.confidence,
            class_names=data.classes,
            calibration=CALIBRATIONS[arguments.calibrate]() if arguments.calibrate else None,
            calibration_share=arguments.calibration_share,
            seed=arguments.seed,
            **targets,
        )
    except UnattainableRisk as error:
        return {"failures": [str(error)]}, False
    rule.save(arguments.out)
    figures = {"wrote": str(arguments.out), "says": rule.describe(), "threshold": rule.threshold}
    return {**figures, "fitted_to": rule.fitted_to}, True


def fit_calibration(arguments, found):
    """Fits to what is found, and says what it did to the same examples."""
    fitted = CALIBRATIONS[arguments.method]().fit(found.mean, found.labels)
    fitted.save(arguments.out)
    after = np.asarray(fitted.transform(found.mean))
    figures = {"wrote": str(arguments.out), "method": arguments.method}
    for name, measure in (("ece", expected_calibration_error), ("nll", negative_log_likelihood)):
        figures[f"{name}_before"] = float(measure(found.labels, found.mean))
        figures[f"{name}_after"] = float(measure(found.labels, after))
    return {**figures, "examples": len(found.labels)}


def check_out(path):
    """Raises ValueError before hours of work, not after."""
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise ValueError(f"--out must be a file in a folder that exists. Received: {path}")


def text_of(figures):
    """The figures for a person."""
    if "says" in figures:
        return f"{figures['says']}\nwrote {figures['wrote']}"
    if "wrote" not in figures:
        return ""
    lines = [
        f"{name} {figures[f'{name}_before']:.4f} before, {figures[f'{name}_after']:.4f} after"
        for name in ("ece", "nll")
    ]
    lines.append(f"on the same {figures['examples']} examples; wrote {figures['wrote']}")
    return "\n".join(lines)
