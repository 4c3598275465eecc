"""Rows of scores of each example, from a model of any kind that tfuq knows."""

import hashlib

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._files.declared import recalled, remember
from tfuq._files.reading import json_text
from tfuq._models.fingerprint import layers_digest, weights_digest
from tfuq._models.meaning import NOTHING, Meaning, reading_of
from tfuq._models.member_graphs import member_graph
from tfuq._models.outputs import select_output
from tfuq._models.taken import check_shapes, taken_by
from tfuq._predictions.class_names import agreed_names, check_count, checked_names, numbered
from tfuq._predictions.families import Point
from tfuq._predictions.scores import GIVEN, OF_STACKS, new_word
from tfuq._predictions.uncertainty import decompose
from tfuq._random.draws import num_draws, posterior_state, random_layers
from tfuq.predictive.declarations import declared
from tfuq.predictive.detector_marks import check_detector_of, digest_of_detector
from tfuq.predictive.sampler import NUM_SAMPLES, sampler_of

COLUMNS = (
    "index",
    "file",
    "true_label",
    "probabilities",
    "label",
    "class",
    "confidence",
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
    "mean",
    "std",
    "aleatoric_std",
    "epistemic_std",
    "lower",
    "upper",
    "score",
    "accept",
    "ood_score",
)
_SERVED = ("expected_entropy", "mutual_information", "accept", "ood_score")
_MEASURES = ("confidence", "predictive_entropy", *OF_STACKS)


class Rows:
    """Base of what makes rows of batches: a child says what its model tells of one.

    Args:
        model: Keras model; `DeepEnsemble`, or whatever has Keras models as `members`; or a
            SavedModel that `tf.saved_model.load` gave.
        output, num_samples, seed: As for `sample_predictions`.
        ood: Detector or None.
        columns: Names of the columns that are wanted; None for all.
    """

    class_names = None

    def __init__(self, model, output, num_samples, seed, ood, columns):
        check_integer("seed", seed, 0)
        self.model, self.output, self.seed = model, output, seed
        self.members = members_of(model)
        self._check_taken = taken_by(self.members[0])
        self.num_samples = self._checked_samples(num_samples)
        self.ood = _checked_ood(ood)
        self.columns = _checked_columns(columns)

    def told(self, inputs):
        """Columns of what the model says of a batch of inputs."""
        raise NotImplementedError

    def _checked_samples(self, num_samples):
        """Number of networks that are drawn, None where there is nothing to draw."""
        if num_samples is not None:
            check_integer("num_samples", num_samples, 1)
        is_one = len(self.members) == 1 and isinstance(self.members[0], keras.Model)
        is_random = is_one and any(layer.is_random() for layer in random_layers(self.members[0]))
        if num_samples is not None and not is_random:
            raise ValueError(
                "Argument `num_samples` must be None for an ensemble or a model without random "
                f"layers. Received: num_samples={shown(num_samples)} with {shown(self.model)}"
            )
        return num_draws(self.members[0], num_samples, NUM_SAMPLES) if is_random else None

    def described(self):
        """All of this that decides what the rows hold, as JSON can hold it."""
        output = self.output
        return {
            "model": _models_digest(self.members),
            "num_samples": self.num_samples,
            "output": getattr(output, "__qualname__", "function") if callable(output) else output,
            "seed": self.seed,
            "ood": None if self.ood is None else digest_of_detector(self.ood),
            "columns": None if self.columns is None else list(self.columns),
        }

    def rows(self, start, batch):
        """Columns of a batch whose first example has the number `start`."""
        self.check_inputs(batch.inputs)
        strange = self.strange(batch.inputs)
        told = self.told(batch.inputs, strange)
        count = len(next(iter(told.values())))
        columns = {"index": np.arange(start, start + count, dtype="int64")}
        if batch.files is not None:
            columns["file"] = list(batch.files)
        if batch.labels is not None:
            columns["true_label"] = self._labels(batch.labels)
        columns |= told
        if strange is not None:
            columns["ood_score"] = strange
        return self._chosen(columns)

    def strange(self, inputs):
        """Scores `(batch,)` of the detector, or None without one."""
        return None if self.ood is None else np.asarray(self.ood.score(inputs), "float32")

    def check_inputs(self, inputs):
        """Raises ValueError if a batch is none that the model was declared to take."""
        member = self.members[0]
        if isinstance(member, Served):
            check_shapes(member.spec, inputs, "data")
        self._check_taken(inputs, "data")

    def labels_of(self, labels):
        """Labels as numbers, of the output that is scored."""
        if keras.tree.is_nested(labels):
            labels = select_output(labels, self.output)
        return np.asarray(numbered(labels, self.class_names, "data"))

    def _labels(self, labels):
        labels = self.labels_of(labels)
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
        if labels.dtype.kind not in "biuf" or labels.ndim > 2:
            raise ValueError(
                "Argument `data` must have labels (n,) or (n, classes) of numbers. Received: "
                f"labels of shape {labels.shape} and dtype {labels.dtype}"
            )
        return labels.astype("float32" if labels.dtype.kind == "f" else "int64")

    def _chosen(self, columns):
        if self.columns is None:
            return columns
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise ValueError(
                f"Argument `columns` must name columns that exist: {', '.join(columns)}. Received: "
                f"{missing}"
            )
        return {name: columns[name] for name in self.columns}


