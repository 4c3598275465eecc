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

from tfuq._math.logistic_links import Sigmoid, Softmax
from tfuq._math.point_blocks import Blocks, ProjectedBlocks, added

SAFE = 1e26  # the quick road is left when a sum is not within [1 / SAFE, SAFE]


def log_mean_softmax(loc, scale, factors, points, *, mirrored, power=1, kernel=None):
    """log mean_s softmax(u_s)^power, with u_s = loc + scale * e_s + F z_s.

    With a kernel W, u_s = loc + W^T (scale * e_s + F z_s): noise of features, whose number stands
    in place of that of classes in `scale`, `factors` and `points`.

    Args:
        loc: Means of the logits, `(rows, classes)`.
        scale: Standard deviations of their independent noise, `(rows, classes)`.
        factors: What makes the correlated noise F z: `()` for none; `(V,)` with V of shape
            `(rows, classes, factors)` for V z; `(v, V)` with v `(rows, classes)` and V `(factors,
            classes)` for v * (V^T z).
        points: Standard normal points, `(points, factors + classes)`: z first, then e.
        mirrored: Whether each point stands for its mirror image, too.
        power: 1 for the mean, 2 for the second moment.
        kernel: W `(features, classes)`, or None.

    Returns:
        Tensor of shape `(rows, classes)`.
    """
    return _log_means(Softmax, loc, scale, factors, points, mirrored, power, kernel)[0]


def log_mean_sigmoid(loc, scale, factors, points, *, mirrored, power=1, kernel=None):
    """log mean_s sigmoid(u_s)^power and log mean_s (1 - sigmoid(u_s))^power.

    Arguments as for `log_mean_softmax`. Returns two tensors of shape `(rows, classes)`.
    """
    # sigmoid(u) = 1 - sigmoid(-u): turned so that loc >= 0, no exponential overflows.
    sign = tf.where(loc < 0, -tf.ones_like(loc), tf.ones_like(loc))
    turn = None
    if kernel is not None:
        turn = sign
    else:
        scale *= sign
        of_factors = sign[..., None] if len(factors) == 1 else sign
        factors = (factors[0] * of_factors, *factors[1:]) if factors else ()
    major, minor = _log_means(
        Sigmoid, loc * sign, scale, factors, points, mirrored, power, kernel, turn
    )
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
        blocks = Blocks(points, loc)

        def add(state, points, mask):
            for e in (points, -points) if mirrored else (points,):
                u = loc[..., None] + scale[..., None] * e
                p = probs(u, axis=1) * mask
                value = tf.reduce_sum(partition(u) * mask[0], axis=-1)
                state = added(state, (value, tf.reduce_sum(p, -1), tf.reduce_sum(p * e, -1)))
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


def _log_means(link, loc, scale, factors, points, mirrored, power, kernel=None, turn=None):
    """With a kernel: of noise times it, and times `turn` `(rows, classes)` if that is given."""
    other = _MEANS.get()
    if other is not None:
        return other(link, loc, scale, factors, points, mirrored, power, kernel, turn)
    count = tf.cast(tf.shape(points)[0] * (2 if mirrored else 1), loc.dtype)
    kernels = () if kernel is None else (kernel,)
    turns = () if turn is None else (turn,)

    @tf.custom_gradient
    def log_means(*params):
        loc = params[0]
        if kernels:
            blocks = ProjectedBlocks(points, loc, params[1], 2 + len(factors))
        else:
            blocks = Blocks(points, loc)

        def careful_outputs():
            return _careful_outputs(link, params, blocks, mirrored, power, count)

        def careful_gradients(*upstream):
            return _careful_gradients(
                link, params, blocks, mirrored, power, count, outputs, upstream
            )

        if power != 1:
            outputs = careful_outputs()
            return outputs, careful_gradients

        quick = blocks.links[link]
        sums, in_range = _quick_sums(quick, params, blocks, mirrored)
        outputs = tf.cond(in_range, lambda: link.outputs(loc, sums, count), careful_outputs)

        def gradients(*upstream):
            return tf.cond(
                in_range,
                lambda: _quick_gradients(quick, params, blocks, mirrored, sums, upstream),
                lambda: careful_gradients(*upstream),
            )

        return tuple(outputs), gradients

    return log_means(loc, scale, *factors, *kernels, *turns)


