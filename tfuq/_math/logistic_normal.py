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
import itertools
import math

import tensorflow as tf

from tfuq._math.logistic_links import Sigmoid, SigmoidByRows, Softmax, SoftmaxByRows

# Elements in a block. Three times as many are faster, but then memory still grows between 100 and
# 1,000 samples of 64 x 100 logits; from 2^20 on, blocks fall out of the cache.
BLOCK = 21 * 2**14
# Blocks of fewer points than this are slow for their size: many classes get larger blocks.
POINTS, LARGEST_BLOCK = 10, 2**21
LARGEST_PRODUCT = 2**23  # elements in a block of noise that is a product with a kernel
SMALL = 2**17  # elements in all, up to which a loop costs more than it saves
SAFE = 1e26  # the quick road is left when a sum is not within [1 / SAFE, SAFE]


def log_mean_softmax(loc, scale, factors, points, *, mirrored, power=1, kernel=None):
    """log mean_s softmax(u_s)^power, with u_s = loc + scale * e_s + F z_s.

    With a kernel W, u_s = loc + W^T (scale * e_s + F z_s): noise of features, whose number stands
    in the place of that of classes in `scale`, `factors` and `points`.

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
            place = 2 + len(factors)
            slices = _slices(params[place])
            params = (*params[:place], *slices, *params[place + 1 :])
            blocks = _ProjectedBlocks(points, loc, params[1], len(slices), len(turns))
        else:
            blocks = _Blocks(points, loc)

        def careful_outputs():
            return _careful_outputs(link, params, blocks, mirrored, power, count)

        def careful_gradients(*upstream):
            return _careful_gradients(
                link, params, blocks, mirrored, power, count, outputs, upstream
            )

        def of_arguments(gradients):
            return _with_whole(gradients, place, len(slices)) if kernels else gradients

        if power != 1:
            outputs = careful_outputs()
            return outputs, lambda *upstream: of_arguments(careful_gradients(*upstream))

        quick = blocks.links[link]
        sums, in_range = _quick_sums(quick, params, blocks, mirrored)
        outputs = tf.cond(in_range, lambda: link.outputs(loc, sums, count), careful_outputs)

        def gradients(*upstream):
            found = tf.cond(
                in_range,
                lambda: _quick_gradients(quick, params, blocks, mirrored, sums, upstream),
                lambda: careful_gradients(*upstream),
            )
            return of_arguments(found)

        return tuple(outputs), gradients

    return log_means(loc, scale, *factors, *kernels, *turns)


class _Blocks:
    """The points cut into equal blocks, the last one filled up; `mask` is 0 for the filling."""

    largest = LARGEST_BLOCK
    small = SMALL
    links = {Softmax: Softmax, Sigmoid: Sigmoid}

    def __init__(self, points, loc):
        count, dimensions = points.shape
        elements = loc.shape.num_elements()
        least, most = (min, max) if elements is not None else (tf.minimum, tf.maximum)
        elements = most(tf.size(loc) if elements is None else elements, 1)
        several = least(POINTS, self.largest // elements)
        largest = least(most(most(BLOCK // elements, several), 1), count)
        self.number = -(-count // largest)
        one = isinstance(self.number, int) and self.number == 1
        self.one_small_block = one and elements * count <= self.small
        size = -(-count // self.number)
        filled = self.number * size
        points = tf.pad(points, [[0, filled - count], [0, 0]])
        points = tf.reshape(points, (self.number, size, dimensions))
        self.points = tf.transpose(points, (0, 2, 1))
        mask = tf.cast(tf.range(filled) < count, points.dtype)
        self.mask = tf.reshape(mask, (self.number, 1, size))

    def noise(self, params, points):
        """What the logits of a block add to their means, as the quick road takes it."""
        return _noise(params, points)

    def noise_by_class(self, params, points):
        """The same, `(rows, classes, points)`."""
        return self.noise(params, points)

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

    def total(self, function, like):
        """Sums over the blocks of what function(points, mask) returns, in the shapes of `like`."""
        if self.one_small_block:
            return function(self.points[0], self.mask[0])

        def add(state, points, mask):
            return _add(state, function(points, mask))

        return self.reduce(add, tuple(tf.zeros_like(each) for each in like))


class _ProjectedBlocks(_Blocks):
    """Blocks of the noise of features, projected: few and large, for each reads the kernel."""

    largest = small = LARGEST_PRODUCT
    links = {Softmax: SoftmaxByRows, Sigmoid: SigmoidByRows}

    def __init__(self, points, loc, scale, kernels, turns):
        super().__init__(points, max(loc, scale, key=lambda each: each.shape[-1]))
        self._turns, self._last = turns, -turns - kernels

    def noise(self, params, points):
        """W^T (scale * e + F z), times what turns it: `(rows, points, classes)`."""
        end = len(params) - self._turns
        kernels, turns = params[self._last : end], params[end:]
        noise = tf.transpose(_noise(params[: self._last], points), (0, 2, 1))
        sizes = [kernel.shape[0] for kernel in kernels]
        parts = tf.split(tf.reshape(noise, (-1, sum(sizes))), sizes, axis=1)
        flat = sum(_project(*each) for each in zip(parts, kernels, strict=True))
        noise = tf.reshape(flat, (-1, tf.shape(points)[1], kernels[0].shape[1]))
        return noise * turns[0][:, None] if turns else noise

    def noise_by_class(self, params, points):
        return tf.transpose(self.noise(params, points), (0, 2, 1))


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


def _slices(kernel):
    """W cut by features: its gradient is then summed over blocks a slice at a time."""
    features, classes = kernel.shape
    number = min(-(-features * classes // LARGEST_PRODUCT), features)
    ends = [features * part // number for part in range(number + 1)]
    return tuple(tf.split(kernel, [b - a for a, b in itertools.pairwise(ends)], axis=0))


def _with_whole(gradients, place, number):
    """Gradients with those of slices of the kernel in one piece."""
    whole = tf.concat(gradients[place : place + number], axis=0)
    # What follows from that of the means is as large as the kernel: not beside the slices, too.
    with tf.control_dependencies([whole]):
        of_means = tf.identity(gradients[0])
    return of_means, *gradients[1:place], whole, *gradients[place + number :]


@tf.custom_gradient
def _project(rows, kernel):
    """rows W. For wide kernels, its gradient (W g^T)^T is faster than g W^T."""

    def gradients(upstream):
        drows = tf.transpose(tf.matmul(kernel, upstream, transpose_b=True))
        return drows, tf.matmul(rows, upstream, transpose_a=True)

    return tf.matmul(rows, kernel), gradients


def _odds(noise, mirrored):
    """exp(noise), and for mirror images exp(-noise)."""
    odds = tf.exp(noise)
    return (odds, 1 / odds) if mirrored else (odds,)


def _quick_sums(link, params, blocks, mirrored):
    loc = params[0]
    base = link.base(loc)

    def add(state, points, mask):
        sums, in_range = state
        for odds in _odds(blocks.noise(params, points), mirrored):
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

    def of_block(points, mask):
        with tf.GradientTape() as tape:
            tape.watch(noise_params)
            noise = blocks.noise(params, points)
        odds, *mirrored_odds = _odds(noise, mirrored)
        dloc, dnoise = link.gradients(base, odds, mask, sums, upstream)
        for odds in mirrored_odds:
            more, dlogits = link.gradients(base, odds, mask, sums, upstream)
            dloc, dnoise = dloc + more, dnoise - dlogits
        return (dloc, *tape.gradient(noise, noise_params, dnoise))

    return blocks.total(of_block, params)


def _careful_log_probs(link, params, points, mirrored, blocks):
    noise = blocks.noise_by_class(params, points)
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
                state, _careful_log_probs(link, params, points, mirrored, blocks), strict=True
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
        with tf.GradientTape() as tape:
            tape.watch(params)
            log_probs = _careful_log_probs(link, params, points, mirrored, blocks)
        weights = [
            power * g[..., None] * tf.exp(power * values - out[..., None] + log_mask) / count
            for g, out, values in zip(upstream, outputs, log_probs, strict=True)
        ]
        return tape.gradient(log_probs, params, weights)

    return blocks.total(of_block, params)


def _add(state, more):
    return tuple(a + b for a, b in zip(state, more, strict=True))
