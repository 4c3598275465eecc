"""Standard normal points, for inference and training: all random numbers are made here.

Points are `(points, dimensions)`, shared by all rows of a batch. A rule says how they are placed:

- `"sobol"`: scrambled Sobol points (Owen 1995, as in SciPy), each with its mirror image. Fixed ones
  are also given the exact covariance, where there are more points than dimensions;
- `"antithetic"`: independent draws, each with its mirror image;
- `"iid"`: independent draws.

The mirror image of a point is not stored: whoever uses the points adds it. A rule with mirror
images thus stores half as many points as it has samples.

At inference the points are fixed, like the nodes of a quadrature. In training they are new in each
step and every one is exactly standard normal, so that means over them are unbiased.
"""

import numpy as np
import tensorflow as tf
from scipy import linalg, special
from scipy.stats import qmc

RULES = ("sobol", "antithetic", "iid")
BITS = 23  # (k + 1/2) / 2^23 is exact in float32 and never 0 or 1
LEAST_UNIFORM = 1e-7  # in place of 0, whose logarithm is infinite
# TensorFlow's default algorithm is some 40 times slower than this one when compiled on a CPU.
ALGORITHM = "philox"


class NormalPoints:
    """Standard normal points `(points, dimensions)`, float32, of one rule.

    Args:
        rule: One of `RULES`.
        num_samples: Number of samples, mirror images included; an odd number of them is rounded up.
        dimensions: Number of standard normals in a point.
        seed: Integer. The fixed points, and the pattern of fresh Sobol points, follow from it.
        fresh: Whether each call makes new points, from the seed it is given.
    """

    def __init__(self, rule, num_samples, dimensions, *, seed=0, fresh=False):
        self.mirrored = rule != "iid"
        self.fresh = fresh
        self._shape = (-(-num_samples // 2) if self.mirrored else num_samples, dimensions)
        self._cells = self._fixed = None
        cells = sobol_cells(*self._shape, seed) if rule == "sobol" else None
        # An eager constant, which traced functions take as an input: written into each graph, a
        # table of many classes would be compiled with it.
        with tf.init_scope():
            if fresh and rule == "sobol":
                self._cells = tf.constant(cells)
            elif not fresh:
                self._fixed = tf.constant(_fixed_points(self._shape, cells, seed))

    def __call__(self, seed=None):
        """The fixed points, or new ones from `seed`, an integer tensor of shape `(2,)`."""
        if not self.fresh:
            return self._fixed
        if self._cells is None:
            return normal(self._shape, seed=seed)
        return shifted_points(self._cells, seed=seed)


def _fixed_points(shape, cells, seed):
    if cells is None:
        return np.random.default_rng(seed).standard_normal(shape, dtype="float32")
    return whitened(special.ndtri((cells + 0.5) / 2**BITS)).astype("float32")


def whitened(points):
    """The points times L^-T, with L L^T their second moments: these become exactly the identity.

    With mirror images, means of all polynomials of third degree are then exact (moment matching);
    the error of log-probabilities falls by a third at least. Points that are not more than their
    dimensions cannot have these moments, and stay as they are.
    """
    count, dimensions = points.shape
    if count <= dimensions:
        return points
    cholesky = np.linalg.cholesky(points.T @ points / count)
    return linalg.solve_triangular(cholesky, points.T, lower=True).T


def sobol_cells(count, dimensions, seed=0):
    """Scrambled Sobol points as integers in [0, 2^BITS): `(count, dimensions)`, int32.

    SciPy knows 21,201 dimensions; those beyond are independent draws.
    """
    rng = np.random.default_rng(seed)
    known = min(dimensions, qmc.Sobol.MAXDIM)
    engine = qmc.Sobol(known, scramble=True, rng=rng, bits=BITS)
    exponent = (count - 1).bit_length()  # SciPy warns of a number that is no power of two
    cells = (engine.random_base2(exponent)[:count] * 2**BITS).astype("int32")
    tail = rng.integers(2**BITS, size=(count, dimensions - known), dtype="int32")
    return np.concatenate([cells, tail], axis=1)


def shifted_points(cells, *, seed):
    """Standard normal points from Sobol cells, under a random digital shift.

    The shift (an exclusive or with random bits, the same for all points of a dimension) makes each
    point uniform, and keeps the points as evenly spread as they were.
    """
    shift = _random_bits(cells.shape[1:], seed, BITS)
    shifted = tf.bitwise.bitwise_xor(cells, shift)
    return tf.math.ndtri((tf.cast(shifted, "float32") + 0.5) * 2.0**-BITS)


def normal(shape, *, seed, dtype="float32"):
    """Independent standard normals (Box and Muller 1958), the same with XLA and without.

    ```
    z_2k, z_2k+1 = sqrt(-2 log u_2k) (sin, cos)(2 pi u_2k+1)
    ```

    These are the numbers of `tf.random.stateless_normal` without XLA. With it that makes other
    uniform numbers of the same bits, and other pairs of these.
    """
    count = tf.reduce_prod(tf.cast(shape, "int32"))  # of no axes, too
    pairs = tf.reshape(_uniform([(count + 1) // 2 * 2], seed), (-1, 2))
    radius = tf.sqrt(-2 * tf.math.log(tf.maximum(pairs[:, 0], LEAST_UNIFORM)))
    angle = 2 * np.float32(np.pi) * pairs[:, 1]
    both = tf.stack([radius * tf.sin(angle), radius * tf.cos(angle)], axis=1)
    return tf.cast(tf.reshape(tf.reshape(both, (-1,))[:count], shape), dtype)


def uniform(shape, *, seed, dtype="float32"):
    """Independent numbers in [0, 1)."""
    return tf.random.stateless_uniform(shape, seed, dtype=dtype, alg=ALGORITHM)


def gamma(alpha, *, seed):
    """Independent gamma variables of the shapes `alpha` and the rate 1."""
    return tf.random.stateless_gamma(tf.shape(alpha), seed, alpha, dtype=alpha.dtype)


def keep_mask(shape, rate, *, seed, dtype="float32"):
    """1 / (1 - rate) with probability 1 - rate, otherwise 0: what dropout multiplies by."""
    return tf.cast(_uniform(shape, seed) >= rate, dtype) / (1 - rate)


def random_signs(shape, *, seed, dtype="float32"):
    """Independent signs, -1 or 1 with equal probability."""
    return tf.cast(2 * _random_bits(shape, seed, 1) - 1, dtype)


def split_seed(seed, count):
    """`count` independent seeds from a Keras seed tensor of shape `(2,)`."""
    seed = tf.bitcast(tf.cast(seed, "uint32"), "int32")
    return tf.unstack(tf.random.split(seed, count, alg=ALGORITHM), count)


def _uniform(shape, seed):
    """Uniform numbers in [0, 1): the lowest BITS bits of random integers, as TensorFlow takes them.

    XLA takes the highest ones for its own, so that these are made here.
    """
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype="int32", alg=ALGORITHM
    )
    return tf.cast(tf.bitwise.bitwise_and(bits, 2**BITS - 1), "float32") * 2.0**-BITS


def _random_bits(shape, seed, bits):
    return tf.random.stateless_uniform(
        shape, seed, minval=0, maxval=2**bits, dtype="int32", alg=ALGORITHM
    )
