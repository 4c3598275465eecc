"""Likelihoods of a last layer with Gaussian logits, and the gap of its closed-form bound."""

import tensorflow as tf

from tfuq._math import logistic_normal


class Categorical:
    """One class of several: the log-partition of the logits is their log-sum-exp."""

    @staticmethod
    def log_partition(logits):
        return tf.reduce_logsumexp(logits, axis=-1)

    mean_log_partition = staticmethod(logistic_normal.mean_log_sum_exp)

    @staticmethod
    def predictive_logits(loc, scale, points, mirrored):
        return logistic_normal.log_mean_softmax(loc, scale, (), points, mirrored=mirrored)


class Bernoulli:
    """Several labels, or one: the log-partition of each logit is its softplus."""

    @staticmethod
    def log_partition(logits):
        return tf.nn.softplus(logits)

    mean_log_partition = staticmethod(logistic_normal.mean_softplus)

    @staticmethod
    def predictive_logits(loc, scale, points, mirrored):
        log_prob, log_complement = logistic_normal.log_mean_sigmoid(
            loc, scale, (), points, mirrored=mirrored
        )
        return log_prob - log_complement


LIKELIHOODS = {"categorical": Categorical, "bernoulli": Bernoulli}


def closed_form_gap(log_partition, mean, variance):
    """a(mean + variance / 2) - a(mean), a bound on E[a(u)] - a(mean) for u ~ N(mean, variance).

    Jensen's inequality for a = log-sum-exp, log E[sum exp(u)] (Harrison et al. 2024, theorem 1).
    """
    return log_partition(mean + variance / 2) - log_partition(mean)
