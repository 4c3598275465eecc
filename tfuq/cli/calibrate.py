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
            raise ValueError(f"--{name} must be left out for {kind}. Received: {value}")
    if found.found is None:
        raise ValueError("MODEL must be a Keras model or an ensemble for numbers, not a SavedModel")
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
            raise ValueError(
                f"--{name} must be left out or one for classes, because MODEL is a "
                f"classifier. Received: {value}"
            )


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
