"""Families of distributions of a number by name: what the entries of a head's output are."""

import itertools

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._predictions.family import (
    Family,
    bisected,
    distributions,
    normal_cdf,
    normal_log_prob,
    normal_pdf,
)
from tfuq._predictions.location_scale import (
    NORMAL,
    BayesianNormal,
    BayesianStudentT,
    Evidential,
    Laplace,
    Normal,
    StudentT,
)
from tfuq._predictions.multivariate import BayesianMultivariateNormal, MultivariateNormal
from tfuq._predictions.probabilities import probabilities
from tfuq._random import points


class Mixture(Family):
    """sum_k p_k N(loc_k, scale_k^2), with `num_components` normals; p is a soft-max of logits."""

    name = "mixture"

    def __init__(self, num_components):
        check_integer("num_components", num_components, 1)
        self.num_components = int(num_components)
        blocks = ("logit", "loc", "scale")
        self.parameters = tuple(f"{b}_{k}" for b in blocks for k in range(self.num_components))

    def get_config(self):
        return {"name": self.name, "num_components": self.num_components}

    def components(self, params):
        """Logits, locs and scales, each `(..., units, components)`."""
        blocks, count = self.split(params), self.num_components
        return [tf.stack(blocks[i : i + count], -1) for i in (0, count, 2 * count)]

    def constrain(self, raw, min_scale):
        rest, scales = tf.split(raw, [-1, raw.shape[-1] // 3], axis=-1)
        return tf.concat([rest, tf.nn.softplus(scales) + min_scale], axis=-1)

    def mean(self, params):
        logits, loc, _ = self.components(params)
        return tf.reduce_sum(_shares(logits) * loc, axis=-1)

    def aleatoric_variance(self, params):
        logits, loc, scale = self.components(params)
        probs = _shares(logits)
        mean = tf.reduce_sum(probs * loc, axis=-1, keepdims=True)
        return tf.reduce_sum(probs * (tf.square(scale) + tf.square(loc - mean)), axis=-1)

    def log_prob(self, params, y):
        logits, loc, scale = self.components(params)
        log_shares = _over_components(tf.nn.log_softmax, logits)
        terms = log_shares + normal_log_prob(y[..., None], loc, scale)
        return tf.reduce_logsumexp(terms, axis=-1)

    def cdf(self, params, y):
        logits, loc, scale = self.components(params)
        return tf.reduce_sum(
            _shares(logits) * normal_cdf((y[..., None] - loc) / scale),
            -1,
        )

    def quantile(self, params, level):
        _, loc, scale = self.components(params)
        reach = abs(NORMAL.standard_quantile(level)) + 1.0
        low = tf.reduce_min(loc - reach * scale, axis=-1)
        high = tf.reduce_max(loc + reach * scale, axis=-1)
        return bisected(lambda y: self.cdf(params[None], y), level, low, high)

    def crps(self, params, y):
        """sum_k p_k A(y - loc_k, scale_k^2) - sum_kl p_k p_l A(loc_k - loc_l, s_k^2 + s_l^2) / 2,
        A(m, s^2) = m (2 Phi(m / s) - 1) + 2 s phi(m / s)   (Grimit et al. 2006).
        """
        logits, loc, scale = self.components(params)
        probs = _shares(logits)
        to_label = tf.reduce_sum(probs * _mean_distance(y[..., None] - loc, scale), axis=-1)
        scales = tf.sqrt(tf.square(scale)[..., :, None] + tf.square(scale)[..., None, :])
        between = _mean_distance(loc[..., :, None] - loc[..., None, :], scales)
        weights = probs[..., :, None] * probs[..., None, :]
        return to_label - tf.reduce_sum(weights * between, axis=(-2, -1)) / 2

    def sample(self, params, seed):
        logits, loc, scale = self.components(params)
        seed, pick_seed = points.split_seed(seed, 2)
        shape, dtype = tf.shape(loc)[:-1], loc.dtype
        picks = points.uniform(shape, seed=pick_seed, dtype=dtype)[..., None]
        below = tf.cast(picks > tf.cumsum(_shares(logits), axis=-1), "int32")
        picked = tf.one_hot(
            tf.minimum(tf.reduce_sum(below, axis=-1), self.num_components - 1),
            self.num_components,
            dtype=dtype,
        )
        loc, scale = (tf.reduce_sum(part * picked, axis=-1) for part in (loc, scale))
        return loc + scale * points.normal(shape, seed=seed, dtype=dtype)

    def distribution(self, params):
        logits, loc, scale = self.components(params)
        tfd = distributions()
        return tfd.MixtureSameFamily(tfd.Categorical(logits=logits), tfd.Normal(loc, scale))


def _shares(logits):
    """Of the components, over the last axis."""
    return _over_components(lambda rows: probabilities(rows, True, is_binary=False), logits)


def _over_components(function, logits):
    """A function of rows; TensorFlow's soft-max takes five axes at most on some processors."""
    if logits.shape.rank <= 5:
        return function(logits)
    return tf.reshape(function(tf.reshape(logits, [-1, logits.shape[-1]])), tf.shape(logits))


def _mean_distance(mean, scale):
    """E|N(mean, scale^2)|."""
    z = mean / scale
    return mean * (2 * normal_cdf(z) - 1) + 2 * scale * normal_pdf(z)


class Quantiles(Family):
    """Quantiles of given levels, which do not cross; between them the quantile function is linear.

    Its mean is the median, and its standard deviation that of the normal distribution with the
    same outermost quantiles: quantiles say no more.
    """

    name = "quantiles"
    has_density = False

    def __init__(self, levels):
        self.levels = checked_levels(levels)
        self.parameters = tuple(f"quantile_{level:g}" for level in self.levels)

    def check_range(self, params):
        blocks = np.split(params, self.size, axis=-1)
        for lower, upper in itertools.pairwise(blocks):
            if (lower > upper).any():
                raise ValueError(
                    "Argument `params` must hold quantiles that do not cross, for the levels "
                    f"{self.levels}. Received: {np.count_nonzero(lower > upper)} that do"
                )

    def get_config(self):
        return {"name": self.name, "levels": list(self.levels)}

    def constrain(self, raw, min_scale):
        """From the middle outwards, each further by a softplus: never crossing."""
        blocks, middle = self.split(raw), (self.size - 1) // 2
        found = {middle: blocks[middle]}
        for index in range(middle + 1, self.size):
            found[index] = found[index - 1] + tf.nn.softplus(blocks[index])
        for index in range(middle - 1, -1, -1):
            found[index] = found[index + 1] - tf.nn.softplus(blocks[index])
        return tf.concat([found[index] for index in range(self.size)], axis=-1)

    def mean(self, params):
        return self.quantile(params, 0.5)

    def aleatoric_variance(self, params):
        low, high = (
            NORMAL.standard_quantile(self.levels[0]),
            NORMAL.standard_quantile(self.levels[-1]),
        )
        blocks = self.split(params)
        return tf.square((blocks[-1] - blocks[0]) / (high - low))

    def log_prob(self, params, y):
        raise ValueError(
            "Quantiles have no density: train them with `head.pinball()` and compare them by "
            "`crps`. Received: a likelihood of the family 'quantiles'"
        )

    def cdf(self, params, y):
        """Linear between the quantiles; NaN beyond the outermost, of which nothing is known."""
        blocks, found = self.split(params), tf.fill(tf.shape(y), tf.cast(np.nan, y.dtype))
        for left, right, low, high in zip(
            self.levels, self.levels[1:], blocks, blocks[1:], strict=False
        ):
            share = tf.math.divide_no_nan(y - low, high - low)
            found = tf.where((y >= low) & (y <= high), left + (right - left) * share, found)
        return found

    def quantile(self, params, level):
        blocks = self.split(params)
        if not self.levels[0] - 1e-9 <= level <= self.levels[-1] + 1e-9:
            raise ValueError(
                f"The level must be within the `levels` of the head, {list(self.levels)}: it has "
                f"learned nothing beyond them. Received: {level:g}"
            )
        index = min(max(int(np.searchsorted(self.levels, level)), 1), self.size - 1)
        left, right = self.levels[index - 1], self.levels[index]
        share = float(np.clip((level - left) / (right - left), 0, 1))
        return (1 - share) * blocks[index - 1] + share * blocks[index]

    def pinball(self, params, y):
        """Mean over the levels of max(q (y - u), (q - 1) (y - u))   (Koenker and Bassett 1978)."""
        losses = [
            tf.maximum(level * (y - u), (level - 1) * (y - u))
            for level, u in zip(self.levels, self.split(params), strict=True)
        ]
        return tf.add_n(losses) / self.size

    def crps(self, params, y):
        """Twice the mean pinball loss, which tends to the CRPS as levels become dense."""
        return 2 * self.pinball(params, y)

    def sample(self, params, seed):
        """Draws between the outermost quantiles."""
        blocks = tf.stack(self.split(params), axis=-1)
        share = points.uniform(tf.shape(blocks)[:-1], seed=seed, dtype=blocks.dtype)
        at = self.levels[0] + (self.levels[-1] - self.levels[0]) * share
        found = blocks[..., 0]
        for index, (left, right) in enumerate(zip(self.levels, self.levels[1:], strict=False)):
            part = tf.clip_by_value((at - left) / (right - left), 0, 1)
            found += part * (blocks[..., index + 1] - blocks[..., index])
        return found

    def distribution(self, params):
        raise ValueError("Quantiles are no distribution. Received: family 'quantiles'")


def checked_levels(levels):
    """The argument `levels`, at least two probabilities that increase, as a tuple of floats."""
    try:
        found = [float(level) for level in levels]
        if len(found) > 1 and found[0] > 0 and found[-1] < 1 and (np.diff(found) > 0).all():
            return tuple(found)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        "Argument `levels` must hold at least two numbers in (0, 1) that increase. "
        f"Received: levels={shown(levels)}"
    )


class Point(Family):
    """A number alone, as of a network that is trained with a squared error."""

    name = "point"
    parameters = ("loc",)
    has_noise = has_density = False

    def constrain(self, raw, min_scale):
        return raw

    def aleatoric_variance(self, params):
        return tf.zeros_like(params)

    def _refuse(self, *_):
        raise ValueError(
            "The network predicts numbers without their uncertainty: end it with a head such as "
            "`tfuq.layers.NormalDense`, or fit `ConformalRegressor(method='split')`. Received: "
            "family 'point'"
        )

    log_prob = cdf = quantile = crps = sample = distribution = _refuse


FAMILIES = {
    kind.name: kind
    for kind in (
        *(Normal, BayesianNormal, Laplace, StudentT, BayesianStudentT, Evidential),
        *(Mixture, Quantiles, Point, MultivariateNormal, BayesianMultivariateNormal),
    )
}


def family_named(family):
    """The `Family` of a name, a configuration, or as it is.

    Raises:
        ValueError: If there is none of that name, or its arguments are missing.
    """
    if isinstance(family, Family):
        return family
    config = {"name": family} if isinstance(family, str) else family
    if isinstance(config, dict) and config.get("name") in FAMILIES:
        arguments = {key: value for key, value in config.items() if key != "name"}
        try:
            return FAMILIES[config["name"]](**arguments)
        except TypeError:
            pass  # arguments that are missing, or that it does not have
    raise ValueError(
        f"Argument `family` must be one of {sorted(FAMILIES)}, or a dict of such a `name` and its "
        "arguments (`num_components` of 'mixture', `levels` of 'quantiles', `num_factors` of "
        "'multivariate_normal'). "
        f"Received: family={shown(family)}"
    )
