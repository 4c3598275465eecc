"""Rows of what a regression says of each example."""

from tfuq._arguments import shown
from tfuq._models.meaning import reading_of
from tfuq._models.numbers import number_readings
from tfuq._predictions.families import family_named
from tfuq._predictions.numbers import interval_level, said_of
from tfuq._predictions.scores import GIVEN
from tfuq.predictive.detector_marks import check_detector_of
from tfuq.predictive.rows import Rows, Scorer, Served, digest_of, members_of
from tfuq.predictive.sampler import NUM_SAMPLES, sampler_of, uncertainty

_SERVED = ("mean", "std", "aleatoric_std", "epistemic_std", "lower", "upper", "score", "accept")
_SERVED += ("ood_score",)


def rows_of(
    model, first, *, family=None, level=None, conformal=None, is_exclusive=False, **options
):
    """A `NumberRows` of a regression, a `Scorer` of a classifier.

    Args:
        model, first: As for `Scorer`.
        family: What the caller says of the numbers, or None.
        level: Of the intervals of a regression.
        conformal: `ConformalRegressor` or None.
        is_exclusive: Whether classes exclude one another, whatever a loss says.
        options: All else that `Scorer` takes.
    """
    reading = reading_of(options["output"], options["from_logits"], options["multi_label"])
    family = None if family is None else family_named(family)
    found = number_readings(members_of(model), reading, family, first)[0]
    if found is not None:
        return NumberRows(model, first, found, level, conformal, **options)
    for name, value in (("level", level), ("conformal", conformal)):
        if value is not None:
            raise ValueError(
                f"Argument `{name}` must be left out for a classifier, whose predictions have no "
                f"intervals. Received: {name}={shown(value)}"
            )
    return Scorer(model, first, **{**options, **({"multi_label": False} if is_exclusive else {})})


class NumberRows(Rows):
    """As `Scorer`, of a model of numbers."""

    def __init__(
        self,
        model,
        first,
        reading,
        level,
        conformal,
        *,
        num_samples,
        output,
        from_logits,
        multi_label,
        seed,
        rule,
        ood,
        columns,
        class_names=None,
    ):
        del from_logits, multi_label  # which nobody said
        super().__init__(model, output, num_samples, seed, ood, columns)
        if class_names is not None:
            raise ValueError(
                "Argument `class_names` must be left out for a regression. "
                f"Received: class_names={shown(class_names)} with {shown(reading.family)}"
            )
        self.check_inputs(first)
        self.family, self.rule, self.conformal = reading.family, rule, conformal
        self.served = self.members[0] if isinstance(self.members[0], Served) else None
        self._check_fitted()
        self.level = None
        if self.served is None:
            has_own = conformal is not None
            self.level = interval_level(self.family, level, rule, has_own)
            options = (output, None, None, seed, self.family)
            told = {"takes_one": True, "takes_numbers": True}
            self.sampler = sampler_of(model, self.num_samples or NUM_SAMPLES, *options, **told)
        elif level is not None:
            raise ValueError(
                "Argument `level` must be left out for a SavedModel, whose intervals are part of "
                f"it. Received: level={shown(level)}"
            )

    def _check_fitted(self):
        fitted = {"rule": (self.rule, "units", "RegressionRule")}
        fitted["conformal"] = (self.conformal, "interval", "ConformalRegressor")
        for name, (given, needed, kind) in fitted.items():
            if given is not None and (self.served is not None or not hasattr(given, needed)):
                raise ValueError(
                    f"Argument `{name}` must be a {kind}, or be part of the SavedModel, for a "
                    f"regression. Received: {name}={shown(given)}"
                )
        check_detector_of(self.rule, self.ood)

    def uncertainty(self, inputs):
        """`RegressionUncertainty` of a batch of inputs."""
        self.check_inputs(inputs)
        return uncertainty(self.sampler, [self.sampler.found(inputs)])

    def told(self, inputs, strange=None):
        if self.served is None:
            return self.columns_of(self.uncertainty(inputs), strange)
        outputs = self.served.outputs(inputs)
        if "mean" not in outputs:
            raise ValueError(
                "Argument `model` must be a SavedModel that `tfuq.export` wrote, with an output "
                f"'mean', or a Keras model. Received: outputs {sorted(outputs)}"
            )
        return _columns({name: outputs[name].numpy() for name in _SERVED if name in outputs})

    def columns_of(self, found, strange=None):
        """Columns of a `RegressionUncertainty`, and of a detector's scores of the same inputs."""
        told = said_of(found, self.level)
        if self.conformal is not None:
            told |= self.conformal.interval(found)._asdict()
        if self.rule is not None:
            given = {"score": strange} if self.rule.score == GIVEN else {}
            told["score"] = self.rule.score_of(found, **given)
            told["accept"] = self.rule.accept(found, **given)
        return _columns(told)

    def described(self):
        return {
            **super().described(),
            "family": self.family.get_config(),
            "level": self.level,
            "conformal": digest_of(self.conformal),
            "rule": digest_of(self.rule),
        }


def _columns(told):
    if told["mean"].ndim != 2:
        raise ValueError(
            "Argument `model` must predict numbers (units,) for each example. For one prediction "
            "per pixel, call `predict_uncertainty` and write what you need. Received: numbers of "
            f"shape {told['mean'].shape}"
        )
    return {name: _column(values) for name, values in told.items()}


def _column(values):
    """One number for each example, or a list of them; deviations and numbers as float32."""
    values = values[:, 0] if values.ndim == 2 and values.shape[-1] == 1 else values
    return values if values.dtype == bool else values.astype("float32")
