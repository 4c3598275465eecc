"""Base of the families of distributions of a number, and formulas that several of them use.

An output holds the parameters of `units` numbers in its last axis, block by block: first the first
parameter of every number, then the second of every number. All is written with TensorFlow, for
arrays (float64), graphs and exports; no function looks at values to find out what they are.
"""

import math

import numpy as np
import tensorflow as tf

LEAST_SCALE = 1e-6  # added to scales, so that their logarithms stay finite
AT_LEAST_0 = ("scale", "epistemic", "df", "evidence", "alpha", "beta")  # names of parameters
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def normal_log_prob(y, loc, scale):
    """log N(y; loc, scale^2) = -((y - loc) / scale)^2 / 2 - log scale - log(2 pi) / 2."""
    return -tf.square((y - loc) / scale) / 2 - tf.math.log(scale) - HALF_LOG_TAU


def normal_cdf(z):
    """P(N(0, 1) <= z), without cancellation in the lower tail."""
    return tf.math.erfc(-z / math.sqrt(2)) / 2


def normal_pdf(z):
    return tf.exp(-tf.square(z) / 2 - HALF_LOG_TAU)


class Family:
    """Base of families: subclasses say their parameters and formulas of `(..., units)` tensors."""

    name = ""
    parameters = ()
    """Names of the blocks of an output, in their order."""
    has_noise = True
    """Whether it says how a number scatters around its mean."""
    has_density = True
    """Whether a label has a likelihood."""
    has_epistemic = False
    """Whether one output says how uncertain its mean is."""
    is_joint = False
    """Whether the numbers of an example depend on each other."""

    @property
    def size(self):
        """How many entries of the output belong to one number."""
        return len(self.parameters)

    def get_config(self):
        """What `family_named` makes it from."""
        return {"name": self.name}

    def __eq__(self, other):
        return isinstance(other, Family) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash(str(self.get_config()))

    def __repr__(self):
        told = [f"{k}={v!r}" for k, v in self.get_config().items() if k != "name"]
        return f"{self.name}({', '.join(told)})"

    def units(self, width):
        """How many numbers an output of this width describes."""
        if width is None or width % self.size or not width:
            raise ValueError(
                f"The last axis of parameters of the family {self.name!r} must be a multiple of "
                f"{self.size}. Received: {width}"
            )
        return width // self.size

    def check_range(self, params):
        """Raises ValueError if parameters, an array, are out of their range; NaN is unknown.

        What a network says before its head has brought it into range has scales below 0, of which
        a deviation looks right and an interval is the wrong way round.
        """
        blocks = np.split(params, self.size, axis=-1)
        for name, block in zip(self.parameters, blocks, strict=True):
            if name.startswith(AT_LEAST_0) and (block < 0).any():
                raise ValueError(
                    f"Argument `params` must hold {name!r} of at least 0. The parameters of the "
                    f"family {self.name!r} are, in this order: {', '.join(self.parameters)}. "
                    f"Received: {block[block < 0][0]:g} ({np.count_nonzero(block < 0)} below 0)"
                )

    def split(self, params):
        """The parameters `(..., units)` of an output `(..., units * size)`."""
        self.units(params.shape[-1])
        return tf.split(params, self.size, axis=-1)

    def constrain(self, raw, min_scale):
        """Parameters in their range, of the same shape, of what a linear map gave."""
        raise NotImplementedError

    def mean(self, params):
        """E[y]."""
        return self.split(params)[0]

    def aleatoric_variance(self, params):
        """Variance of y around the mean, of the noise in the labels."""
        raise NotImplementedError

    def epistemic_variance(self, params):
        """Variance of the mean itself, as far as one output knows it."""
        return tf.zeros_like(self.mean(params))

    def variance(self, params):
        return self.aleatoric_variance(params) + self.epistemic_variance(params)

    def log_prob(self, params, y):
        """log p(y), nats, `(..., units)`; of all numbers together, `(..., 1)`, where `is_joint`."""
        raise NotImplementedError

    def training_log_prob(self, params, y):
        """What a fit maximizes, whose mean over the numbers is nats per number: `log_prob`, or a
        bound where the weights are random.
        """
        return self.log_prob(params, y)

    def cdf(self, params, y):
        """P(number <= y)."""
        raise NotImplementedError

    def quantile(self, params, level):
        """The number that is not exceeded with the probability `level`, a Python float."""
        raise NotImplementedError

    def crps(self, params, y):
        """Continuous ranked probability score, in the unit of y, at least 0."""
        raise NotImplementedError

    def sample(self, params, seed):
        """One draw for each number, from a seed `(2,)`."""
        raise NotImplementedError

    def distribution(self, params):
        """TFP distribution with the batch shape `(..., units)`; where `is_joint` with the batch
        shape `(...)` and the event shape `(units,)`.
        """
        raise NotImplementedError


