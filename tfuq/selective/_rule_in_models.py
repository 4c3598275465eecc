"""Rules as parts of models: decisions as tensors, and models that make them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from tfuq._arguments import Output, Tensor, shown
from tfuq._predictions.scores import GIVEN, OF_STACKS, score_of
from tfuq._predictions.stacks import is_stack_shape
from tfuq.layers import PostProcessing
from tfuq.ood import DetectorLayer
from tfuq.predictive.detector_marks import check_detector_of
from tfuq.selective._reading import check_for_models, graph_stack, kind_of
from tfuq.selective._rule_thresholds import of_classes, of_labels
from tfuq.selective.base import with_outputs


class InModels:
    """Rules that may be part of a model."""

    def transform(self, predictions: Tensor) -> dict[str, Tensor]:
        """Tensors `"probabilities"`, `"score"` and `"accept"` for tensors of predictions.

        Probabilities are means over the samples of a stack, in the form of the predictions. A rule
        of a detector's score takes a pair of predictions and scores `(batch,)`.
        """
        check_for_models(self)
        predictions, given = pair_of(self, predictions)
        predictions, kind = ops.cast(predictions, "float32"), kind_of(self, self.fitted_to)
        is_stack = is_stack_shape(predictions.shape, kind)
        if self.score in OF_STACKS and not is_stack:
            raise ValueError(
                f"Argument `predictions` must be a stack (samples, n, ..., classes) for the score "
                f"{shown(self.score)}. Received: predictions of shape {tuple(predictions.shape)}"
            )
        stack = graph_stack(self, predictions)
        mean = ops.mean(stack, axis=0)
        score = score_of(self.score, stack) if given is None else _known_scores(given, mean)
        threshold = np.float32(self.threshold) if self.by is None else None
        if self.by == "class":
            table = ops.convert_to_tensor(of_classes(self, mean.shape[-1]), "float32")
            threshold = ops.take(table, ops.argmax(mean, axis=-1), axis=0)
        if self.by == "label":
            threshold = ops.convert_to_tensor(of_labels(self, mean.shape[-2]), "float32")
        # Some runtimes take NaN >= a number for true, or the larger of NaN and a number for it.
        known = ops.all(ops.isfinite(mean), axis=-1)
        accepted = score >= threshold if self.grows_with_trust else score <= threshold
        accepted &= known
        if mean.shape[-1] != predictions.shape[-1] or self.multi_label or self.rank == 1:
            mean = mean[..., 1]
            is_column = len(mean.shape) < len(predictions.shape) - is_stack
            mean = mean[..., None] if is_column else mean
        return {"probabilities": mean, "score": score, "accept": accepted}

    def append_to(
        self, model: keras.Model, output: Output | None = None, *, detector: Any = None
    ) -> keras.Model:
        """A functional model of the same inputs whose outputs are those of `transform`.

        Args:
            model: A functional or `Sequential` model, or a subclassed one called in such; weights
                are shared.
            output: Which of several outputs: an index, a key or a function.
            detector: The detector of `model` whose score the rule was fitted to
                (`fit_model(..., score=detector)`): what it has fitted becomes part of the model.

        Raises:
            ValueError: If the rule needs groups, or a detector that is not this one; if the model
                does not know its inputs.

        Example:

        ```python
        import keras
        from tfuq.selective import RejectionRule

        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
        whole = RejectionRule("confidence", 0.7).append_to(model)
        print(sorted(whole.output))  # ['accept', 'probabilities', 'score']
        ```
        """
        return appended(self, model, output, detector)


def appended(rule, model, output, detector):
    """A functional model whose outputs are those of the rule's `transform`."""
    layer = PostProcessing(rule, name="rejection")
    check_for_models(rule)
    if rule.score == GIVEN:
        check_detector_of(rule, detector, "detector")
        return DetectorLayer(detector, model).with_outputs(layer, output)
    if detector is not None:
        raise ValueError(
            f"Argument `detector` must be None for a rule of the score {shown(rule.score)} "
            f"of predictions. Received: detector={shown(detector)}"
        )
    return with_outputs(model, layer, output)


def pair_of(rule, predictions):
    """Predictions, and the scores beside them, or None for a rule of none."""
    is_pair = isinstance(predictions, (tuple, list)) and len(predictions) == 2
    if rule.score != GIVEN:
        return predictions, None
    if not is_pair:
        raise ValueError(
            "Argument `predictions` must be a pair of predictions and scores (batch,), for a rule "
            "of a detector's score: `rule.append_to(model, detector=detector)`. "
            f"Received: {shown(predictions)}"
        )
    return predictions


def _known_scores(given, mean):
    """Scores in float32, NaN where predictions hold NaN."""
    known = ops.all(ops.isfinite(mean), axis=-1)
    return ops.where(known, ops.cast(ops.reshape(given, (-1,)), "float32"), np.nan)