class Scorer(Rows):
    """A classifier with all that decides what is told of an example.

    Args:
        model: As for `Rows`; a SavedModel returns probabilities.
        first: The first batch of inputs: it tells logits from probabilities, where nothing else
            does.
        num_samples, output, from_logits, multi_label, seed: As for `sample_predictions`.
        rule: `RejectionRule` or None.
        ood, columns: As for `Rows`.
        class_names: Names of the classes; None for what is declared of the model, or the rule says.
    """

    def __init__(
        self,
        model,
        first,
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
        reading = reading_of(output, from_logits, multi_label)
        super().__init__(model, output, num_samples, seed, ood, columns)
        names = {"`class_names`": checked_names(class_names)}
        names |= {"the model": declared(model).class_names}
        self.class_names = agreed_names({**names, "`rule`": getattr(rule, "class_names", None)})
        self.check_inputs(first)
        readings = [reading.known(member, first) for member in self.members]
        self.from_logits = [known.from_logits for known in readings]
        self.multi_label = readings[0].multi_label
        self.has_stack = self.num_samples is not None or len(self.members) > 1
        self.predict = self._predictor(readings)
        self.rule = self._checked_rule(rule)

    def _predictor(self, readings):
        """A function from a batch to probabilities `(samples, batch, classes)`, and what else."""
        if self.num_samples is not None:
            arguments = (self.output, self.from_logits[0], self.multi_label, self.seed)
            sampler = sampler_of(self.members[0], self.num_samples, *arguments)
            return lambda batch: (sampler.stack(batch), {})
        if isinstance(self.members[0], Served):
            return lambda batch: self.members[0].all_outputs(batch, readings[0])
        graph = member_graph(self, self.members, readings)

        def checked(batch):
            found = graph(batch).numpy()
            for reading, probs in zip(readings, found, strict=True):
                reading.checked(probs)
            return found, {}

        return checked

    def _checked_rule(self, rule):
        """The rule as it judges probabilities, whatever it was fitted to."""
        if rule is None:
            return None
        if not callable(getattr(rule, "accept", None)) or not hasattr(rule, "get_config"):
            raise ValueError(
                "Argument `rule` must be a tfuq.selective.RejectionRule. "
                f"Received: rule={shown(rule)}"
            )
        if hasattr(rule, "units"):  # of numbers
            raise ValueError(
                "Argument `rule` must be for classes, because the model is read as a classifier. "
                "If it is a regression that does not declare so, pass its `family`. Received: "
                f"rule={shown(rule)}"
            )
        if rule.by == "group":
            raise ValueError(
                "Argument `rule` must not need groups, which the data do not name. Received: a "
                "rule with by='group'"
            )
        if rule.score in OF_STACKS and not self.has_stack:
            raise ValueError(
                "Argument `rule` must have a score of single predictions, because "
                f"{shown(self.model)} makes them. Received: a rule of {shown(rule.score)}"
            )
        if rule.multi_label != self.multi_label:
            raise ValueError(
                f"Argument `rule` must be fitted with multi_label={self.multi_label}. "
                f"Received: a rule with multi_label={rule.multi_label}"
            )
        check_detector_of(rule, self.ood)
        return type(rule)(**{**rule.get_config(), "from_logits": False})

    def _check_shape(self, stack):
        if stack.ndim != 3:
            raise ValueError(
                "Argument `model` must make one prediction (classes,) per example. For one "
                "prediction per pixel, call `predict_uncertainty` and write what you need. "
                f"Received: predictions of shape {stack.shape[1:]}"
            )

    def told(self, inputs, strange=None):
        stack, beside = self.predict(inputs)
        columns = self._measures(stack) | beside
        if self.rule is not None:
            given = {"score": strange} if self.rule.score == GIVEN else {}
            columns["accept"] = self.rule.accept(stack if self.has_stack else stack[0], **given)
        return columns

    def described(self):
        return {
            **super().described(),
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
            "rule": digest_of(self.rule),
            "class_names": self.class_names,
        }

    def _measures(self, stack):
        """What `decompose` says; NaN and the label -1 where a prediction is not finite."""
        self._check_shape(stack)
        check_count(self.class_names, stack.shape[-1])
        bad = ~np.isfinite(stack).all(axis=(0, 2))
        filler = 1 / max(stack.shape[-1], 2)  # probabilities, which are taken back below
        try:
            parts = decompose(np.where(bad[:, None], filler, stack), self.multi_label)
        except ValueError as error:
            raise ValueError(
                "Argument `model` must predict probabilities, or logits with `from_logits=True`. "
                f"Received: {error}"
            ) from None
        is_column = stack.shape[-1] == 1 and not self.multi_label

        def told(values, nothing, dtype):
            values = values[:, 0] if is_column else values
            missing = bad.reshape(-1, *[1] * (values.ndim - 1))
            return np.where(missing, nothing, values).astype(dtype)

        probs = np.where(bad[:, None], np.nan, parts.probs).astype("float32")
        columns = {"probabilities": probs, "label": told(parts.label, -1, "int64")}
        if self.class_names is not None and not self.multi_label:
            columns["class"] = [self.class_names[k] if k >= 0 else "" for k in columns["label"]]
        names = _MEASURES if self.has_stack else _MEASURES[:2]
        return columns | {name: told(getattr(parts, name), np.nan, "float32") for name in names}


def _checked_columns(columns):
    if columns is None:
        return None
    names = [new_word(name) for name in ([columns] if isinstance(columns, str) else columns)]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"Argument `columns` must name some of {', '.join(COLUMNS)}, each once. "
            f"Received: columns={shown(columns)}"
        )
    return names