def distributions():
    """`tfp.distributions`, imported here: TFP takes seconds."""
    import tensorflow_probability as tfp

    return tfp.distributions


# How many points are looked at in each round, and rounds: to 2e-13 of what was between the ends in
# float64, to 5e-7 in float32, which is that of graphs: few rounds are few operations in files.
SECTIONS = {"float64": (1, 42), "float32": (15, 5)}


def bisected(cdf, level, low, high):
    """The y between `low` and `high` with cdf(y) = `level`; NaN where the ends are.

    `cdf` takes several y for each number, along a first axis that is new, and does not fall.
    """
    points, rounds = SECTIONS[low.dtype.name]
    shares = np.arange(1, points + 1).reshape(-1, *[1] * low.shape.rank) / (points + 1)
    shares = tf.constant(shares, low.dtype)
    for _ in range(rounds):
        width = high - low
        below = tf.cast(cdf(low + shares * width) < level, low.dtype)
        low += tf.reduce_sum(below, axis=0) * width / (points + 1)
        high = low + width / (points + 1)
    return (low + high) / 2


def labels_like(y, params, family, name="y_true"):
    """Labels `(..., units)` in the dtype of parameters `(..., units * size)`, tensors both.

    A missing last axis is added where there is one number; nothing else is broadcast. In graphs a
    shape that is not known is compared when the graph runs (not under XLA).

    Raises:
        ValueError: If the shape is another one.
    """
    units = family.units(params.shape[-1])
    expected = (*params.shape[:-1], units)
    if y.shape.rank is None:
        # Keras forgets the rank of labels that are a row in one call and a column in the next.
        return tf.cast(_in_shape(y, params, expected, name), params.dtype)
    found = tuple(y.shape)
    if units == 1 and len(found) == len(expected) - 1 and len(found) > 0:
        y, found = y[..., None], (*found, 1)
    fits = len(found) == len(expected)
    pairs = zip(found, expected, strict=True) if fits else ()
    if not fits or any(a != b and None not in (a, b) for a, b in pairs):
        also = f" or {expected[:-1]}" if units == 1 else ""
        raise ValueError(
            f"Argument `{name}` must have shape {expected}{also}: {units} "
            f"{'number' if units == 1 else 'numbers'} of the family {family.name!r}. "
            f"Received: {name} of shape {tuple(y.shape)}"
        )
    return tf.cast(_in_shape(y, params, expected, name), params.dtype)


def _in_shape(y, params, expected, name):
    """The labels in the shape of the numbers; what is not known of it is compared as it runs."""
    if y.shape.is_fully_defined():
        return y
    shape = tf.concat([tf.shape(params)[:-1], expected[-1:]], axis=0)
    if y.shape.rank is None and expected[-1] == 1:  # a row or a column, which have one order
        column = tf.ones(tf.cast(tf.rank(y) < len(expected), tf.int32)[None], tf.int32)
        y = tf.reshape(y, tf.concat([tf.shape(y), column], axis=0))
    told = f"Argument `{name}` must have shape {expected}, that of the numbers"
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(y), shape, message=told)]):
        return tf.ensure_shape(tf.identity(y), expected)
