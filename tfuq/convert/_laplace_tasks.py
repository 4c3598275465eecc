"""Tasks of a Laplace approximation: classes, labels, numbers, with likelihood and curvature."""

import copy

import keras
import numpy as np
import tensorflow as tf
from scipy import special

from tfuq._arguments import shown
from tfuq._math.logistic_normal import probit
from tfuq._models.meaning import reading_of
from tfuq._models.numbers import declared_family
from tfuq._predictions import families
from tfuq._predictions.probabilities import probabilities
from tfuq.convert._curvature import with_one
from tfuq.convert._evidence import ConstantNoise, Fixed
from tfuq.convert.head import start_from
from tfuq.layers import LastLayerLaplace, LastLayerLaplaceRegression, NormalDense
from tfuq.layers.base import softplus_inverse


def task_of(model, old, from_logits, multi_label):
    """The task of a model that ends in the layer `old`, as it or the compiled loss declares.

    Raises:
        ValueError: If nobody says what the output is, or it is none of these.
    """
    units = model.outputs[0].shape[-1]
    family = declared_family(model) if from_logits is None and multi_label is None else None
    if family is None:
        reading = reading_of(None, from_logits, multi_label).known(model)
        return _Classes(units, reading, getattr(old, "bias", None) is not None)
    is_normal = isinstance(old, NormalDense) and not old.mean_only
    if is_normal or isinstance(old, LastLayerLaplaceRegression):
        return _NormalNumbers(old)
    if not isinstance(family, families.Point) or isinstance(old, NormalDense):
        raise ValueError(
            "Argument `model` must end in a Dense trained by squared errors or in a NormalDense "
            f"that returns its parameters, for a regression. Received: {shown(old)} of the family "
            f"{shown(family)}"
        )
    return _Numbers(units, getattr(old, "bias", None) is not None)


class Rows:
    """Rows of a batch, float64: inputs of the head, its outputs, labels, weights, curvatures."""

    def __init__(self, task, x, outputs, labels, weight):
        self.task, self.x, self.outputs = task, x, outputs
        self.labels, self.weight = labels, weight
        self.diagonal, self.outer = task.curvature(outputs)

    def where(self, inside):
        """Those of the mask `inside`."""
        outputs = [each[inside] for each in self.outputs]
        parts = (self.x, self.labels, self.weight)
        x, labels, weight = (part[inside] for part in parts)
        return Rows(self.task, x, outputs, labels, weight)

    def sums(self):
        """What the likelihood needs of them."""
        return self.task.sums(self)

    def checksum(self):
        """A number by which other rows are told from them."""
        return float(np.sum(self.x) + np.sum(self.outputs[0]))

    def gradient(self):
        """Of their log-likelihood in the weights, `(features + 1, units)`; at a noise of 1."""
        residuals = self.task.residuals(self) * self.weight[:, None]
        return with_one(self.x, self.task.use_bias).T @ residuals

    def moved(self, change):
        """They under weights that are changed by so much, `(features + 1, units)`."""
        found = copy.copy(self)
        moved = self.outputs[0] + with_one(self.x, self.task.use_bias) @ change
        found.outputs = [moved, *self.outputs[1:]]
        return found

    def log_predictive(self, variance, noise):
        """Their log-likelihood, summed, under weights with these variances of the outputs."""
        return float(np.sum(self.weight * self.task.log_predictive(self, variance, noise)))


def joined(parts):
    """`Rows` of several batches as one."""
    names = ("x", "labels", "weight")
    x, labels, weight = (np.concatenate([getattr(p, n) for p in parts]) for n in names)
    outputs = [np.concatenate(each) for each in zip(*(p.outputs for p in parts), strict=True)]
    return Rows(parts[0].task, x, outputs, labels, weight)


