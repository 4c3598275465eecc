"""Weight of the KL divergence that belongs to training data and a loss."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfuq._arguments import Data, shown
from tfuq._models.batches import batches
from tfuq.layers._training import MEANS
from tfuq.losses.base import FamilyLoss

# Over which entries of the labels Keras takes the mean, by the name of the loss.
ONE_HOT = ("categorical_crossentropy", "categorical_focal_crossentropy", "kl_divergence")
ELEMENTWISE = (
    "sparse_categorical_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "poisson",
)


def kl_weight_for(data: Data, loss: str | keras.losses.Loss) -> float:
    """`kl_weight` for layers with random weights: 1 / number of terms that the loss is a mean of.

    The evidence lower bound has the KL divergence once, and the log-likelihood of every label.
    Keras' losses are means, not sums: over the examples, and over the labels or pixels of each.
    So the weight is `1 / examples` for one label each, `1 / (examples * labels)` for a binary
    cross-entropy of several labels, and `1 / (examples * height * width)` for masks.

    Args:
        data: The training data: `(x, y)` or `(x, y, sample_weight)` of arrays, a `tf.data.Dataset`
            or a `keras.utils.PyDataset` of such batches. It is read once.
        loss: The loss that the model is compiled with: a name or an object of Keras, or one of
            `tfuq.losses`. Labels of its `ignore_class` do not count.

    Returns:
        Float in (0, 1].

    Raises:
        ValueError: If `data` hold no labels or do not end, if `loss` is not a mean, or is none of
            Keras' cross-entropies and regression losses, nor of `tfuq.losses`.

    Example:

    ```python
    import numpy as np
    import tfuq

    x, y = np.random.rand(64, 8), np.random.randint(2, size=(64, 14))
    print(tfuq.kl_weight_for((x, y), "binary_crossentropy"))  # 1 / (64 * 14)
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.callbacks.KLAnnealing`.
    """
    kind, reduction = _kind(loss), getattr(loss, "reduction", "sum_over_batch_size")
    if reduction not in MEANS:
        raise ValueError(
            "Argument `loss` must be a mean, such as with reduction='sum_over_batch_size', so that "
            "the KL divergence has one weight. "
            f"Received: loss={shown(loss)}, reduction={shown(reduction)}"
        )
    ignored = getattr(loss, "ignore_class", None)
    count = 0.0
    for _, y, weights in batches(data, 1024, 0, name="data"):
        count += _terms(y, weights, kind, ignored, reduction)
    if not count > 0:
        raise ValueError(f"Argument `data` must hold labels that count. Received: {count} labels")
    return 1 / float(count)


def _kind(loss):
    if isinstance(loss, FamilyLoss):  # a mean over the numbers
        return ELEMENTWISE
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None)
    if isinstance(loss, str):
        name = getattr(keras.losses.get(loss), "__name__", None)
    own = loss.fn.__name__ if isinstance(getattr(loss, "fn", None), type(_kind)) else name
    for kind in (ONE_HOT, ELEMENTWISE):
        if own in kind:
            return kind
    raise ValueError(
        "Argument `loss` must be one loss of Keras that is a mean over labels, one of "
        f"{sorted(ONE_HOT + ELEMENTWISE)}, or one of `tfuq.losses`. For another loss set "
        "`kl_weight` yourself: 1 / number of terms that the loss is a mean of. Received: "
        f"loss={shown(loss)}"
    )


def _terms(y, weights, kind, ignored, reduction):
    """How many terms of the loss the labels of a batch are."""
    if y is None or keras.tree.is_nested(y):
        raise ValueError(
            "Argument `data` must hold the labels of one output beside the inputs. "
            f"Received: labels of type {type(y).__name__}"
        )
    if isinstance(y, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"Argument `data` must hold dense labels. Received: labels of type {type(y).__name__}"
        )
    y = keras.ops.convert_to_numpy(y)
    if reduction == "mean_with_sample_weight" and weights is not None:
        per_weight = y.size / len(y) / (y.shape[-1] if kind is ONE_HOT else 1)
        weights = keras.ops.convert_to_numpy(weights)
        return weights.sum() * per_weight * len(weights) / weights.size
    if ignored is not None:
        return (y != ignored).sum()
    return y.size / (y.shape[-1] if kind is ONE_HOT else 1)
