"""Families of one shape that is moved and stretched: normal, Laplace, Student's t, evidential."""

import math
import statistics

import numpy as np
import tensorflow as tf

from tfuq._predictions.family import (
    HALF_LOG_TAU,
    Family,
    distributions,
    normal_cdf,
    normal_log_prob,
    normal_pdf,
)
from tfuq._random import points

LEAST_DF = 2.01  # degrees of freedom, so that there is a variance


class LocationScale(Family):
    """Families of loc + scale z, where z is of one known distribution."""

    parameters = ("loc", "scale")

    def constrain(self, raw, min_scale):
        loc, scale = self.split(raw)
        return tf.concat([loc, tf.nn.softplus(scale) + min_scale], axis=-1)

    @staticmethod
    def standard_quantile(level, *shape):
        """The quantile of z, given what of its parameters is no loc or scale."""
        raise NotImplementedError

    def quantile(self, params, level):
        loc, scale, *shape = self.split(params)
        return loc + scale * tf.convert_to_tensor(self.standard_quantile(level, *shape), loc.dtype)


class Derived(LocationScale):
    """A family whose numbers are those of `plain`, with parameters that `plain_params` computes."""

    plain = None

    def plain_params(self, params):
        raise NotImplementedError

    def log_prob(self, params, y):
        return self.plain.log_prob(self.plain_params(params), y)

    def cdf(self, params, y):
        return self.plain.cdf(self.plain_params(params), y)

    def quantile(self, params, level):
        return self.plain.quantile(self.plain_params(params), level)

    def crps(self, params, y):
        return self.plain.crps(self.plain_params(params), y)

    def sample(self, params, seed):
        return self.plain.sample(self.plain_params(params), seed)

    def distribution(self, params):
        return self.plain.distribution(self.plain_params(params))


class Normal(LocationScale):
    """N(loc, scale^2)."""

    name = "normal"

    def aleatoric_variance(self, params):
        return tf.square(self.split(params)[1])

    def log_prob(self, params, y):
        return normal_log_prob(y, *self.split(params))

    def cdf(self, params, y):
        loc, scale = self.split(params)
        return normal_cdf((y - loc) / scale)

    @staticmethod
    def standard_quantile(level):
        return statistics.NormalDist().inv_cdf(level)

    def crps(self, params, y):
        """scale (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))   (Gneiting and Raftery 2007)."""
        loc, scale = self.split(params)
        z = (y - loc) / scale
        return scale * (z * (2 * normal_cdf(z) - 1) + 2 * normal_pdf(z) - 1 / math.sqrt(math.pi))

    def sample(self, params, seed):
        loc, scale = self.split(params)
        return loc + scale * points.normal(tf.shape(loc), seed=seed, dtype=loc.dtype)

    def distribution(self, params):
        return distributions().Normal(*self.split(params))


NORMAL = Normal()


class BayesianNormal(Derived):
    """N(loc, scale^2 + epistemic_scale^2): normal noise around a normal mean (VBLL)."""

    name = "bayesian_normal"
    plain = NORMAL
    parameters = ("loc", "scale", "epistemic_scale")
    has_epistemic = True

    def constrain(self, raw, min_scale):
        raise NotImplementedError("The layer computes these parameters itself.")

    def plain_params(self, params):
        """Parameters of the normal of y, whose variances add."""
        loc, scale, epistemic = self.split(params)
        return tf.concat([loc, tf.sqrt(tf.square(scale) + tf.square(epistemic))], axis=-1)

    def aleatoric_variance(self, params):
        return tf.square(self.split(params)[1])

    def epistemic_variance(self, params):
        return tf.square(self.split(params)[2])

    def training_log_prob(self, params, y):
        """E_q[log p(y | w)] = log N(y; loc, scale^2) - epistemic_scale^2 / (2 scale^2)

        (Harrison et al. 2024, theorem 1.)
        """
        return _normal_bound(y, *self.split(params))


@tf.custom_gradient
def _normal_bound(y, loc, scale, epistemic):
    """-((y - loc)^2 + epistemic^2) / (2 scale^2) - log scale - log(2 pi) / 2, all of one shape.

    A step of training is as long as its operations are many: gradients in the fewest of them.
    """
    difference, inverse = y - loc, tf.math.reciprocal(scale)
    precision = tf.square(inverse)
    squares = (tf.square(difference) + tf.square(epistemic)) * precision

    def gradients(upstream):
        weighed = upstream * precision
        toward = weighed * difference
        return -toward, toward, upstream * inverse * (squares - 1), -weighed * epistemic

    return -0.5 * squares - tf.math.log(scale) - HALF_LOG_TAU, gradients


