"""Families of numbers that depend on each other: normal, of a low rank plus a diagonal."""

import tensorflow as tf

from tfuq._arguments import check_integer
from tfuq._predictions.family import HALF_LOG_TAU, Family, distributions
from tfuq._predictions.location_scale import NORMAL, Derived
from tfuq._random import points


class MultivariateNormal(Family):
    """N(loc, diag(scale^2) + F F^T) of the numbers of an example, F of shape (units, num_factors).

    `log_prob` is that of all numbers together, `(..., 1)`, so that draws of a network mix as joint
    distributions do; what a fit maximizes is that divided by the number of them, which compares
    with losses of single numbers. All else is of the marginal of each number.
    """

    name = "multivariate_normal"
    is_joint = True

    def __init__(self, num_factors):
        check_integer("num_factors", num_factors, 1)
        self.num_factors = int(num_factors)
        factors = (f"factor_{r}" for r in range(self.num_factors))
        self.parameters = ("loc", "scale", *factors)

    def get_config(self):
        return {"name": self.name, "num_factors": self.num_factors}

    def parts(self, params):
        """loc and scale `(..., units)`, and the factors `(..., units, num_factors)`."""
        loc, scale, *factors = self.split(params)
        return loc, scale, tf.stack(factors, axis=-1)

    def constrain(self, raw, min_scale):
        loc, scale, *factors = self.split(raw)
        return tf.concat([loc, tf.nn.softplus(scale) + min_scale, *factors], axis=-1)

    def aleatoric_variance(self, params):
        _, scale, factors = self.parts(params)
        return tf.square(scale) + tf.reduce_sum(tf.square(factors), axis=-1)

    def covariance(self, params):
        """Of the numbers of each example, `(..., units, units)`."""
        _, scale, factors = self.parts(params)
        return tf.linalg.diag(tf.square(scale)) + tf.matmul(factors, factors, transpose_b=True)

    def log_prob(self, params, y):
        """log N(y; loc, D + F F^T), D = diag(scale^2), `(..., 1)`."""
        loc, scale, factors = self.parts(params)
        (z,), log_det = whitened(scale, factors, y - loc)
        return -_sum(tf.square(z)) / 2 - log_det - loc.shape[-1] * HALF_LOG_TAU

    def training_log_prob(self, params, y):
        return self.log_prob(params, y) / self.units(params.shape[-1])

    def _marginals(self, params):
        """Parameters of the normal of each number."""
        loc = self.split(params)[0]
        return tf.concat([loc, tf.sqrt(self.aleatoric_variance(params))], axis=-1)

    def cdf(self, params, y):
        return NORMAL.cdf(self._marginals(params), y)

    def quantile(self, params, level):
        return NORMAL.quantile(self._marginals(params), level)

    def crps(self, params, y):
        return NORMAL.crps(self._marginals(params), y)

    def sample(self, params, seed):
        loc, scale, factors = self.parts(params)
        seed, factor_seed = points.split_seed(seed, 2)
        shared = points.normal(tf.shape(factors[..., :1, :]), seed=factor_seed, dtype=loc.dtype)
        noise = points.normal(tf.shape(loc), seed=seed, dtype=loc.dtype)
        return loc + scale * noise + tf.reduce_sum(factors * shared, axis=-1)

    def distribution(self, params):
        loc, scale, factors = self.parts(params)
        joint = distributions().MultivariateNormalDiagPlusLowRankCovariance
        return joint(loc, tf.square(scale), factors)


class BayesianMultivariateNormal(Derived):
    """N(loc, diag(scale^2 + epistemic_scale^2) + F F^T): correlated noise around means that are
    normal, and independent of each other (VBLL).
    """

    name = "bayesian_multivariate_normal"
    is_joint = True
    has_epistemic = True

    def __init__(self, num_factors):
        self.plain = MultivariateNormal(num_factors)
        self.num_factors = self.plain.num_factors
        self.parameters = (*self.plain.parameters, "epistemic_scale")

    def get_config(self):
        return {"name": self.name, "num_factors": self.num_factors}

    def constrain(self, raw, min_scale):
        raise NotImplementedError("The layer computes these parameters itself.")

    def plain_params(self, params):
        loc, scale, *factors, epistemic = self.split(params)
        return tf.concat([loc, tf.sqrt(tf.square(scale) + tf.square(epistemic)), *factors], -1)

    def _noise(self, params):
        """The parameters of the noise around known means, and the spread of the means."""
        *noise, epistemic = self.split(params)
        return tf.concat(noise, axis=-1), epistemic

    def aleatoric_variance(self, params):
        return self.plain.aleatoric_variance(self._noise(params)[0])

    def epistemic_variance(self, params):
        return tf.square(self._noise(params)[1])

    def covariance(self, params):
        """Of the numbers of each example, `(..., units, units)`."""
        return self.plain.covariance(self.plain_params(params))

    def training_log_prob(self, params, y):
        """E_q[log p(y | w)] = log N(y; loc, C) - tr(C^-1 diag(epistemic_scale^2)) / 2 of the
        covariance C of the noise (Harrison et al. 2024, theorem 1), over the number of numbers.
        """
        noise, epistemic = self._noise(params)
        _, scale, factors = self.plain.parts(noise)
        spread = tf.unstack(tf.linalg.diag(epistemic), axis=-2)
        columns, _ = whitened(scale, factors, *spread)
        trace = tf.add_n([_sum(tf.square(column)) for column in columns])
        return (self.plain.log_prob(noise, y) - trace / 2) / self.units(params.shape[-1])


def whitened(scale, factors, *vectors):
    """C^-1/2 v of each vector `(..., units)`, C = D + F F^T with D = diag(scale^2), and
    log det C / 2, `(..., 1)`.

    With w the columns of D^-1/2 F: D^-1/2 v is whitened by one after the other, which stays finite
    where a Cholesky decomposition would fail.

    ```
    (I + w w^T)^-1/2 = I - w w^T / (c + sqrt(c)),   c = det(I + w w^T) = 1 + |w|^2
    ```
    """
    vectors, log_det = [v / scale for v in vectors], _sum(tf.math.log(scale))
    columns = tf.unstack(factors / scale[..., None], axis=-1)
    while columns:
        w, *columns = columns
        c = 1 + _sum(tf.square(w))
        log_det += tf.math.log(c) / 2
        shrunk = w / (c + tf.sqrt(c))
        vectors, columns = ([v - shrunk * _sum(w * v) for v in some] for some in (vectors, columns))
    return vectors, log_det


def _sum(values):
    return tf.reduce_sum(values, axis=-1, keepdims=True)
