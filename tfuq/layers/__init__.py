"""Layers that stand in for `Dense` and know what they do not know."""

from tfuq.layers.heteroscedastic import MCSigmoidDenseFA, MCSoftmaxDenseFA

__all__ = ["MCSigmoidDenseFA", "MCSoftmaxDenseFA"]
