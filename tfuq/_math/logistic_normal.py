"""Means of soft-max and sigmoid under Gaussian logits, over a given set of points.

u = loc + scale * e + F z, with e (one per class) and z (one per factor) standard normal. For points
(e_s, z_s) the functions here give log mean_s softmax(u_s) or log mean_s sigmoid(u_s), with
gradients.

Memory does not grow with the number of points: they are taken in blocks, and the backward pass
computes each block again instead of keeping it. Inside, arrays are `(rows, classes, points)`.

The quick road never forms u. With w_c = exp(loc_c - max loc) and E_cs = exp(noise_cs),

    softmax_c(u_s) = w_c E_cs / Z_s,    Z_s = sum_k w_k E_ks,

so that one exponential per element serves, sums over classes and over points are matrix products, a
mirror image costs a reciprocal (exp(-noise) = 1 / E), and log p_c = log w_c + log mean_s E_cs / Z_s
does not underflow, however small p_c is. Noise of more than about 60 in units of the logits leaves
the range of float32; the sums show it, and the blocks are then computed again in logarithms.
"""

import contextlib
import contextvars
import math

import tensorflow as tf

# Elements in a block. Three times as many are faster, but then memory still grows between 100 and
# 1,000 samples of 64 x 100 logits; from 2^20 on, blocks fall out of the cache.
BLOCK = 21 * 2**14
# Blocks of fewer points than this are slow for their size: many classes get larger blocks.
POINTS, LARGEST_BLOCK = 10, 2**21
SMALL = 2**17  # elements in all, up to which a loop costs more than it saves
SAFE = 1e26  # the quick road is left when a sum is not within [1 / SAFE, SAFE]


class Softmax:
    """One output, log p_c; its sum is A_c = sum_s E_cs / Z_s."""

    num_outputs = 1

    @staticmethod
    def log_probs(logits):
        return (tf.nn.log_softmax(logits, axis=1),)

    @staticmethod
    def base(loc):
        """w."""
        return tf.exp(loc - tf.reduce_max(loc, -1, keepdims=True))

    @staticmethod
    def sums(w, odds, mask):
        z = tf.matmul(w[:, None], odds)
        return (tf.matmul(odds, mask / z, transpose_b=True)[..., 0],), z

    @staticmethod
    def outputs(loc, sums, count):
        return (loc - tf.reduce_max(loc, -1, keepdims=True) + tf.math.log(sums[0] / count),)

    @staticmethod
    def gradients(w, odds, mask, sums, upstream):
        """dL/du_cs = y_cs (q_c - w_c h_s): y = E / Z, q = (dL/dlog p) / A, h_s = sum_c q_c y_cs."""
        q = upstream[0] / sums[0]
        z, q_odds = tf.split(tf.matmul(tf.stack([w, q], axis=1), odds), 2, axis=1)
        rate = mask / z
        rates = tf.concat([rate, rate * (q_odds / z)], axis=1)
        totals = tf.matmul(odds, rates, transpose_b=True)
        dloc = q * totals[..., 0] - w * totals[..., 1]
        return dloc, odds * tf.matmul(tf.stack([q, -w], axis=-1), rates)


class Sigmoid:
    """Two outputs, log p and log (1 - p), for loc >= 0.

    Their sums are A_1 = sum_s E / (b + E) and A_2 = sum_s 1 / (b + E), with b = exp(-loc).
    """

    num_outputs = 2

    @staticmethod
    def log_probs(logits):
        return tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)

    @staticmethod
    def base(loc):
        """b."""
        return tf.exp(-loc)

    @staticmethod
    def sums(b, odds, mask):
        inverse = 1 / (b[..., None] + odds)
        sums = tf.reduce_sum(odds * inverse * mask, -1), tf.reduce_sum(inverse * mask, -1)
        return sums, 1.0

    @staticmethod
    def outputs(loc, sums, count):
        return tf.math.log(sums[0] / count), tf.math.log(sums[1] / count) - loc

    @staticmethod
    def gradients(b, odds, mask, sums, upstream):
        """dL/du_s = E / (b + E)^2 (b g_1 / A_1 - g_2 / A_2), g_i = dL/d(i-th output)."""
        rate = b * upstream[0] / sums[0] - upstream[1] / sums[1]
        dlogits = odds * mask / tf.square(b[..., None] + odds) * rate[..., None]
        return tf.reduce_sum(dlogits, -1), dlogits


