"""Links from noisy logits to probabilities: of classes that exclude each other, or of labels."""

from tfuq._math.logistic_normal import log_mean_sigmoid, log_mean_softmax


class OfClasses:
    """Stands before a head with noise among the bases: its outputs are classes."""

    def _log_means(self, *args, **kwargs):
        return (log_mean_softmax(*args, **kwargs),)

    @staticmethod
    def _logits(log_prob):
        return log_prob


class OfLabels:
    """Stands before a head with noise among the bases: each output is a label of its own."""

    multi_label = True

    def _log_means(self, *args, **kwargs):
        return log_mean_sigmoid(*args, **kwargs)

    @staticmethod
    def _logits(log_prob, log_complement):
        return log_prob - log_complement
