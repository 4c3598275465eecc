"""Command `tfuq calibrate`: fits a calibration, or a rule with a guarantee, to labelled data."""

import pathlib

import numpy as np

from tfuq.cli._inputs import (
    CALIBRATIONS,
    Numbers,
    load_calibration,
    load_data,
    load_model,
    load_ood,
    predict,
)
from tfuq.cli._stderr import progress
from tfuq.cli.options.calibrate import INTERVALS, OF_NUMBERS
from tfuq.metrics import expected_calibration_error, negative_log_likelihood
from tfuq.selective import ConformalRegressor, RejectionRule, UnattainableRisk
from tfuq.selective.detector_scores import with_mark

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

exit code: 0 fine; 1 no rule can promise that risk (the message says what can); 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    add_prediction(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    rule = parser.add_argument_group("a rule")
    rule.add_argument("--target-risk", type=float, metavar="R", help="share of wrong answers kept")
    rule.add_argument("--target-coverage", type=float, metavar="C", help="share accepted")
    rule.add_argument(
        "--thresholds",
        type=number_list,
        metavar="T1,T2",
        help="with --target-risk: the only values of the score where the rule may end, declared "
        "before DATA were seen; the first has to pass",
    )
    rule.add_argument("--confidence", type=float, default=0.95, help="of the promise (0.95)")
    rule.add_argument(
        "--score",
        type=score_word,
        metavar="SCORE",
        help=f"{', '.join(RANKINGS)} or pnorm(3); of a regression {', '.join(OF_NUMBERS)}",
    )
    rule.add_argument(
        "--tolerance", type=float, metavar="T", help="how far off a number is wrong, in its unit"
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
        "--calibration-share", type=float, default=0.5, help="of the examples, for that (0.5)"
    )
    parser.add_argument(
        "--method",
        choices=[*CALIBRATIONS, *INTERVALS],
        metavar="KIND",
        help=f"of a calibration, {', '.join(CALIBRATIONS)} (temperature); of intervals of a "
        f"regression, {', '.join(INTERVALS)} (split)",
    )
    parser.add_argument(
        "--alpha", type=float, metavar="A", help="share of numbers outside of their interval (0.1)"
    )


def number_list(text):
    """Numbers between commas, or an error of `argparse`."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers between commas, as .9,.8; not {text}") from None


def score_word(text):
    """The name of a score, or an error of `argparse`."""
    name = new_word(text)
    if name in OF_NUMBERS:
        return name
    try:
        return score_name(name, RANKINGS)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments):
    """Writes what was fitted, and says what it is."""
    check_out(arguments.out, arguments.overwrite)
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
    if arguments.thresholds and arguments.target_risk is None:
        raise ValueError(
            "--thresholds must come with --target-risk. Received: --thresholds "
            f"{arguments.thresholds}"
        )
    if arguments.ood and (arguments.score or arguments.calibrate or not wants_rule):
        raise ValueError(
            "--ood must come with --target-risk or --target-coverage, without --score and "
            f"--calibrate. Received: --ood {arguments.ood}"
        )
    calibration = load_calibration(arguments.calibration)
    model = load_model(arguments)
    data = load_data(arguments, model)
    progress(f"predicting {arguments.data}")
    ood, score = load_ood(arguments.ood, model), arguments.score if wants_rule else None
    found = predict(model, data, arguments, score=score, ood=ood)
    if isinstance(found, Numbers):
        return fit_numbers(arguments, found, targets if wants_rule else None, ood)
    check_is_of_classes(arguments)
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
            (arguments.score or "confidence") if ood is None else found.strange,
            confidence=arguments.confidence,
            class_names=data.classes,
            calibration=CALIBRATIONS[arguments.calibrate]() if arguments.calibrate else None,
            calibration_share=arguments.calibration_share,
            seed=arguments.seed,
            thresholds=arguments.thresholds,
            **targets,
        )
    except UnattainableRisk as error:
        return {"failures": [str(error)]}, False
    return written(arguments, rule if ood is None else with_mark(rule, ood))


def written(arguments, rule):
    """What is told of a rule, once it is saved."""
    rule.save(arguments.out)
    figures = {"wrote": str(arguments.out), "says": rule.describe(), "threshold": rule.threshold}
    return {**figures, "fitted_to": rule.fitted_to}, True


def fit_numbers(arguments, found, targets, ood=None):
    """A rule for numbers, or without `targets` conformal intervals of them."""
    given = {name: getattr(arguments, name) for name in ("calibration", "calibrate")}
    given["alpha" if targets else "tolerance"] = arguments.alpha if targets else arguments.tolerance
    given["method"] = arguments.method if targets or arguments.method in CALIBRATIONS else None
    is_other = arguments.score not in (None, *OF_NUMBERS)
    given["score"] = arguments.score if is_other or not targets else None
    for name, value in given.items():
        if value is not None:
            kind = "a rule for numbers" if targets else "intervals of numbers"
            raise ValueError(f"--{name} must be left out, for {kind}. Received: {value}")
    if found.found is None:
        raise ValueError("MODEL must be a Keras model or an ensemble, no SavedModel, for numbers")
    if targets is None:
        options = {"alpha": arguments.alpha, "method": arguments.method or "split"}
        sets = ConformalRegressor.fit(found.found, found.labels, **options)
        sets.save(arguments.out)
        figures = {"wrote": str(arguments.out), "says": sets.describe()}
        return {**figures, "fitted_to": sets.fitted_to}, True
    options = {name: getattr(arguments, name) for name in ("confidence", "tolerance", "thresholds")}
    try:
        score = (arguments.score or "std") if ood is None else found.strange
        rule = RejectionRule.fit(found.found, found.labels, score, **options, **targets)
    except UnattainableRisk as error:
        return {"failures": [str(error)]}, False
    return written(arguments, rule if ood is None else with_mark(rule, ood))


def check_is_of_classes(arguments):
    """Raises ValueError if something is said that classes do not have."""
    given = {"tolerance": arguments.tolerance, "alpha": arguments.alpha}
    given["score"] = arguments.score if arguments.score in OF_NUMBERS else None
    given["method"] = arguments.method if arguments.method in INTERVALS else None
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} must be one of classes, or left out. Received: {value}")


def fit_calibration(arguments, found):
    """Fits to what is found, and says what it did to the same examples."""
    arguments.method = arguments.method or "temperature"
    fitted = CALIBRATIONS[arguments.method]().fit(found.mean, found.labels)
    fitted.save(arguments.out)
    after = np.asarray(fitted.transform(found.mean))
    figures = {"wrote": str(arguments.out), "method": arguments.method}
    for name, measure in (("ece", expected_calibration_error), ("nll", negative_log_likelihood)):
        figures[f"{name}_before"] = float(measure(found.labels, found.mean))
        figures[f"{name}_after"] = float(measure(found.labels, after))
    return {**figures, "examples": len(found.labels)}


def check_out(path, overwrite):
    """Raises ValueError before hours of work, not after."""
    if pathlib.Path(path).exists() and not overwrite:
        raise ValueError(f"--out must be new, unless --overwrite is given. Received: {path}")
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