def log_mean_softmax(loc, scale, factors, points, *, mirrored, power=1):
    """log mean_s softmax(u_s)^power, with u_s = loc + scale * e_s + F z_s.

    Args:
        loc: Means of the logits, `(rows, classes)`.
        scale: Standard deviations of their independent noise, `(rows, classes)`.
        factors: What makes the correlated noise F z: `()` for none; `(V,)` with V of shape
            `(rows, classes, factors)` for V z; `(v, V)` with v `(rows, classes)` and V `(factors,
            classes)` for v * (V^T z).
        points: Standard normal points, `(points, factors + classes)`: z first, then e.
        mirrored: Whether each point stands for its mirror image, too.
        power: 1 for the mean, 2 for the second moment.

    Returns:
        Tensor of shape `(rows, classes)`.
    """
    return _log_means(Softmax, loc, scale, factors, points, mirrored, power)[0]


def log_mean_sigmoid(loc, scale, factors, points, *, mirrored, power=1):
    """log mean_s sigmoid(u_s)^power and log mean_s (1 - sigmoid(u_s))^power.

    Arguments as for `log_mean_softmax`. Returns two tensors of shape `(rows, classes)`.
    """
    # sigmoid(u) = 1 - sigmoid(-u): turned so that loc >= 0, no exponential overflows.
    sign = tf.where(loc < 0, -tf.ones_like(loc), tf.ones_like(loc))
    if factors:
        turn = sign[..., None] if len(factors) == 1 else sign
        factors = (factors[0] * turn, *factors[1:])
    major, minor = _log_means(Sigmoid, loc * sign, scale * sign, factors, points, mirrored, power)
    return tf.where(sign > 0, major, minor), tf.where(sign > 0, minor, major)


def mean_log_sum_exp(loc, scale, points, *, mirrored):
    """mean_s log sum_c exp(u_cs) for u_s = loc + scale * e_s: `(rows,)`.

    Arguments as for `log_mean_softmax`, without factors. The gradient is computed on the way.
    """
    return _mean_log_partition(_log_sum_exp, tf.nn.softmax, loc, scale, points, mirrored)


def mean_softplus(loc, scale, points, *, mirrored):
    """mean_s log(1 + exp(u_s)) for u_s = loc + scale * e_s: `(rows, classes)`."""
    return _mean_log_partition(_softplus, _sigmoid, loc, scale, points, mirrored)


def probit(mean, variance):
    """Logits of about the mean probability under Gaussian logits (MacKay 1992).

    mean / sqrt(1 + pi variance / 8), of each logit by itself.
    """
    return mean / tf.sqrt(1 + math.pi / 8 * variance)


def _log_sum_exp(u):
    return tf.reduce_logsumexp(u, axis=1)


def _softplus(u):
    return tf.nn.softplus(u)


def _sigmoid(u, axis):
    return tf.nn.sigmoid(u)


def _mean_log_partition(partition, probs, loc, scale, points, mirrored):
    """mean_s a(u_s), with the gradients mean_s p_s and mean_s p_s e_s, p = a'(u).

    Each gradient is a weight per row (and class) times a sum that is known when the value is, so
    that one pass over the blocks serves both.
    """
    count = tf.cast(tf.shape(points)[0] * (2 if mirrored else 1), loc.dtype)

    @tf.custom_gradient
    def mean(loc, scale):
        blocks = _Blocks(points, loc)

        def add(state, points, mask):
            for e in (points, -points) if mirrored else (points,):
                u = loc[..., None] + scale[..., None] * e
                p = probs(u, axis=1) * mask
                value = tf.reduce_sum(partition(u) * mask[0], axis=-1)
                state = _add(state, (value, tf.reduce_sum(p, -1), tf.reduce_sum(p * e, -1)))
            return state

        zeros = tf.zeros_like(loc)
        start = (tf.zeros_like(partition(loc[..., None])[..., 0]), zeros, zeros)
        value, dloc, dscale = (total / count for total in blocks.reduce(add, start))

        def gradients(upstream):
            upstream = upstream[:, None] if upstream.shape.rank == 1 else upstream
            return upstream * dloc, upstream * dscale

        return value, gradients

    return mean(loc, scale)


