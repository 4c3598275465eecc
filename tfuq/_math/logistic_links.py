"""Links from Gaussian logits to probabilities: sums over points, and their gradients.

With w_c = exp(loc_c - max loc) and E_cs = exp(noise_cs), a link takes means over points without
forming the logits; `tfuq._math.logistic_normal` says how. `odds` is E: `(rows, classes, points)`,
or `(rows, points, classes)` in the links by rows; `mask`, `(1, points)`, is 0 for what is no point.
"""

import tensorflow as tf


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


class SoftmaxByRows(Softmax):
    """The same of `odds` `(rows, points, classes)`, as noise comes out of a product of matrices."""

    @staticmethod
    def sums(w, odds, mask):
        z = tf.matmul(odds, w[..., None])[..., 0]
        return (tf.matmul((mask / z)[:, None], odds)[:, 0],), z

    @staticmethod
    def gradients(w, odds, mask, sums, upstream):
        q = upstream[0] / sums[0]
        z, q_odds = tf.split(tf.matmul(odds, tf.stack([w, q], axis=-1)), 2, axis=-1)
        rate = mask[..., None] / z
        rates = tf.concat([rate, rate * (q_odds / z)], axis=-1)
        totals = tf.matmul(rates, odds, transpose_a=True)
        dloc = q * totals[:, 0] - w * totals[:, 1]
        return dloc, odds * tf.matmul(rates, tf.stack([q, -w], axis=1))


class SigmoidByRows(Sigmoid):
    """The same of `odds` `(rows, points, classes)`."""

    @staticmethod
    def sums(b, odds, mask):
        inverse = mask[..., None] / (b[:, None] + odds)
        return (tf.reduce_sum(odds * inverse, 1), tf.reduce_sum(inverse, 1)), 1.0

    @staticmethod
    def gradients(b, odds, mask, sums, upstream):
        rate = b * upstream[0] / sums[0] - upstream[1] / sums[1]
        dlogits = odds * mask[..., None] / tf.square(b[:, None] + odds) * rate[:, None]
        return tf.reduce_sum(dlogits, 1), dlogits
