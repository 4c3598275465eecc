"""The request for an export: all arguments, checked once."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfuq import ood
from tfuq._arguments import check_choice, check_integer, shown
from tfuq._models.meaning import reading_of, readings_of
from tfuq._models.numbers import is_closed_form, number_readings
from tfuq._predictions.families import family_named
from tfuq._predictions.numbers import interval_level
from tfuq._predictions.scores import GIVEN
from tfuq._random.draws import num_draws, random_layers
from tfuq.ensembles import DeepEnsemble
from tfuq.export._calibration import with_one_calibration
from tfuq.export._card import checked_card, loaded_monitor
from tfuq.export._declared import declared_of
from tfuq.export._inputs import Inputs, checked_inputs, made_up
from tfuq.export._tracing import traced, tracing
from tfuq.layers.ways import knows, predicting
from tfuq.ood.base import Detector
from tfuq.ood.graph_scores import has_graph_form
from tfuq.predictive import Declared
from tfuq.selective import RegressionRule, RejectionRule

PREDICTIVES = ("fixed_samples", "probit", "mean", "fresh_samples")
NUM_SAMPLES = 30


class Request(NamedTuple):
    """What is to be exported, and how it predicts: the arguments of `tfuq.export.export`."""

    members: list  # models; several if `is_ensemble`
    is_ensemble: bool = False
    is_stacked: bool = False  # whether the members are to be computed at once
    predictive: str = "fixed_samples"
    num_samples: int | None = None  # draws of each model; None if nothing is drawn
    seed: int = 0
    output: object = None
    from_logits: bool | None = None
    multi_label: bool = False
    are_logits: tuple = ()  # of each model, whether its output is taken as it is
    family: object = None  # of a regression, `Family`: its outputs are parameters
    level: float | None = None  # of the intervals of a regression
    calibration: object = None
    rule: RejectionRule | RegressionRule | None = None
    conformal: object = None
    detector: Detector | None = None
    declared: Declared = Declared()  # of the models
    monitor: object = None  # of the rule: what was seen since
    card: dict | None = None  # texts of the model card
    inputs: Inputs = Inputs()
    batch_size: int | None = None
    runtime: str | None = None  # one that has neither loops nor random numbers

    @property
    def is_unrolled(self):
        return self.runtime is not None

    @property
    def steps(self):
        return self.inputs.steps

    @property
    def spec(self):
        return self.inputs.spec

    @property
    def inner(self):
        return self.inputs.inner

    def prepare(self, inputs):
        """What the models take, of what is served."""
        return self.inputs.prepare(inputs)

    def served_example(self):
        """Inputs to try a file with: the caller's, or random ones; None where these say nothing."""
        if self.inputs.example is not None:
            return self.inputs.example
        if any(spec.dtype == tf.string for spec in tf.nest.flatten(self.spec)):
            return None
        return made_up(self.spec, None if self.steps else self.declared.inputs)

    def inner_example(self):
        """What the models take, to find layers with."""
        if self.inputs.example is not None:
            return self.prepare(self.inputs.example)
        return made_up(self.inner, self.declared.inputs)

    def draws_of(self, model):
        """How many draws there are of one of the models; None where it is one network."""
        is_drawn = self.num_samples is not None and is_drawn_from(model, self.family)
        return self.num_samples if is_drawn else None


def checked_request(arguments, runtime=None):
    """`Request` of the arguments of a public function, or a ValueError.

    Args:
        arguments: Dict by name, those that are not of `tfuq.export.export` among them.
        runtime: Name of a runtime that has neither loops nor random numbers; draws are constants.
    """
    given = {name: value for name, value in arguments.items() if name in Request._fields}
    check_choice("predictive", given["predictive"], PREDICTIVES)
    if given["batch_size"] is not None:
        check_integer("batch_size", given["batch_size"], 1)
    if runtime is not None:
        _check_is_fixed(given["predictive"], runtime)
    members, is_ensemble, is_stacked = _members_of(arguments["model"])
    given["rule"] = _loaded_rule(given["rule"])
    if given["rule"] is None:
        _check_has_no_rule(members)
    given["card"], given["monitor"] = checked_card(given["card"]), loaded_monitor(given["monitor"])
    given |= with_one_calibration(given["calibration"], given["rule"], given["conformal"])
    request = Request(members, is_ensemble, **given)._replace(
        detector=arguments["ood"],
        declared=declared_of(members, given["rule"]),
        inputs=checked_inputs(arguments, members[0]),
        runtime=runtime,
        is_stacked=is_stacked and runtime is None,
    )
    if request.output is None and _gives_logits(request):
        request = request._replace(output="logits")
    request = request._replace(family=_family_of(request))
    request = request._replace(num_samples=_checked_num_samples(request))
    request = _with_meaning(request)
    if request.detector is not None:
        _check_detector(request)
    return request