_MEANS = contextvars.ContextVar("means", default=None)


@contextlib.contextmanager
def means_by(function):
    """While it is open, in this thread, `function` computes what `_log_means` does."""
    token = _MEANS.set(function)
    try:
        yield
    finally:
        _MEANS.reset(token)


def _log_means(link, loc, scale, factors, points, mirrored, power):
    other = _MEANS.get()
    if other is not None:
        return other(link, loc, scale, factors, points, mirrored, power)
    count = tf.cast(tf.shape(points)[0] * (2 if mirrored else 1), loc.dtype)

    @tf.custom_gradient
    def log_means(loc, scale, *factors):
        params = (loc, scale, *factors)
        blocks = _Blocks(points, loc)

        def careful_outputs():
            return _careful_outputs(link, params, blocks, mirrored, power, count)

        def careful_gradients(*upstream):
            return _careful_gradients(
                link, params, blocks, mirrored, power, count, outputs, upstream
            )

        if power != 1:
            outputs = careful_outputs()
            return outputs, careful_gradients

        sums, in_range = _quick_sums(link, params, blocks, mirrored)
        outputs = tf.cond(in_range, lambda: link.outputs(loc, sums, count), careful_outputs)

        def gradients(*upstream):
            return tf.cond(
                in_range,
                lambda: _quick_gradients(link, params, blocks, mirrored, sums, upstream),
                lambda: careful_gradients(*upstream),
            )

        return tuple(outputs), gradients

    return log_means(loc, scale, *factors)


