"""Pairs of classes with common label noise, from the covariance a heteroscedastic head learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    check_choice,
    check_flags,
    check_model,
    shown,
    to_float64,
    told,
)
from tfuq._files.tables import check_top, markdown_table, names_of
from tfuq._models.batches import batches
from tfuq._models.changes import watched
from tfuq._models.meaning import Reading
from tfuq._models.outputs import select_output
from tfuq._predictions.examples import from_arrays
from tfuq.interpret._spatial_layers import layer_in

BLOCK = 2**22  # entries of covariance matrices at a time


class LabelNoisePair(NamedTuple):
    """How the label noise of two classes is related.

    Example:

    >>> from tfuq.interpret import LabelNoisePair
    >>> LabelNoisePair("partridge", "ruffed grouse", -0.46, -0.8).covariance
    -0.46

    See also: `tfuq.interpret.label_noise_pairs`.
    """

    first: str
    second: str
    covariance: float
    """Mean covariance of the two logits, before the temperature."""
    correlation: float
    """The same, divided by the roots of the two mean variances: from -1 to 1."""


@told
class LabelNoisePairs(NamedTuple):
    """Pairs of classes, those whose noise is related most first.

    Example:

    >>> from tfuq.interpret import LabelNoisePair, LabelNoisePairs
    >>> pair = LabelNoisePair("partridge", "ruffed grouse", -0.46, -0.8)
    >>> print(LabelNoisePairs((pair,), None, None, 5).to_markdown())
    | class A | class B | mean covariance | correlation |
    | --- | --: | --: | --: |
    | partridge | ruffed grouse | -0.46 | -0.80 |

    See also: `tfuq.interpret.label_noise_pairs`.
    """

    pairs: tuple
    """A `LabelNoisePair` each."""
    covariance: np.ndarray
    """Mean covariance matrix `(classes, classes)` of the logits, before the temperature."""
    correlation: np.ndarray
    """That matrix with its diagonal scaled to 1."""
    n: int
    """Examples (or pixels) over which it is averaged."""

    def to_markdown(self) -> str:
        """A table with a line for each pair, as table 4 of Collier et al. (2021).

        Returns:
            A string.
        """
        rows = [[*p[:2], f"{p.covariance:.3g}", f"{p.correlation:.2f}"] for p in self.pairs]
        return markdown_table(["class A", "class B", "mean covariance", "correlation"], rows)


def label_noise_pairs(
    model: ModelLike,
    data: Data,
    layer: str | keras.layers.Layer | None = None,
    *,
    names: Sequence[str] | None = None,
    top: int | None = 10,
    by: str = "covariance",
    batch_size: int = 32,
) -> LabelNoisePairs:
    """The pairs of classes with the most strongly related label noise, in a heteroscedastic model.

    Formula (Collier et al. 2021, section 4.1 and table 4), over examples x:

    ```
    C = mean_x Sigma(x),    Sigma(x) = diag(d(x)^2) + V(x) V(x)^T
    ```

    and the pairs with the largest |C_ab|. On ImageNet these classes can be mistaken for each other
    or are seen together. A class's noise has no sign of its own: only the size matters.

    Args:
        model: Keras model of any style with a `tfuq.layers.MCSoftmaxDenseFA` or `MCSigmoidDenseFA`,
            or another layer with a method `covariance(features)`.
        data: Inputs: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of inputs or of pairs. Labels are ignored.
        layer: That layer, its name or path; None if there is but one.
        names: Names of the classes, or None for their numbers.
        top: How many pairs at most; None for all.
        by: `"covariance"` or `"correlation"`: by whose absolute value pairs are sorted. A class
            with much noise has large covariances with all others.
        batch_size: Examples at a time, for arrays.

    Returns:
        `LabelNoisePairs`.

    Raises:
        ValueError: If there is no such layer, or it does not run or has only one output; the data
            are empty; covariances are not finite; or an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import label_noise_pairs
    from tfuq.layers import MCSoftmaxDenseFA

    head = MCSoftmaxDenseFA(3, num_factors=2, logits_only=True)
    model = keras.Sequential([keras.Input((8,)), head])
    names = ["castle", "palace", "tractor"]
    print(label_noise_pairs(model, np.random.rand(5, 8), names=names).to_markdown())
    ```

    References:
        - Collier, Mustafa, Kokiopoulou, Jenatton, Berent: Correlated Input-Dependent Label Noise in
          Large-Scale Image Classification. CVPR 2021.

    See also: `tfuq.layers.MCSoftmaxDenseFA`, `tfuq.plots.label_noise_pairs`,
    `tfuq.interpret.label_noise_ranks`.
    """
    check_top(top)
    check_choice("by", by, ("covariance", "correlation"))
    head = _NoiseModel(model, layer)
    total, n = 0.0, 0
    for batch, *_ in batches(data, batch_size, 0, "data", model=model):
        _, features = head(batch)
        for block in head.covariances(features):
            total, n = total + block.sum(axis=0, dtype="float64"), n + len(block)
    covariance = total / n
    if not np.all(np.isfinite(covariance)):
        raise ValueError(
            "Argument `data` must give covariances that are finite. Received: data with a mean "
            "covariance that is not"
        )
    root = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore"):  # a class without noise has no correlation
        correlation = covariance / np.outer(root, root)
    names = names_of(names, len(covariance))
    ranked = correlation if by == "correlation" else covariance
    pairs = [
        LabelNoisePair(names[a], names[b], float(covariance[a, b]), float(correlation[a, b]))
        for a, b in _largest_pairs(np.abs(ranked), top)
    ]
    return LabelNoisePairs(tuple(pairs), covariance, correlation, n)


def _largest_pairs(sizes, top):
    """Indices a < b of the largest entries of a symmetric matrix; of equal ones, the first."""
    first, second = np.triu_indices(len(sizes), 1)
    order = np.argsort(-sizes[first, second], kind="stable")[:top]
    return zip(first[order], second[order], strict=True)


# --- What the noise explains ------------------------------------------------------------------


@told
class LabelNoiseRanks(NamedTuple):
    """Examples that a heteroscedastic model gets right and another model does not.

    Arrays have an entry for each such example.

    Example:

    >>> import numpy as np
    >>> from tfuq.interpret import LabelNoiseRanks
    >>> found = LabelNoiseRanks(*map(np.array, ([7, 9], [0, 1], [2, 0], [-1.2, 0.1], [1, 2])), 3)
    >>> found.histogram()
    array([1, 1])
    >>> print(found.to_markdown(names=["castle", "tractor", "palace"]))
    | example | predicted, right | predicted by the other | covariance |
    | --- | --: | --: | --: |
    | 7 | castle | palace | -1.20 |

    See also: `tfuq.interpret.label_noise_ranks`.
    """

    index: np.ndarray
    """Which example of the data, from 0."""
    label: np.ndarray
    """Its true class."""
    other: np.ndarray
    """The class that the other model predicts."""
    covariance: np.ndarray
    """Covariance of the logits of these two classes, for this example."""
    rank: np.ndarray
    """Rank of its absolute value among those of the true class with each other class, from 1 for
    the largest; one that equals others has the best rank of them."""
    classes: int
    """Number of classes."""

    def histogram(self) -> np.ndarray:
        """How many examples have each rank, from 1 to classes - 1 (figure 2 of the paper).

        Returns:
            Array `(classes - 1,)`. Ranks of unrelated noise would be spread evenly.
        """
        return np.bincount(self.rank, minlength=self.classes)[1:]

    def to_markdown(self, names: Sequence[str] | None = None, top: int | None = 10) -> str:
        """A table of the examples with rank 1 (table 5 of the paper), the most related first.

        Args:
            names: Names of the classes, or None for their numbers.
            top: How many at most; None for all.

        Returns:
            A string.
        """
        check_top(top)
        names = names_of(names, self.classes)
        first = np.flatnonzero(self.rank == 1)
        first = first[np.argsort(-np.abs(self.covariance[first]), kind="stable")][:top]
        rows = [
            [self.index[i], names[self.label[i]], names[self.other[i]], f"{self.covariance[i]:.2f}"]
            for i in first
        ]
        header = ["example", "predicted, right", "predicted by the other", "covariance"]
        return markdown_table(header, rows)


def label_noise_ranks(
    model: ModelLike,
    data: Data,
    other: ArrayLike,
    layer: str | keras.layers.Layer | None = None,
    *,
    output: Output | None = None,
    from_logits: bool = False,
    batch_size: int = 32,
) -> LabelNoiseRanks:
    """Tests whether learned label noise predicts the errors of a model without it.

    Of the examples that `model` gets right and the other model, without label noise, does not: the
    covariance of the true class's logit with that of the class which the other model predicts, and
    its rank among all classes (Collier et al. 2021, section 4.1, table 5 and figure 2). Where the
    wrong class is a plausible label, it should be high.

    Args:
        model: As in `label_noise_pairs`; it predicts one class for each example.
        data: `(x, y)`, or a `tf.data.Dataset` or a `keras.utils.PyDataset` of such batches, in an
            order that is always the same. Labels are sparse or one-hot.
        other: Predictions of the other model for these examples, probabilities or logits
            `(n, classes)`.
        layer: The layer with the covariance, its name or path; None if there is but one.
        output: Which output of `model` is its prediction, when it has several: an index, a key, a
            field of a named tuple (`"logits"`), or a function of the outputs.
        from_logits: Whether `other` holds logits.
        batch_size: Examples at a time, for arrays.

    Returns:
        `LabelNoiseRanks`.

    Raises:
        ValueError: If labels are missing, `other` does not fit the data, or as
            `label_noise_pairs`.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import label_noise_ranks
    from tfuq.layers import MCSoftmaxDenseFA

    head = MCSoftmaxDenseFA(3, num_factors=2, logits_only=True)
    model = keras.Sequential([keras.Input((8,)), head])
    x, y, other = np.random.rand(9, 8), np.arange(9) % 3, np.random.dirichlet(np.ones(3), 9)
    print(label_noise_ranks(model, (x, y), other).histogram())  # [examples of rank 1, of rank 2]
    ```

    References:
        - Collier, Mustafa, Kokiopoulou, Jenatton, Berent: Correlated Input-Dependent Label Noise in
          Large-Scale Image Classification. CVPR 2021.

    See also: `tfuq.interpret.label_noise_pairs`.
    """
    check_flags(from_logits=from_logits)
    other = to_float64("other", other)
    head, reading = _NoiseModel(model, layer), Reading(output, None, None)
    start, found = 0, []
    for batch, labels, _ in batches(data, batch_size, 0, "data", model=model):
        if labels is None:
            raise ValueError("Argument `data` must hold labels. Received: data without labels")
        labels = select_output(labels, output) if keras.tree.is_nested(labels) else labels
        outputs, features = head(batch, reading)
        end = start + len(outputs)
        parts = _read_labels(labels, other[start:end], outputs, from_logits)
        found.append(_ranks(head, features, *parts, start))
        start = end
    if start != len(other):
        raise ValueError(
            f"Argument `other` must hold a prediction for each of {start} examples. "
            f"Received: other of shape {other.shape}"
        )
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return LabelNoiseRanks(*columns, other.shape[1])


def _read_labels(labels, other, outputs, from_logits):
    """Labels, predictions and predictions of the other model, as classes `(batch,)`."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or other.shape != outputs.shape:
        raise ValueError(
            "Argument `other` must hold predictions (n, classes), as those of the model, of shape "
            f"{outputs.shape} in a batch. Received: {other.shape}"
        )
    examples = from_arrays(labels, other, from_logits=from_logits, names=("data", "other"))
    scores = np.asarray(examples.scores)
    return np.asarray(examples.labels), outputs.argmax(axis=1), scores.argmax(axis=1)