def _checked_ood(ood):
    if ood is not None and not callable(getattr(ood, "score", None)):
        raise ValueError(
            f"Argument `ood` must be a fitted detector of tfuq.ood. Received: ood={shown(ood)}"
        )
    return ood


# --- Models -----------------------------------------------------------------------------------


class Served:
    """A SavedModel as a function like a Keras model."""

    def __init__(self, module):
        self.module = module
        self.variables = list(getattr(module, "variables", ()))
        remember(self, recalled(module))
        self.input_shape = None
        self._signature = module.signatures["serving_default"]
        _, named = self._signature.structured_input_signature
        if len(named) != 1:
            raise ValueError(
                "Argument `model` must be a SavedModel of one input. "
                f"Received: inputs {sorted(named)}"
            )
        ((self._name, self.spec),) = named.items()
        if self.spec.shape.rank is not None:
            self.input_shape = tuple(self.spec.shape)

    def __call__(self, batch, training=False):
        outputs = self.outputs(batch)
        return outputs[self._probabilities(outputs)]

    def _probabilities(self, outputs):
        """The name of the output that holds probabilities."""
        names = [name for name in ("probabilities", "probs") if name in outputs]
        names = names or (list(outputs) if len(outputs) == 1 else [])
        if not names:
            raise ValueError(
                "Argument `model` must be a SavedModel with one output, or with one named "
                f"'probabilities'. Received: outputs {sorted(outputs)}"
            )
        return names[0]

    def declared_output(self):
        """What the output holds, by its name in our exports: probabilities, or numbers."""
        names = self._signature.structured_outputs
        if "probabilities" in names or "probs" in names:
            return Meaning(False, None, "the SavedModel")
        return Meaning(says="the SavedModel", family=Point()) if "mean" in names else NOTHING

    def outputs(self, batch):
        """All outputs of a batch, by name."""
        return self._signature(**{self._name: tf.cast(batch, self.spec.dtype)})

    def all_outputs(self, batch, reading):
        """A stack of one sample, and what else the model tells that has a column."""
        outputs = self.outputs(batch)
        given = outputs[self._probabilities(outputs)]
        probs = reading.checked(reading.as_probs(batch, tf.cast(given, "float32")).numpy())
        known = np.isfinite(probs).reshape(len(probs), -1).all(axis=1)
        beside = {name: outputs[name].numpy() for name in _SERVED if name in outputs}
        for name in beside.keys() - {"ood_score"}:  # which says by itself what is unknown
            beside[name] = _told(known, beside[name])
        if probs.shape[1:] == (1,):
            beside = {name: np.reshape(values, (-1,)) for name, values in beside.items()}
        return probs[None], beside


def _told(known, values):
    """What a served model tells of the examples that are `known`; of the others False, or NaN."""
    known = known.reshape(-1, *[1] * (values.ndim - 1))
    return np.where(known, values, False if values.dtype == bool else np.nan).astype(values.dtype)


def as_model(model):
    """`model` itself, or what calls a SavedModel as a Keras model is called."""
    if hasattr(model, "signatures") and not isinstance(model, keras.Model):
        if "serving_default" not in model.signatures:
            raise ValueError(
                "Argument `model` must be a SavedModel with the signature 'serving_default'. "
                f"Received: signatures {sorted(model.signatures)}"
            )
        return Served(model)
    return model


def members_of(model):
    """The models whose predictions make the stack."""
    is_one = isinstance(model, keras.Model)
    members = [model] if is_one else list(getattr(model, "members", [model]))
    for member in members:
        if not isinstance(member, (keras.Model, Served)):
            raise ValueError(
                "Argument `model` must be a Keras model, a tfuq.ensembles.DeepEnsemble or a loaded "
                f"SavedModel. Received: model={shown(model)}"
            )
    return members


def _models_digest(members):
    """A mark of the weights, and of the layers that they are in."""
    marks = []
    for member in members:
        is_keras = isinstance(member, keras.Model)
        weights = member.weights if is_keras else member.variables
        if is_keras and len(members) == 1:  # whose posterior is drawn from
            weights = [*weights, *posterior_state(member)]
        weights = weights_digest(weights)
        marks.append([weights, layers_digest(member) if is_keras else None])
    return _text_digest(json_text(marks))


def digest_of(fitted):
    """A mark of what was fitted, or None."""
    return None if fitted is None else _text_digest(fitted.to_json())


def _text_digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]