def _loaded_rule(rule):
    is_rule = rule is None or isinstance(rule, (RejectionRule, RegressionRule))
    return rule if is_rule else RejectionRule.load(rule)


def _family_of(request):
    """The `Family` of a regression's numbers, None of a classifier."""
    family = None if request.family is None else family_named(request.family)
    reading = reading_of(request.output, request.from_logits, request.multi_label)
    with tracing(request):
        found = traced(
            request.inner, lambda batch: number_readings(request.members, reading, family, batch)
        )
    return None if found[0] is None else found[0].family


def _with_meaning(request):
    """The request, once it is known what the outputs of its models mean."""
    if request.family is not None:
        flags = (True,) * len(request.members)
        has_own = request.conformal is not None
        level = interval_level(request.family, request.level, request.rule, has_own)
        return request._replace(are_logits=flags, multi_label=False, level=level)
    reading = reading_of(request.output, request.from_logits, request.multi_label)
    with tracing(request), predicting(request.predictive):
        readings = traced(request.inner, lambda batch: readings_of(request.members, reading, batch))
    flags = tuple(known.from_logits for known in readings)
    return request._replace(are_logits=flags, multi_label=readings[0].multi_label)


# --- Models -----------------------------------------------------------------------------------


def _members_of(model):
    """The Keras models of the argument `model`, whether they are an ensemble, and a stacked one."""
    is_stacked = getattr(model, "forward", None) is not None
    if isinstance(model, keras.Model):
        members, several, is_stacked = [model], False, False
    else:
        if callable(getattr(model, "ensemble", None)):  # snapshots
            model = model.ensemble()
        if isinstance(model, (list, tuple)) and all(isinstance(m, keras.Model) for m in model):
            model = DeepEnsemble.from_models(model)
        if not isinstance(model, DeepEnsemble):
            raise ValueError(
                "Argument `model` must be a Keras model, a DeepEnsemble, a SnapshotEnsemble or a "
                f"list of Keras models. Received: model={shown(model)}"
            )
        members, several = list(model.members), True
    for member in members:
        if not member.built:
            raise ValueError(
                "Argument `model` must be built: give it an input shape, or call it once. "
                f"Received: {member} without weights"
            )
    return members, several, is_stacked


def _check_has_no_rule(members):
    """Raises ValueError for a rule inside a model: the files would not say what it decides by."""
    layers = [layer for member in members for layer in member._flatten_layers()]
    rules = [getattr(layer, "method", None) for layer in layers]
    rules = [rule for rule in rules if isinstance(rule, (RejectionRule, RegressionRule))]
    if rules:
        ood = ", and `ood=`, the detector of its score" if rules[0].score == GIVEN else ""
        raise ValueError(
            "Argument `model` must be the one that the rule's `append_to` took: export that one "
            f"with `rule=`{ood}, so that the files decide and give reasons. Received: a model that "
            f"ends in a {type(rules[0]).__name__}"
        )


def _checked_num_samples(request):
    """How many samples are drawn of each model, or None; ValueError if models do not fit."""
    members, predictive, count = request.members, request.predictive, request.num_samples
    family = request.family
    check_integer("seed", request.seed, 0)
    if count is not None:
        check_integer("num_samples", count, 1)
    if predictive == "probit":
        _check_probit(members, family)
    has_noise = [_has_noise(member, family) for member in members]
    if predictive == "fresh_samples" and not all(has_noise):
        raise ValueError(
            "Argument `predictive` must not be 'fresh_samples' for a model without random layers, "
            f"whose predictions are all the same. Received: predictive={shown(predictive)}"
        )
    is_sampled = predictive in ("fixed_samples", "fresh_samples")
    draws = is_sampled and any(is_drawn_from(member, family) for member in members)
    if is_sampled and not draws and any(is_closed_form(m, family) for m in members):
        return None  # its output says how draws would differ, whatever their number
    if count is not None and not draws:
        raise ValueError(
            "Argument `num_samples` must be None unless samples are drawn of a model with random "
            f"layers. Received: num_samples={shown(count)} with predictive={shown(predictive)} and "
            f"{members[0]}"
        )
    is_ensemble = request.is_ensemble and predictive == "fixed_samples"
    if not draws or (count is None and is_ensemble):
        return count
    # Of several models each is drawn from by itself.
    counts = {num_draws(m, count, NUM_SAMPLES) for m in members if is_drawn_from(m, family)}
    if len(counts) > 1:
        raise ValueError(
            "Argument `num_samples` must be given, because the layers of the models differ in "
            "their numbers of members: it is how many networks are drawn of each. Received: "
            f"num_samples={shown(count)}, with the defaults {sorted(counts)}"
        )
    return counts.pop()