def _ranks(head, features, labels, predicted, other, start):
    """The fields of `LabelNoiseRanks` for a batch whose first example has the number `start`."""
    chosen = np.flatnonzero((predicted == labels) & (other != labels))
    true, wrong = labels[chosen], other[chosen]
    if not len(chosen):
        return chosen, true, wrong, np.zeros(0), np.zeros(0, "int64")
    rows = _rows(head.covariances(tf.gather(features, chosen)), true)
    covariance = rows[np.arange(len(rows)), wrong].astype("float64")
    sizes = np.abs(rows)
    sizes[np.arange(len(rows)), true] = -np.inf  # its own variance
    above = sizes > np.abs(covariance)[:, None]
    return chosen + start, true, wrong, covariance, 1 + above.sum(axis=1)


def _rows(blocks, classes):
    """Of each example's matrix the row of its class, `(batch, classes)`."""
    found, start = [], 0
    for block in blocks:
        end = start + len(block)
        found.append(block[np.arange(len(block)), classes[start:end]])
        start = end
    return np.concatenate(found)


# --- The layer --------------------------------------------------------------------------------


class _NoiseModel:
    """A model, and the layer in it that knows the covariance of its logits."""

    def __init__(self, model, layer):
        check_model(model)
        self.model, self.layer = model, _noisy_layer(model, layer)

    def __call__(self, batch, reading=None):
        """Outputs of the model, read by `reading`, and what the layer takes, `(rows, features)`."""
        kept = []

        def handler(call, *args, **kwargs):
            if tf.executing_eagerly():  # not what the body of a loop holds
                kept[:] = [args[0] if args else next(iter(kwargs.values()))]
            return call(*args, **kwargs)

        with watched(self.layer, handler):
            if reading is None:
                outputs = self.model(batch, training=False)
            else:
                outputs = reading.select(self.model, batch).numpy()
        if not kept:
            raise ValueError(
                "Argument `layer` must be a layer that runs when the model is called. "
                f"Received: layer={self.layer.name!r}, which does not"
            )
        return outputs, tf.reshape(kept[0], (-1, kept[0].shape[-1]))

    def covariances(self, features):
        """Blocks `(some rows, classes, classes)` of the matrices of all rows."""
        classes = self.layer.covariance(features[:1]).shape[-1]
        if classes < 2:
            raise ValueError(
                "Argument `layer` must have at least two outputs, which make a pair. Received: "
                f"layer={self.layer.name!r} with {classes}"
            )
        size = max(1, BLOCK // classes**2)
        for start in range(0, len(features), size):
            yield self.layer.covariance(features[start : start + size]).numpy()


def _noisy_layer(model, layer):
    if layer is None:
        found = [each for each in model._flatten_layers() if _has_covariance(each)]
        found = list(dict.fromkeys(found))
    else:
        found = [layer_in(model, layer)]
    if len(found) != 1 or not _has_covariance(found[0]):
        raise ValueError(
            "Argument `layer` must be the one layer of the model with a method "
            "`covariance(features)`, such as `tfuq.layers.MCSoftmaxDenseFA`. Received: "
            f"layer={shown(layer)}, with {[each.name for each in found]} in the model"
        )
    return found[0]


def _has_covariance(layer):
    return callable(getattr(layer, "covariance", None))