class _Task:
    """A subclass has `units`, `use_bias` and `coupled`: whether its outputs' curvatures cross."""

    coupled = False

    def start(self, head, old):
        """Gives the head the means of the layer whose place it took."""
        start_from(head, old)

    def means(self, head):
        """Arrays of the weights that the prior is on."""
        return [np.asarray(head.kernel), *([np.asarray(head.bias)] if head.use_bias else [])]

    def fill(self, head, spread, noise):
        """Gives the head its posterior."""
        del noise  # known
        for name, value in spread.items():
            getattr(head, name).assign(value)

    def no_sums(self):
        return [0.0]

    def sums(self, rows):
        likely = self.log_likelihood(rows.labels, *rows.outputs)
        return [np.sum(rows.weight * likely)]

    def likelihood(self, sums):
        return Fixed(sums[0])

    def rows(self, features, outputs, y, weight, name):
        """`Rows` of a batch, whose labels and weights are checked."""
        leading = features.shape[:-1]
        x = features.reshape(-1, features.shape[-1]).astype("float64")
        outputs = [each.numpy().reshape(len(x), -1).astype("float64") for each in outputs]
        if not all(np.isfinite(each).all() for each in (x, *outputs)):
            raise ValueError(
                f"Argument `{name}` must give finite features and outputs. "
                "Received: NaN or infinity in them"
            )
        if y is None:
            raise ValueError(f"Argument `{name}` must hold labels: (x, y). Received: no labels")
        labels = self.labels(np.asarray(y), leading, name)
        return Rows(self, x, outputs, labels, _weights(weight, leading, name))

    def _as_rows(self, y, leading, name):
        """Labels `(rows, units)` of the shape of the outputs."""
        fits = y.shape == (*leading, self.units) or (self.units == 1 and y.shape == leading)
        if not fits:
            raise ValueError(
                f"Argument `{name}` must hold labels of the shape {(*leading, self.units)}. "
                f"Received: labels of the shape {y.shape}"
            )
        if y.dtype.kind in "OSUMmc" or not np.isfinite(y).all():
            raise ValueError(
                f"Argument `{name}` must hold finite numbers as labels. Received: {shown(y)}"
            )
        return y.reshape(-1, self.units).astype("float64")