def _check_is_fixed(predictive, runtime):
    if predictive == "fresh_samples":
        raise ValueError(
            "Argument `predictive` must not be 'fresh_samples': it needs new random numbers in "
            f"each call, which {runtime} does not have built in. Use 'fixed_samples'. Received: "
            "predictive='fresh_samples'"
        )


def is_random(model):
    """Whether draws of the network differ."""
    return any(layer.is_random() for layer in random_layers(model))


def is_drawn_from(model, family):
    """Whether predictions take draws: not of numbers whose head says how these would differ."""
    return is_random(model) and not (family is not None and is_closed_form(model, family))


def _has_noise(model, family):
    heads = [layer for layer in model._flatten_layers() if knows(layer, "fresh_samples")]
    return bool(heads) or is_drawn_from(model, family)


def _check_probit(members, family):
    if family is not None:
        raise ValueError(
            "Argument `predictive` must not be 'probit' for a regression, which has no logits: "
            "use 'fixed_samples', which is a closed form if a VBLLRegression is the only random "
            f"layer. Received: predictive='probit' with numbers of the family {shown(family)}"
        )
    for member in members:
        heads = [layer for layer in member._flatten_layers() if knows(layer, "probit")]
        others = [each.name for each in random_layers(member) if each not in heads]
        held = [x for head in heads for x in head._flatten_layers(include_self=False)]
        heads = [layer for layer in heads if layer not in held]  # a head's mean is a part of it
        others = [name for name in others if is_random(member)]
        if len(heads) != 1 or others:
            layers = f"the random layers {others}" if others else f"{len(heads)} of these"
            raise ValueError(
                "Argument `predictive` may be 'probit' for a model whose one random layer is a "
                "VBLLDense, MCSoftmaxDenseFA or MCSigmoidDenseFA (or XL), which knows the "
                "variance of its logits. For others use 'fixed_samples'. Received: "
                f"predictive='probit' with {layers}"
            )


def _gives_logits(request):
    """Whether the outputs are a named tuple with logits, as of the layers of tfuq."""
    model = request.members[0]
    with tracing(request):
        outputs = traced(request.inner, lambda batch: model(batch, training=False))
    return "logits" in getattr(outputs, "_fields", ())


# --- Detectors --------------------------------------------------------------------------------


def _check_detector(request):
    """Raises ValueError unless the argument `ood` is a detector that the graph can hold."""
    detector, members = request.detector, request.members
    if not isinstance(detector, Detector):
        raise ValueError(
            "Argument `ood` must be a fitted detector of `tfuq.ood`. "
            f"Received: ood={shown(detector)}"
        )
    detector._check_fitted()
    if isinstance(detector, ood.MutualInformation) and request.family is not None:
        raise ValueError(
            "Argument `ood` must be a detector for numbers: their draws have no mutual "
            "information. `epistemic_std` tells how much they differ. Received: a "
            "MutualInformation"
        )
    if isinstance(detector, ood.MutualInformation):
        _check_samples(detector, request)
        detector._check_model()
        return
    if not has_graph_form(type(detector)):
        known = [kind for kind in map(ood.__dict__.get, ood.__all__) if _is_served(kind)]
        raise ValueError(
            "Argument `ood` must be a detector that runs in a graph: "
            f"{', '.join(sorted(kind.__name__ for kind in known))}. "
            f"Received: a {type(detector).__name__}"
        )
    if detector.model is None and len(members) == 1:
        detector.model = members[0]
    if not any(detector.model is member for member in members):
        raise ValueError(
            "Argument `ood` must be fitted to the model that is exported, or to a member of it. "
            f"Received: a {type(detector).__name__} of {detector.model}"
        )
    detector._check_model()


def _is_served(kind):
    is_detector = isinstance(kind, type) and issubclass(kind, Detector)
    return is_detector and (kind is ood.MutualInformation or has_graph_form(kind))


def _check_samples(detector, request):
    """Raises ValueError unless the score is the mutual information of the exported samples."""
    count = None if detector.num_samples == NUM_SAMPLES else detector.num_samples
    wanted = (num_draws(request.members[0], count, NUM_SAMPLES), detector.seed)
    given = (request.num_samples, request.seed)
    is_of_members = len(request.members) > 1 and request.num_samples is None
    if request.predictive != "fixed_samples" or not (is_of_members or wanted == given):
        raise ValueError(
            "Argument `ood` may be a MutualInformation of the samples that are exported: with "
            f"predictive='fixed_samples', num_samples={wanted[0]} and seed={wanted[1]}. Received: "
            f"predictive={shown(request.predictive)}, num_samples={given[0]}, seed={given[1]}"
        )
