"""An ensemble as one network: features side by side, logits and probabilities averaged."""

import math

import numpy as np
import tensorflow as tf

from tfuq._models.features import Found, Linear, Tap


class EnsembleTap:
    """What `Tap` is to a model, of the members of an ensemble.

    Features are those of all members side by side, own logits their mean, and the logits of
    probabilities those of the mean probability. So a last layer that is linear in each member is
    one that is linear in these features.

    Args:
        ensemble: `tfuq.ensembles.DeepEnsemble`.
        options: Arguments of `Tap`, for each member.
    """

    def __init__(self, ensemble, **options):
        self.taps = [Tap(member, **options) for member in ensemble.members]
        self.layers, self.compute_dtype = self.taps[0].layers, self.taps[0].compute_dtype
        self._compiled = self.compiled(self.forward)

    def __call__(self, batch):
        self.prepare(batch)
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self._compiled(batch))

    @property
    def dtypes(self):
        return self.taps[0].dtypes

    @property
    def reading(self):
        return self.taps[0].reading

    @property
    def is_spatial(self):
        return any(tap.is_spatial for tap in self.taps)

    def compiled(self, function):
        return self.taps[0].compiled(function)

    def prepare(self, batch):
        for tap in self.taps:
            tap.prepare(batch)

    def forward(self, batch, rectify=None, moved=False):
        found = [tap.forward(batch, rectify, moved) for tap in self.taps]
        features = zip(*(each.features for each in found), strict=True)
        own = tf.reduce_mean(tf.stack([each.own_logits for each in found]), 0)
        outputs = tf.reduce_mean(tf.stack([each.outputs for each in found]), 0)
        logits = own
        if not self.is_of_numbers:
            logits = self._of_mean(tf.stack([each.logits for each in found]))
        return Found(logits, own, tuple(tf.concat(each, -1) for each in features), outputs)

    def _of_mean(self, logits):
        """Logits of the mean of the probabilities, of logits `(members, batch, ..., classes)`."""
        count = math.log(len(self.taps))
        if self.taps[0].reading.multi_label:
            parts = [tf.reduce_logsumexp(tf.math.log_sigmoid(s * logits), 0) for s in (1, -1)]
            return parts[0] - parts[1]
        return tf.reduce_logsumexp(tf.nn.log_softmax(logits), 0) - count

    @property
    def is_of_numbers(self):
        return self.taps[0].is_of_numbers

    def check_knows_logits(self):
        for tap in self.taps:
            tap.check_knows_logits()

    def last_layer(self):
        maps = [tap.last_layer() for tap in self.taps]
        if any(each is None for each in maps):
            return None
        kernel = np.concatenate([each.kernel for each in maps]) / len(maps)
        return Linear(kernel, np.mean([each.bias for each in maps], axis=0))
