"""Keras callbacks."""

from tfuq.callbacks.rejection import RejectionEvaluator

__all__ = ["RejectionEvaluator"]
