"""Marks of detectors, by which a rule knows whose scores it was fitted to."""

import hashlib

import numpy as np

from tfuq._arguments import shown
from tfuq._files.reading import json_text
from tfuq._predictions.scores import GIVEN


def digest_of_detector(detector):
    """A mark of a detector's class, its arguments and what was fitted."""
    digest = hashlib.sha256()
    config = detector.get_config() if hasattr(detector, "get_config") else {}
    digest.update(json_text([type(detector).__name__, config], sort_keys=True).encode())
    for name, array in sorted(getattr(detector, "_state", {}).items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()[:16]


def mark_of_detector(detector):
    """What a rule notes of the detector whose scores it was fitted to."""
    return {"class": type(detector).__name__, "digest": digest_of_detector(detector)}


def check_detector_of(rule, detector, name="ood"):
    """Raises ValueError unless `detector`, the argument `name`, has the scores of the rule.

    A rule of a score of predictions goes with any detector, and with none.
    """
    if getattr(rule, "score", None) != GIVEN:
        return
    known = rule.fitted_to.get("detector")
    if known is None:
        raise ValueError(
            "Argument `rule` must know its detector: fit it with "
            "`RejectionRule.fit_model(model, data, score=detector)`. Received: a rule for scores "
            "that were given as an array or a function"
        )
    if detector is None or mark_of_detector(detector) != dict(known):
        given = "none" if detector is None else f"another {type(detector).__name__}"
        if detector is not None and type(detector).__name__ != known["class"]:
            given = f"a {type(detector).__name__}"
        raise ValueError(
            f"Argument `{name}` must be the fitted {known['class']} whose scores the rule was "
            f"fitted to. Received: {given}, {name}={shown(detector)}"
        )