class _Blocks:
    """The points cut into equal blocks, the last one filled up; `mask` is 0 for the filling."""

    def __init__(self, points, loc):
        count, dimensions = points.shape
        elements = loc.shape.num_elements()
        least, most = (min, max) if elements is not None else (tf.minimum, tf.maximum)
        elements = most(tf.size(loc) if elements is None else elements, 1)
        several = least(POINTS, LARGEST_BLOCK // elements)
        largest = least(most(most(BLOCK // elements, several), 1), count)
        self.number = -(-count // largest)
        one = isinstance(self.number, int) and self.number == 1
        self.one_small_block = one and elements * count <= SMALL
        size = -(-count // self.number)
        filled = self.number * size
        points = tf.pad(points, [[0, filled - count], [0, 0]])
        points = tf.reshape(points, (self.number, size, dimensions))
        self.points = tf.transpose(points, (0, 2, 1))
        mask = tf.cast(tf.range(filled) < count, points.dtype)
        self.mask = tf.reshape(mask, (self.number, 1, size))

    def reduce(self, function, initial):
        """function(state, points (dimensions, size), mask (1, size)) over the blocks."""

        def body(index, *state):
            return (index + 1, *function(state, self.points[index], self.mask[index]))

        if self.one_small_block:
            return body(0, *initial)[1:]
        loop = tf.while_loop(
            lambda index, *_: index < self.number, body, (0, *initial), parallel_iterations=1
        )
        return loop[1:]


def _noise(params, points):
    """scale * e + F z for a block of points: `(rows, classes, points)`."""
    scale, *factors = params[1:]
    num_factors = points.shape[0] - scale.shape[-1]
    noise = scale[..., None] * points[num_factors:]
    if len(factors) == 1:
        flat = tf.matmul(tf.reshape(factors[0], (-1, num_factors)), points[:num_factors])
        noise += tf.reshape(flat, tf.shape(noise))
    elif factors:
        gain, loadings = factors
        noise += gain[..., None] * tf.matmul(loadings, points[:num_factors], transpose_a=True)
    return noise


def _odds(noise, mirrored):
    """exp(noise), and for mirror images exp(-noise)."""
    odds = tf.exp(noise)
    return (odds, 1 / odds) if mirrored else (odds,)


def _quick_sums(link, params, blocks, mirrored):
    loc = params[0]
    base = link.base(loc)

    def add(state, points, mask):
        sums, in_range = state
        for odds in _odds(_noise(params, points), mirrored):
            more, witness = link.sums(base, odds, mask)
            sums, in_range = _add(sums, more), in_range & _within_range(witness)
        return sums, in_range

    zeros = tuple(tf.zeros_like(loc) for _ in range(link.num_outputs))
    sums, in_range = blocks.reduce(add, (zeros, tf.constant(True)))
    for total in sums:
        in_range = in_range & _within_range(total)
    return sums, in_range


def _within_range(values):
    # Written so that NaN is out of range.
    return tf.reduce_all((values > 1 / SAFE) & (values < SAFE))


def _quick_gradients(link, params, blocks, mirrored, sums, upstream):
    loc, *noise_params = params
    base = link.base(loc)

    def add(state, points, mask):
        with tf.GradientTape() as tape:
            tape.watch(noise_params)
            noise = _noise(params, points)
        dloc, dnoise = 0.0, 0.0
        for sign, odds in zip((1, -1), _odds(noise, mirrored), strict=False):
            more, dlogits = link.gradients(base, odds, mask, sums, upstream)
            dloc, dnoise = dloc + more, dnoise + sign * dlogits
        return _add(state, (dloc, *tape.gradient(noise, noise_params, dnoise)))

    return blocks.reduce(add, tuple(tf.zeros_like(p) for p in params))


def _careful_log_probs(link, params, points, mirrored):
    noise = _noise(params, points)
    if mirrored:
        noise = tf.concat([noise, -noise], axis=-1)
    return link.log_probs(params[0][..., None] + noise)


def _careful_outputs(link, params, blocks, mirrored, power, count):
    """Running log-sum-exp over the blocks."""
    loc = params[0]

    def add(state, points, mask):
        log_mask = tf.math.log(tf.concat([mask, mask], -1) if mirrored else mask)
        return tuple(
            _add_exp(*running, power * values + log_mask)
            for running, values in zip(
                state, _careful_log_probs(link, params, points, mirrored), strict=True
            )
        )

    lowest = tf.fill(tf.shape(loc), tf.constant(loc.dtype.min, loc.dtype))
    start = tuple((lowest, tf.zeros_like(loc)) for _ in range(link.num_outputs))
    return tuple(top + tf.math.log(total / count) for top, total in blocks.reduce(add, start))


def _add_exp(top, total, values):
    """(top, total) stands for total * exp(top); adds sum exp(values) over the last axis."""
    new_top = tf.maximum(top, tf.reduce_max(values, -1))
    return new_top, total * tf.exp(top - new_top) + tf.reduce_sum(
        tf.exp(values - new_top[..., None]), -1
    )


def _careful_gradients(link, params, blocks, mirrored, power, count, outputs, upstream):
    """dL/d(params) through log p_cs with weight power g_c (p_cs^power / mean p_c^power) / count."""

    def add(state, points, mask):
        mask = tf.concat([mask, mask], -1) if mirrored else mask
        with tf.GradientTape() as tape:
            tape.watch(params)
            log_probs = _careful_log_probs(link, params, points, mirrored)
        weights = [
            power * g[..., None] * tf.exp(power * values - out[..., None]) * mask / count
            for g, out, values in zip(upstream, outputs, log_probs, strict=True)
        ]
        return _add(state, tape.gradient(log_probs, params, weights))

    return blocks.reduce(add, tuple(tf.zeros_like(p) for p in params))


def _add(state, more):
    return tuple(a + b for a, b in zip(state, more, strict=True))
