"""The one calibration of an export, which a rule or a conformal predictor may have brought."""


def with_one_calibration(calibration, rule, conformal):
    """The same three by name; what is applied once is in no rule or predictor any more.

    Raises:
        ValueError: If they disagree: a decision would stand on other predictions than it was
            fitted to.
    """
    fitted = {"rule": rule, "conformal": conformal}
    own = {name: getattr(each, "calibration", None) for name, each in fitted.items()}
    if all(found is None for found in own.values()):
        return {"calibration": calibration, **fitted}
    known = [own[name] for name, each in fitted.items() if each is not None]
    known += [calibration] if calibration is not None else []
    if any(found != known[0] for found in known):
        told = {name: type(found).__name__ for name, found in own.items() if found is not None}
        raise ValueError(
            "Argument `calibration` must be None, or that of the rule and the conformal predictor, "
            "which must have the same. "
            f"Received: calibration={type(calibration).__name__} with those of {told}"
        )
    return {"calibration": known[0], **{name: _bare(each) for name, each in fitted.items()}}


def _bare(fitted):
    if fitted is None:
        return None
    return type(fitted)(**{**fitted.get_config(), "calibration": None})
