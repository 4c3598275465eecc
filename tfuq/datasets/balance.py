"""Classes in balance: the examples of rare ones come more often, those of frequent ones less."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, check_integer, shown
from tfuq._models.torch_data import keras_data
from tfuq._predictions.probabilities import TOLERANCE
from tfuq._random.points import ALGORITHM

BUFFER = 1024  # examples of a dataset that are shuffled among each other
_SEVERAL = (
    "Argument `data` must hold one class for each example: integers, or one-hot labels or "
    "probabilities that sum to 1. Received: labels with several classes, or none"
)


def balanced(
    data: Data,
    *,
    num_classes: int | None = None,
    weights: Sequence[float] | None = None,
    batch_size: int | None = 32,
    steps: int | None = None,
    seed: int = 0,
    batched: bool | None = None,
    counts: Sequence[int] | None = None,
    buffer_size: int | None = None,
) -> tf.data.Dataset:
    """Batches of examples whose classes come in proportion to `weights`, by default equally often.

    Weighted sampling with replacement, in its form of least variance: in each pass over the data an
    example comes a whole number of times, the one below its expected number or the one above, by
    chance. So every example of a rare class is seen in each pass, equally often, and every example
    of a frequent one is seen sooner or later; a pass reads each example once. Balance only the
    training data: tests and calibrations need the real frequencies.

    Formula:
        E[copies of an example of class k] = weights_k / (counts_k / n),    n = sum_k counts_k
    with weights that sum to 1, so that a pass over n examples gives n on average.

    Args:
        data: Arrays `(x, y)` or `(x, y, sample_weight)`; or a `tf.data.Dataset` of these, of
            examples or of batches. `x` may be a structure. Labels are integers or one-hot (or
            probabilities that sum to 1, of which the largest counts). Several labels of one example
            have no class to balance: give integers of your own, such as of their combinations.
        num_classes: Number of classes. By default that of the one-hot labels, or 1 + the largest.
        weights: How often each class shall come: `num_classes` numbers of at least 0, of which
            only the proportions count. By default all the same.
        batch_size: Examples in a batch, which is always full; None for single examples.
        steps: Batches (or, without batches, examples) in an epoch. By default as many as hold the
            number of examples of the data.
        seed: Integer from which copies and orders follow, as all of `tf.data` together with
            TensorFlow's global seed; each epoch has others.
        batched: Whether a dataset's elements are batches. By default what the shapes say; where
            they do not, an error asks for it.
        counts: Number of examples of each class in a dataset. By default one pass over the dataset
            counts them, here; an infinite dataset needs them.
        buffer_size: How many examples of a dataset are shuffled among each other, 1,024 by default.
            Arrays are always shuffled as a whole. A dataset that is sorted by class has to be
            shuffled before, or with a buffer of its size.

    Returns:
        `tf.data.Dataset` of elements in the form of `data`, of known length, for `fit`.

    Raises:
        ValueError: If a class that has weight does not occur, a label is none of the classes or
            several at once, or an argument is out of its range. (With `counts` given, such labels
            of a dataset stop the iteration with TensorFlow's InvalidArgumentError.)

    Example:

    ```python
    import numpy as np
    from tfuq.datasets import balanced

    x, y = np.random.rand(100, 4), np.array([0] * 90 + [1] * 10)
    train = balanced((x, y), batch_size=50, seed=1)
    print([np.bincount(labels).tolist() for _, labels in train])  # about 25 of each
    ```

    See also: `tfuq.datasets.smote`.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps), ("buffer_size", buffer_size)):
        if value is not None:
            check_integer(name, value, 1)
    check_integer("seed", seed, 0)
    if num_classes is not None:
        check_integer("num_classes", num_classes, 1)
    data = keras_data(data)
    if isinstance(data, tf.data.Dataset):
        source = _Examples(data, batched, counts, num_classes, buffer_size or BUFFER)
    else:
        given = {"batched": batched, "counts": counts, "buffer_size": buffer_size}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` must be None for arrays. Received: {name}={shown(value)}"
                )
        source = _Arrays(data, num_classes)
    copies = expected_copies(source.counts, _checked_weights(weights, source.counts))
    elements = source.draw(copies, batch_size, seed)
    if steps is None:
        steps = -(-int(np.sum(source.counts)) // (batch_size or 1))
    return elements.take(steps).prefetch(tf.data.AUTOTUNE)


def expected_copies(counts, weights):
    """`weights_k / (counts_k / n)`, 0 where a class has no examples, with weights that sum to 1."""
    counts = np.asarray(counts, "float64")
    shares = np.asarray(weights, "float64") / np.sum(weights)
    return np.divide(shares * counts.sum(), counts, out=np.zeros_like(counts), where=counts > 0)


def whole_copies(expected, uniform):
    """A whole number next to each expected one, with that mean where `uniform` is U(0, 1)."""
    below = tf.floor(expected)
    return tf.cast(below, "int64") + tf.cast(uniform < expected - below, "int64")


class _Arrays:
    """Arrays `(x, y)`, whose rows are drawn by their numbers."""

    def __init__(self, data, num_classes):
        if not isinstance(data, tuple) or len(data) not in (2, 3):
            raise ValueError(
                "Argument `data` must be a tf.data.Dataset, or arrays (x, y) or "
                f"(x, y, sample_weight). Received: {type(data).__name__}"
            )
        self.arrays = tf.nest.map_structure(np.asarray, data)
        lengths = {len(a) if a.ndim else 0 for a in tf.nest.flatten(self.arrays)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "Argument `data` must hold arrays of one length of at least 1. "
                f"Received: lengths {sorted(lengths)}"
            )
        labels = self.arrays[1]
        one_hot, width = _form_of(tf.TensorShape(np.shape(labels)[1:]))
        if one_hot and not np.all(np.abs(labels.sum(-1, dtype="float64") - 1) <= TOLERANCE):
            raise ValueError(_SEVERAL)
        self.classes = _checked_classes(labels.argmax(-1) if one_hot else labels.reshape(-1))
        self.counts = _bins(self.classes, num_classes, width)

    def draw(self, copies, batch_size, seed):
        """Endless rows, or batches of them."""
        expected = tf.constant(copies[self.classes], "float32")
        arrays = tf.nest.map_structure(tf.constant, self.arrays)

        def rows_of_a_pass(number):
            seeds = tf.random.split(tf.stack([number, 0]), 2, alg=ALGORITHM)
            uniform = tf.random.stateless_uniform(expected.shape, seeds[0], alg=ALGORITHM)
            rows = tf.repeat(tf.range(len(expected)), whole_copies(expected, uniform))
            return tf.random.experimental.stateless_shuffle(rows, seeds[1], alg=ALGORITHM)

        def gathered(rows):
            return tf.nest.map_structure(lambda array: tf.gather(array, rows), arrays)

        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        rows = numbers.map(rows_of_a_pass).unbatch()
        if batch_size is not None:
            rows = rows.batch(batch_size, drop_remainder=True)  # none remains
        return rows.map(gathered, num_parallel_calls=tf.data.AUTOTUNE)


class _Examples:
    """A `tf.data.Dataset`, read from its start to its end again and again."""

    def __init__(self, dataset, batched, counts, num_classes, buffer_size):
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) not in (2, 3) or keras.tree.is_nested(spec[1]):
            raise ValueError(
                "Argument `data` must give (x, y) or (x, y, sample_weight), with y one tensor. "
                f"Received: elements of {spec}"
            )
        self.examples = dataset.unbatch() if _is_batched(spec, batched) else dataset
        self.one_hot, width = _form_of(self.examples.element_spec[1].shape)
        self.buffer_size = buffer_size
        if counts is None:
            counts = _bins(self._count(), num_classes, width)
        self.counts = _checked_counts(counts, num_classes or width)

    def _class(self, _, label, *weight):
        if not self.one_hot:
            return tf.reshape(label, ())
        distance = tf.abs(tf.reduce_sum(tf.cast(label, "float64")) - 1)
        check = tf.debugging.assert_less_equal(distance, np.float64(TOLERANCE), _SEVERAL)
        with tf.control_dependencies([check]):
            return tf.argmax(label)

    def _count(self):
        """The class of each example."""
        if self.examples.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                "Argument `counts` must be given for a dataset that does not end. "
                "Received: counts=None"
            )
        try:
            found = list(self.examples.map(self._class).batch(1024).as_numpy_iterator())
        except tf.errors.InvalidArgumentError as error:
            if _SEVERAL in str(error):
                raise ValueError(_SEVERAL) from None
            raise
        if not found:
            raise ValueError(
                "Argument `data` must hold at least one example. Received: no examples"
            )
        return _checked_classes(np.concatenate(found))

    def draw(self, copies, batch_size, seed):
        """Endless examples, or batches of them."""
        expected = tf.constant(copies)

        def copied(number, example):
            of_class = tf.gather(expected, tf.cast(self._class(*example), "int64"))
            uniform = (tf.cast(number, "float64") + 0.5) / 2**32  # its numbers have 32 bits
            return tf.data.Dataset.from_tensors(example).repeat(whole_copies(of_class, uniform))

        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        examples = tf.data.Dataset.zip((numbers, self.examples)).flat_map(copied)
        examples = examples.shuffle(self.buffer_size, seed=seed).repeat()
        return examples if batch_size is None else examples.batch(batch_size, drop_remainder=True)


def _is_batched(spec, batched):
    """Whether elements of this spec are batches, as told or as their shapes say."""
    if batched is not None:
        return batched
    label, inputs = spec[1].shape, tf.nest.flatten(spec[0])[0].shape
    if label.rank in (0, 2):
        return label.rank == 2
    if label.rank == 1 and label[0] is None:
        return True
    if label.rank == 1 and inputs.rank is not None and label[:1] != inputs[:1]:
        return False
    raise ValueError(
        "Argument `batched` must be True or False where shapes do not tell batches of integers "
        f"from one-hot labels. Received: batched=None for elements of {spec}"
    )


def _form_of(shape):
    """Of a label: whether it is one-hot, and then of how many classes."""
    if shape.rank == 0 or shape == (1,):
        return False, None
    if shape.rank == 1 and shape[0] is not None:
        return True, shape[0]
    raise ValueError(
        "Argument `data` must hold integer labels or one-hot ones, of a known number of classes. "
        f"Received: labels of shape {shape}"
    )


def _checked_classes(labels):
    classes = labels.astype("int64")
    if labels.dtype.kind not in "iufb" or (classes != labels).any() or (classes < 0).any():
        raise ValueError(
            "Argument `data` must hold labels that are integers of at least 0, or one-hot. "
            f"Received: labels of dtype {labels.dtype}, such as {labels[:5]}"
        )
    return classes


def _bins(classes, num_classes, width):
    """How many examples each class has."""
    if width is not None and num_classes not in (None, width):
        raise ValueError(
            f"Argument `num_classes` must be {width}, the width of the labels. "
            f"Received: num_classes={shown(num_classes)}"
        )
    known = num_classes or width or classes.max() + 1
    if classes.max() >= known:
        raise ValueError(
            f"Argument `num_classes` must be above all labels. Received: num_classes={num_classes} "
            f"with label {classes.max()}"
        )
    return np.bincount(classes, minlength=known)


def _checked_counts(counts, num_classes):
    counts = np.asarray(counts)
    fits = counts.ndim == 1 and counts.dtype.kind in "iu" and (counts >= 0).all() and counts.any()
    if not fits or num_classes not in (None, len(counts)):
        raise ValueError(
            "Argument `counts` must be the number of examples of each class, integers. "
            f"Received: counts={counts.tolist()} with num_classes={num_classes}"
        )
    return counts


def _checked_weights(weights, counts):
    weights = np.ones(len(counts)) if weights is None else np.asarray(weights)
    fits = weights.shape == (len(counts),) and weights.dtype.kind in "iuf"
    if not fits or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"Argument `weights` must be {len(counts)} numbers of at least 0, one for each class. "
            f"Received: weights={weights.tolist()}"
        )
    missing = np.flatnonzero((weights > 0) & (counts == 0)).tolist()
    if missing:
        raise ValueError(
            "Argument `data` must hold examples of each class whose weight is above 0. Received: "
            f"no examples of the classes {missing}; the counts of all classes are {counts.tolist()}"
        )
    return weights