class Laplace(LocationScale):
    """Laplace(loc, scale), of the standard deviation sqrt(2) scale."""

    name = "laplace"

    def aleatoric_variance(self, params):
        return 2 * tf.square(self.split(params)[1])

    def log_prob(self, params, y):
        loc, scale = self.split(params)
        return -tf.abs(y - loc) / scale - tf.math.log(2 * scale)

    def cdf(self, params, y):
        loc, scale = self.split(params)
        z = (y - loc) / scale
        tail = tf.exp(-tf.abs(z)) / 2
        return tf.where(z > 0, 1 - tail, tail)

    @staticmethod
    def standard_quantile(level):
        return -math.copysign(1, level - 0.5) * math.log(1 - 2 * abs(level - 0.5))

    def crps(self, params, y):
        """|y - loc| + scale exp(-|z|) - 3 scale / 4   (Jordan et al. 2019, appendix A)."""
        loc, scale = self.split(params)
        z = tf.abs(y - loc) / scale
        return scale * (z + tf.exp(-z) - 0.75)

    def sample(self, params, seed):
        loc, scale = self.split(params)
        shift = points.uniform(tf.shape(loc), seed=seed, dtype=loc.dtype) - 0.5
        return loc - scale * tf.sign(shift) * tf.math.log1p(-2 * tf.abs(shift))

    def distribution(self, params):
        return distributions().Laplace(*self.split(params))


class StudentT(LocationScale):
    """loc + scale T, where T has Student's t distribution with `df` degrees of freedom above 2."""

    name = "student_t"
    parameters = ("loc", "scale", "df")

    def constrain(self, raw, min_scale):
        loc, scale, df = self.split(raw)
        return tf.concat(
            [loc, tf.nn.softplus(scale) + min_scale, LEAST_DF + tf.nn.softplus(df)], -1
        )

    def aleatoric_variance(self, params):
        _, scale, df = self.split(params)
        return tf.square(scale) * df / (df - 2)

    def log_prob(self, params, y):
        loc, scale, df = self.split(params)
        return self._standard_log_prob((y - loc) / scale, df) - tf.math.log(scale)

    @staticmethod
    def _standard_log_prob(z, df):
        norm = tf.math.lgamma((df + 1) / 2) - tf.math.lgamma(df / 2)
        norm -= (tf.math.log(df) + math.log(math.pi)) / 2
        return norm - (df + 1) / 2 * tf.math.log1p(tf.square(z) / df)

    def cdf(self, params, y):
        loc, scale, df = self.split(params)
        return self._standard_cdf((y - loc) / scale, df)

    @staticmethod
    def _standard_cdf(z, df):
        half, df = tf.cast(0.5, z.dtype), df + tf.zeros_like(z)
        z = z + tf.zeros_like(df)
        tail = tf.math.betainc(df / 2, half + tf.zeros_like(z), df / (df + tf.square(z))) / 2
        return tf.where(z > 0, 1 - tail, tail)

    @staticmethod
    def standard_quantile(level, df):
        if df.dtype == tf.float32:
            return _float32_quantile(level, df)
        quantile = distributions().StudentT(df, tf.zeros_like(df), tf.ones_like(df)).quantile
        return quantile(tf.convert_to_tensor(level, df.dtype))

    def crps(self, params, y):
        """scale (z (2 F(z) - 1) + 2 f(z) (df + z^2) / (df - 1)
        - 2 sqrt(df) B(1/2, df - 1/2) / ((df - 1) B(1/2, df/2)^2))   (Jordan et al. 2019).
        """
        loc, scale, df = self.split(params)
        z = (y - loc) / scale
        density = tf.exp(self._standard_log_prob(z, df))
        first = z * (2 * self._standard_cdf(z, df) - 1)
        second = 2 * density * (df + tf.square(z)) / (df - 1)
        log_ratio = _log_beta_half(df - 0.5) - 2 * _log_beta_half(df / 2)
        return scale * (first + second - 2 * tf.sqrt(df) / (df - 1) * tf.exp(log_ratio))

    def sample(self, params, seed):
        loc, scale, df = self.split(params)
        seed, gamma_seed = points.split_seed(seed, 2)
        squares = 2 * points.gamma(df / 2, seed=gamma_seed)  # chi-squared of df degrees
        normals = points.normal(tf.shape(loc), seed=seed, dtype=loc.dtype)
        return loc + scale * normals * tf.sqrt(df / squares)

    def distribution(self, params):
        loc, scale, df = self.split(params)
        return distributions().StudentT(df, loc, scale)