def _weights(weight, leading, name):
    """Weights `(rows,)` of rows, from those of examples or of all positions."""
    rows = int(np.prod(leading))
    if weight is None:
        return np.ones(rows)
    weight = np.asarray(weight, "float64")
    if weight.size not in (leading[0], rows) or not np.all(weight >= 0) or np.isinf(weight).any():
        raise ValueError(
            f"Argument `{name}` must hold weights of at least 0, one for each example or each of "
            f"its positions. Received: weights of the shape {weight.shape}, from {weight.min():.3g}"
        )
    return np.repeat(weight.ravel(), rows // weight.size)


class _Classes(_Task):
    def __init__(self, units, reading, use_bias):
        self.units, self.reading, self.use_bias = units, reading, use_bias
        self.several = bool(reading.multi_label) or units == 1
        self.coupled = not self.several

    def head(self, structure, name):
        likelihood = "bernoulli" if self.several else "categorical"
        return LastLayerLaplace(
            self.units, structure, likelihood=likelihood, use_bias=self.use_bias, name=name
        )

    def outputs(self, head, inputs):
        return [head.mean_logits(inputs)]

    def said_by(self, model, x):
        return self.reading.probs(model, x)

    def comparable(self, outputs):
        return probabilities(outputs[0], True, self.several)

    def _probs(self, logits):
        return np.asarray(probabilities(logits, True, self.several))

    def curvature(self, outputs):
        probs = self._probs(outputs[0])
        return (probs * (1 - probs), None) if self.several else (probs, probs)

    def labels(self, y, leading, name):
        if self.several:
            labels = self._as_rows(y, leading, name)
            self._check_between(labels, name)
            return labels
        if y.shape == (*leading, self.units):
            labels = y.reshape(-1, self.units).astype("float64")
            self._check_between(labels, name)
            return labels
        if y.shape not in (leading, (*leading, 1)):
            raise ValueError(
                f"Argument `{name}` must hold labels of the shape {leading} or "
                f"{(*leading, self.units)}. Received: labels of the shape {y.shape}"
            )
        numbers = y.ravel()
        if numbers.dtype.kind not in "iufb" or not np.isin(numbers, range(self.units)).all():
            raise ValueError(
                f"Argument `{name}` must hold labels from 0 to {self.units - 1}. "
                f"Received: {shown(numbers)}"
            )
        return np.eye(self.units)[numbers.astype(int)]

    def _check_between(self, labels, name):
        sums = 1.0 if self.several else labels.sum(axis=-1)
        if not (np.all((labels >= 0) & (labels <= 1)) and np.allclose(sums, 1, atol=1e-4)):
            raise ValueError(
                f"Argument `{name}` must hold labels in [0, 1], which sum to 1 where classes "
                f"exclude one another. Received: labels from {labels.min():.3g} to "
                f"{labels.max():.3g}"
            )

    def log_likelihood(self, labels, logits):
        if self.several:
            return -np.sum(np.logaddexp(0, logits) - labels * logits, axis=-1)
        return np.sum(labels * special.log_softmax(logits, axis=-1), axis=-1)

    def residuals(self, rows):
        return rows.labels - self._probs(rows.outputs[0])

    def log_predictive(self, rows, variance, noise):
        return self.log_likelihood(rows.labels, probit(rows.outputs[0], variance).numpy())


class _Numbers(_Task):
    """Of a `Dense` trained by squared errors: normal noise that is to be found."""

    def __init__(self, units, use_bias):
        self.units, self.use_bias = units, use_bias

    def head(self, structure, name):
        return LastLayerLaplaceRegression(self.units, structure, use_bias=self.use_bias, name=name)

    def outputs(self, head, inputs):
        return [head.family.split(head(inputs))[0]]

    def said_by(self, model, x):
        return tf.cast(model(x, training=False), "float32")

    def comparable(self, outputs):
        return outputs[0]

    def curvature(self, outputs):
        return np.ones_like(outputs[0]), None

    def labels(self, y, leading, name):
        return self._as_rows(y, leading, name)

    def no_sums(self):
        return [0.0, np.zeros(self.units)]

    def sums(self, rows):
        residuals = rows.weight @ (rows.labels - rows.outputs[0]) ** 2
        return [rows.weight.sum(), residuals]

    def likelihood(self, sums):
        count, residuals = sums
        if not np.all(residuals > 0):
            raise ValueError(
                "Argument `data` must hold labels that the model does not predict exactly, as the "
                f"noise is found from what is left. Received: squared errors of {residuals}"
            )
        return ConstantNoise(count, residuals)

    def residuals(self, rows):
        return rows.labels - rows.outputs[0]

    def log_predictive(self, rows, variance, noise):
        return _log_normal(self.residuals(rows), variance + 1 / noise)

    def fill(self, head, spread, noise):
        super().fill(head, spread, noise)
        sigma = np.maximum(noise**-0.5 - head.min_scale, head.min_scale)
        head.noise_rho.assign(softplus_inverse(sigma))


class _NormalNumbers(_Task):
    """Of a `NormalDense`, or a head that was filled: noise that is known."""

    def __init__(self, old):
        self.old, self.units, self.use_bias = old, old.units, old.use_bias

    def head(self, structure, name):
        is_filled = isinstance(self.old, LastLayerLaplaceRegression)
        noise = self.old.noise if is_filled else "linear"
        return LastLayerLaplaceRegression(
            self.units,
            structure,
            noise=noise,
            use_bias=self.use_bias,
            min_scale=self.old.min_scale,
            name=name,
        )

    def start(self, head, old):
        if isinstance(old, LastLayerLaplaceRegression):
            start_from(head, old)
            head.noise_rho.assign(old.noise_rho)
            if head.noise == "linear":
                head.noise_kernel.assign(old.noise_kernel)
            return
        for weight, half in ((head.kernel, 0), (head.noise_kernel, 1)):
            weight.assign(keras.ops.split(old.kernel, 2, axis=-1)[half])
        if old.use_bias:
            head.bias.assign(old.bias[: self.units])
            head.noise_rho.assign(old.bias[self.units :])
        else:
            head.noise_rho.assign([0.0] * self.units)

    def outputs(self, head, inputs):
        return head.family.split(head(inputs))[:2]

    def said_by(self, model, x):
        return tf.cast(model(x, training=False)[..., : 2 * self.units], "float32")

    def comparable(self, outputs):
        return tf.concat(outputs, axis=-1)

    def curvature(self, outputs):
        return outputs[1] ** -2.0, None

    def labels(self, y, leading, name):
        return self._as_rows(y, leading, name)

    def log_likelihood(self, labels, mean, sigma):
        return _log_normal(labels - mean, sigma**2)

    def residuals(self, rows):
        mean, sigma = rows.outputs
        return (rows.labels - mean) / sigma**2

    def log_predictive(self, rows, variance, noise):
        mean, sigma = rows.outputs
        return _log_normal(rows.labels - mean, sigma**2 + variance)


def _log_normal(difference, variance):
    """Log-density of each row's numbers together."""
    terms = np.log(2 * np.pi * variance) + difference**2 / variance
    return -np.sum(terms, axis=-1) / 2
