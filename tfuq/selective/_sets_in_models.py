"""Conformal sets as parts of models."""

from __future__ import annotations

import keras
from keras import ops

from tfuq._arguments import Output, Tensor, shown
from tfuq.layers import PostProcessing
from tfuq.selective._reading import graph_stack
from tfuq.selective.base import with_outputs
from tfuq.selective.conformal_scores import strangeness


class SetsInModels:
    """Conformal predictors that may be part of a model."""

    def transform(self, predictions: Tensor) -> dict[str, Tensor]:
        """Tensors `"probabilities"` and `"prediction_set"` for tensors of predictions.

        Probabilities are means over the samples of a stack, in the form of the predictions; sets
        are as `predict_set` gives them.

        Raises:
            ValueError: If the predictor is randomized: rounding differs from graph to graph, and
                would change its sets; if it has thresholds for each group or weight, which a model
                does not know.
        """
        if self.keys is not None:
            raise ValueError(
                "A predictor with thresholds for each group cannot be part of a model, which does "
                f"not know the groups. Received: keys={shown(self.keys)}"
            )
        if self.weight_limits is not None:
            raise ValueError(
                "A predictor of weighted examples cannot be part of a model, which does not know "
                "their weights; one for label shift can. Received: weight_limits of "
                f"{len(self.weight_limits)} thresholds"
            )
        if self.randomized:
            raise ValueError(
                "A randomized predictor cannot be part of a model: fit one with randomized=False. "
                "Received: randomized=True"
            )
        probs = ops.mean(graph_stack(self, predictions), axis=0)
        # Entries in one axis: LiteRT ends the process where an operation has more axes than it can.
        flat = ops.reshape(probs, (-1, *probs.shape[-1 - self.multi_label :]))
        found = self._set(flat, strangeness(flat, self.score, self.penalty, self.k_reg))
        found = ops.reshape(found, ops.shape(probs))
        if self.multi_label or self.rank == 1:
            probs = probs[..., 1]
        elif predictions.shape[-1] == 1:
            probs = probs[..., 1:]
        return {"probabilities": probs, "prediction_set": found}

    def append_to(self, model: keras.Model, output: Output | None = None) -> keras.Model:
        """A functional model of the same inputs whose outputs are those of `transform`.

        Args:
            model, output: As in `RejectionRule.append_to`.

        Raises:
            ValueError: If the model does not know its inputs, or the predictor is randomized.

        Example:

        ```python
        import keras
        from tfuq.selective import ConformalPredictor

        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
        whole = ConformalPredictor("lac", 0.7).append_to(model)
        print(sorted(whole.output))  # ['prediction_set', 'probabilities']
        ```
        """
        return with_outputs(model, PostProcessing(self, name="conformal"), output)