STUDENT_T = StudentT()


def _float32_quantile(level, df):
    """The quantile of T, from a polynomial of 1 / df in [0, 1/2], which it is smooth in.

    To rounding for levels from 0.001 to 0.999, and to 1e-6 of it down to 0.00005: a graph of
    additions and multiplications, which every runtime has.
    """
    from scipy import stats  # which takes a second

    nodes = (np.polynomial.chebyshev.chebpts1(16) + 1) / 4
    values = stats.t.ppf(level, 1 / nodes)
    curve = np.polynomial.Chebyshev.fit(nodes, values, 15, domain=[0, 0.5])
    at, found, before = 4 / df - 1, 0.0, 0.0  # Clenshaw's recurrence
    for coefficient in curve.coef[:0:-1].astype("float32"):
        found, before = coefficient + 2 * at * found - before, found
    return curve.coef[0].astype("float32") + at * found - before


def _log_beta_half(x):
    """log B(1/2, x)."""
    return 0.5 * math.log(math.pi) + tf.math.lgamma(x) - tf.math.lgamma(x + 0.5)


class BayesianStudentT(Derived):
    """loc + scale sqrt(1 + ratio^2) T: the noise's precision has a Gamma posterior, and the mean a
    normal one in units of the noise (VBLL, Student's t form). `ratio` is its standard deviation.
    """

    name = "bayesian_student_t"
    plain = STUDENT_T
    parameters = ("loc", "scale", "df", "epistemic_ratio")
    has_epistemic = True

    def constrain(self, raw, min_scale):
        raise NotImplementedError("The layer computes these parameters itself.")

    def plain_params(self, params):
        """Parameters of the Student's t of y."""
        loc, scale, df, ratio = self.split(params)
        return tf.concat([loc, scale * tf.sqrt(1 + tf.square(ratio)), df], axis=-1)

    def aleatoric_variance(self, params):
        return STUDENT_T.aleatoric_variance(tf.concat(self.split(params)[:3], axis=-1))

    def epistemic_variance(self, params):
        return self.aleatoric_variance(params) * tf.square(self.split(params)[3])

    def training_log_prob(self, params, y):
        """E_q[log p(y | w, lambda)] with lambda ~ Gamma(df / 2, df scale^2 / 2):

        (E[log lambda] - log 2 pi - ((y - loc) / scale)^2 - ratio^2) / 2, where E[log lambda] is
        digamma(df / 2) - log(df / 2) - 2 log scale   (Harrison et al. 2024, appendix).
        """
        loc, scale, df, ratio = self.split(params)
        log_precision = tf.math.digamma(df / 2) - tf.math.log(df / 2) - 2 * tf.math.log(scale)
        squares = tf.square((y - loc) / scale) + tf.square(ratio)
        return (log_precision - squares) / 2 - HALF_LOG_TAU


class Evidential(Derived):
    """Normal-inverse-gamma over a normal's mean and variance (Amini et al. 2020): a Student's t.

    `loc`, `evidence` nu, `alpha` above 1 and `beta`: the noise has the variance
    beta / (alpha - 1), the mean has it divided by nu.
    """

    name = "evidential"
    plain = STUDENT_T
    parameters = ("loc", "evidence", "alpha", "beta")
    has_epistemic = True

    def constrain(self, raw, min_scale):
        loc, *rest = self.split(raw)
        evidence, alpha, beta = (tf.nn.softplus(part) + min_scale for part in rest)
        return tf.concat([loc, evidence, alpha + 1, beta], axis=-1)

    def aleatoric_variance(self, params):
        _, _, alpha, beta = self.split(params)
        return beta / (alpha - 1)

    def epistemic_variance(self, params):
        _, evidence, alpha, beta = self.split(params)
        return beta / (evidence * (alpha - 1))

    def plain_params(self, params):
        """The marginal of y: t of 2 alpha degrees, scale^2 = beta (1 + nu) / (nu alpha)."""
        loc, evidence, alpha, beta = self.split(params)
        scale = tf.sqrt(beta * (1 + evidence) / (evidence * alpha))
        return tf.concat([loc, scale, 2 * alpha], axis=-1)