def _odds(noise, mirrored):
    """exp(noise), and for mirror images exp(-noise)."""
    odds = tf.exp(noise)
    return (odds, 1 / odds) if mirrored else (odds,)


def _quick_sums(link, params, blocks, mirrored):
    """The sums of a link, and whether all are in range."""
    own, shared = blocks.apart(params)
    dtype = params[0].dtype

    def of_rows(*own):
        sums, in_range = _sums_of_rows(link, (*own, *shared), blocks.of_rows, mirrored)
        return sums, (tf.cast(~in_range, dtype),)

    likes = (params[0],) * link.num_outputs
    sums, (beyond,) = blocks.in_row_blocks(of_rows, own, likes, (tf.zeros((), dtype),))
    return sums, tf.equal(beyond, 0)


def _sums_of_rows(link, params, blocks, mirrored):
    loc = params[0]
    base = link.base(loc)

    def add(state, points, mask):
        sums, in_range = state
        for odds in _odds(blocks.noise(params, points), mirrored):
            more, witness = link.sums(base, odds, mask)
            sums, in_range = added(sums, more), in_range & _within_range(witness)
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
    own, shared = blocks.apart(params)
    number = link.num_outputs

    def of_rows(*arrays):
        own, sums, upstream = arrays[: -2 * number], arrays[-2 * number : -number], arrays[-number:]
        params = (*own, *shared)
        sums = tuple(tf.where(each > 0, each, 1) for each in sums)  # 0 where a block is filled up
        found = _gradients_of_rows(link, params, blocks.of_rows, mirrored, sums, upstream)
        return found[: len(own)], found[len(own) :]

    by_rows, totals = blocks.in_row_blocks(of_rows, (*own, *sums, *upstream), own, shared)
    return *by_rows, *totals


def _gradients_of_rows(link, params, blocks, mirrored, sums, upstream):
    base = link.base(params[0])

    def of_block(points, mask):
        noise, of_params = blocks.recorded(params, points)
        odds, *mirrored_odds = _odds(noise, mirrored)
        dloc, dnoise = link.gradients(base, odds, mask, sums, upstream)
        for odds in mirrored_odds:
            more, dlogits = link.gradients(base, odds, mask, sums, upstream)
            dloc, dnoise = dloc + more, dnoise - dlogits
        return (dloc, *of_params(dnoise))

    return blocks.total(of_block, params)


def _careful_log_probs(link, loc, noise, mirrored):
    """Of noise by class."""
    if mirrored:
        noise = tf.concat([noise, -noise], axis=-1)
    return link.log_probs(loc[..., None] + noise)


def _careful_outputs(link, params, blocks, mirrored, power, count):
    """Running log-sum-exp over the blocks."""
    loc = params[0]

    def add(state, points, mask):
        log_mask = tf.math.log(tf.concat([mask, mask], -1) if mirrored else mask)
        noise = blocks.by_class(blocks.noise(params, points))
        return tuple(
            _add_exp(*running, power * values + log_mask)
            for running, values in zip(
                state, _careful_log_probs(link, loc, noise, mirrored), strict=True
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

    def of_block(points, mask):
        # In the exponent: what fills a block may be infinitely more likely than the mean.
        log_mask = tf.math.log(tf.concat([mask, mask], -1) if mirrored else mask)
        noise, of_params = blocks.recorded(params, points)
        loc = params[0]
        with tf.GradientTape() as tape:
            tape.watch([loc, noise])
            log_probs = _careful_log_probs(link, loc, blocks.by_class(noise), mirrored)
        weights = [
            power * g[..., None] * tf.exp(power * values - out[..., None] + log_mask) / count
            for g, out, values in zip(upstream, outputs, log_probs, strict=True)
        ]
        dloc, dnoise = tape.gradient(log_probs, [loc, noise], weights)
        return (dloc, *of_params(dnoise))

    return blocks.total(of_block, params)
