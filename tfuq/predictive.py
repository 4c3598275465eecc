"""Predictions of random networks, and what their uncertainty is made of.

A stack of predictions is `(samples, batch, ..., classes)`, probabilities, whoever made it: draws of
a Bayesian network, of dropout, an ensemble, snapshots, or augmented images. All entropies are in
nats; all measures of uncertainty grow with it.

Binary predictions have one class in the last axis, several labels have `multi_label=True`: each is
then a distribution over two classes, and the last axis stays in what is per example.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._augmentation import expected_inputs, make_views, predictions
from tfuq._batches import batches as _batches
from tfuq._draws import one_draw, random_layers
from tfuq._keras import check_integer
from tfuq._labelled import select_output
from tfuq._outputs import Reading, loss_takes_logits

KEPT_SAMPLERS = 4  # of each model, with what they have traced

__all__ = [
    "Uncertainty",
    "decompose",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "predict_uncertainty",
    "predictive_entropy",
    "sample_predictions",
    "test_time_augmentation",
    "variation_ratio",
]


class Uncertainty(NamedTuple):
    """What a stack of predictions says of each example, as arrays `(batch, ...)`.

    With `multi_label` or one class, the arrays per example are `(batch, ..., labels)`.

    Example:

    >>> from tfuq.predictive import decompose
    >>> print(decompose([[[0.9, 0.1]], [[0.7, 0.3]]]).confidence)
    [0.8]
    """

    probs: np.ndarray
    """Mean probabilities E_w p(y | x, w): `(batch, ..., classes)`."""
    label: np.ndarray
    """The most probable class under `probs`, int; 0 or 1 for binary predictions."""
    confidence: np.ndarray
    """The largest of `probs` (for binary ones, of p and 1 - p), in [0, 1]."""
    predictive_entropy: np.ndarray
    """Total: H[E_w p(y | x, w)], nats."""
    expected_entropy: np.ndarray
    """Aleatoric: E_w H[p(y | x, w)], nats."""
    mutual_information: np.ndarray
    """Epistemic: I[y, w | x], their difference, nats, never below 0."""
    variation_ratio: np.ndarray
    """Share of samples whose most probable class is not the most frequent one, in [0, 1)."""
    std: np.ndarray
    """Standard deviation over the samples of each class's probability: `(batch, ..., classes)`."""


def entropy(probs, multi_label=False):
    """H[p] = -sum_c p_c log p_c in nats, with 0 log 0 = 0, over the last axis.

    Args:
        probs: Probabilities `(..., classes)`; with one class, of class 1 of two.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        Array `(...)`; for binary predictions `(..., labels)`.

    Example:

    >>> from tfuq.predictive import entropy
    >>> print(entropy([[0.5, 0.5], [1.0, 0.0]]).round(3))
    [0.693 0.   ]
    """
    probs = _checked("probs", probs, 1)
    if _is_binary(probs.shape, multi_label):
        return np.asarray(_entropy(probs) + _entropy(1 - probs))
    return np.asarray(_entropy(probs).sum(-1))


def predictive_entropy(stack, multi_label=False):
    """H[E_w p(y | x, w)] in nats: the total uncertainty of a stack of predictions.

    Args:
        stack: Probabilities `(samples, batch, ..., classes)`.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        Array `(batch, ...)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import predictive_entropy
    >>> print(predictive_entropy(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.693]
    """
    return entropy(_checked("stack", stack, 2).mean(0), multi_label)


def expected_entropy(stack, multi_label=False):
    """E_w H[p(y | x, w)] in nats: the aleatoric part.

    Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import expected_entropy
    >>> print(expected_entropy(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.325]
    """
    return entropy(_checked("stack", stack, 2), multi_label).mean(0)


def mutual_information(stack, multi_label=False):
    """I[y, w | x] = H[E_w p(y | x, w)] - E_w H[p(y | x, w)] in nats: the epistemic part.

    (BALD, Houlsby et al. 2011.) Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import mutual_information
    >>> print(mutual_information(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.368]
    """
    difference = predictive_entropy(stack, multi_label) - expected_entropy(stack, multi_label)
    return np.maximum(difference, 0)


def variation_ratio(stack, multi_label=False):
    """1 - (votes of the most frequent label) / samples (Freeman 1965).

    Each sample votes for its most probable class. Arguments as for `predictive_entropy`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import variation_ratio
    >>> print(variation_ratio(np.array([[[0.9, 0.1]], [[0.1, 0.9]]])).round(3))
    [0.5]
    """
    stack = _checked("stack", stack, 2)
    if _is_binary(stack.shape, multi_label):
        share = (stack > 0.5).mean(0)
        return 1 - np.maximum(share, 1 - share)
    votes = np.argmax(stack, -1)[..., None] == np.arange(stack.shape[-1])
    return 1 - votes.mean(0).max(-1)


def decompose(stack, multi_label=False):
    """All that `Uncertainty` holds, from a stack of predictions.

    Args:
        stack: Probabilities `(samples, batch, ..., classes)`.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.

    Returns:
        `Uncertainty`.

    Raises:
        ValueError: If `stack` is empty, holds no probabilities, or has fewer than two axes.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import decompose
    >>> stack = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]])
    >>> parts = decompose(stack)
    >>> print(parts.predictive_entropy.round(3), parts.mutual_information.round(3))
    [0.693 0.693] [0.368 0.   ]
    """
    stack = _checked("stack", stack, 2)
    if _is_binary(stack.shape, multi_label):
        votes = (stack > 0.5).mean(0)
    else:
        votes = (np.argmax(stack, -1)[..., None] == np.arange(stack.shape[-1])).mean(0)
    sums = _Sums(stack.mean(0), entropy(stack, multi_label).mean(0), votes, stack.var(0))
    return _uncertainty(sums, multi_label)


class _Sums(NamedTuple):
    """Means over the samples: probabilities, entropies, votes, squared deviations."""

    probs: object
    entropy: object
    votes: object
    variance: object


def _uncertainty(sums, multi_label):
    probs, expected, votes, variance = (np.asarray(s, "float64") for s in sums)
    total = entropy(probs, multi_label)
    if _is_binary(probs.shape, multi_label):
        label, confidence = (probs > 0.5).astype("int64"), np.maximum(probs, 1 - probs)
        frequent = np.maximum(votes, 1 - votes)
    else:
        label, confidence, frequent = np.argmax(probs, -1), probs.max(-1), votes.max(-1)
    return Uncertainty(
        probs=probs,
        label=label,
        confidence=confidence,
        predictive_entropy=total,
        expected_entropy=expected,
        mutual_information=np.maximum(total - expected, 0),
        variation_ratio=1 - frequent,
        std=np.sqrt(np.maximum(variance, 0)),
    )


def _is_binary(shape, multi_label):
    return multi_label or shape[-1] == 1


def _entropy(probs):
    return -probs * np.log(np.where(probs > 0, probs, 1))


def _checked(name, probs, min_axes):
    probs = np.asarray(probs, "float64")
    if probs.ndim < min_axes or probs.size == 0:
        axes = "(samples, batch, ..., classes)" if min_axes == 2 else "(..., classes)"
        raise ValueError(
            f"Argument `{name}` must have shape {axes} and not be empty. "
            f"Received: {name} of shape {probs.shape}"
        )
    if not np.all((probs >= 0) & (probs <= 1 + 1e-5)):
        raise ValueError(
            f"Argument `{name}` must hold probabilities in [0, 1]. Received: values from "
            f"{probs.min()} to {probs.max()}"
        )
    return probs


# --- Drawing networks -------------------------------------------------------------------------


def sample_predictions(
    model,
    x,
    num_samples=30,
    batch_size=32,
    *,
    output=None,
    from_logits=None,
    multi_label=False,
    seed=0,
    verbose=0,
):
    """Probabilities of `num_samples` networks, drawn from a model with random weights.

    Every sample is one network: it has the same weights for all examples, whatever the batches. The
    part of the model that comes before its first random layer is computed once, not per sample.
    Label noise, as of `MCSoftmaxDenseFA` or a `VBLLDense` with `noise="learned"`, is averaged
    within each sample: it is not a property of the weights.

    Args:
        model: Keras model of any style that holds layers with random weights or dropout of
            `tfuq.layers`.
        x: Inputs: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of inputs or of pairs. Labels are not looked at.
        num_samples: Number of networks.
        batch_size: Examples at a time, for arrays; datasets have their own.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the compiled loss says; of a
            model without, logits are what lies outside [0, 1] or does not sum to 1.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        seed: Integer from which the networks are drawn.
        verbose: 1 shows a progress bar.

    Returns:
        Array `(samples, examples, ..., classes)`, float32.

    Raises:
        ValueError: If the model holds no random layer, the data are empty, or an argument is out
            of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.predictive import sample_predictions

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    print(sample_predictions(model, np.random.rand(5, 8), num_samples=4).shape)  # (4, 5, 3)
    ```
    """
    sampler = _sampler(model, num_samples, output, from_logits, multi_label, seed)
    batches = [sampler.stack(batch).numpy() for batch, *_ in _batches(x, batch_size, verbose)]
    return np.concatenate(batches, axis=1)


def predict_uncertainty(
    model,
    x,
    num_samples=30,
    batch_size=32,
    *,
    output=None,
    from_logits=None,
    multi_label=False,
    seed=0,
    verbose=0,
):
    """Mean prediction of a model with random weights, and what its uncertainty is made of.

    As `decompose(sample_predictions(...))`, without keeping the samples: memory does not grow with
    their number. Arguments and errors are those of `sample_predictions`.

    Returns:
        `Uncertainty`, with arrays over all examples.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    found = predict_uncertainty(model, np.random.rand(5, 8))
    print(found.label, found.mutual_information)
    ```
    """
    sampler = _sampler(model, num_samples, output, from_logits, multi_label, seed)
    parts = [sampler.sums(batch) for batch, *_ in _batches(x, batch_size, verbose)]
    return _uncertainty(_Sums(*_concatenated(parts)), multi_label)


def uncertainty_with_labels(
    model,
    data,
    num_samples,
    batch_size=32,
    *,
    output=None,
    from_logits=None,
    multi_label=False,
    seed=0,
    verbose=0,
):
    """`predict_uncertainty`, and the labels and weights (or None) that stand beside the inputs."""
    sampler = _sampler(model, num_samples, output, from_logits, multi_label, seed)
    parts, beside = [], []
    for batch, *labels in _batches(data, batch_size, verbose):
        parts.append(sampler.sums(batch))
        beside.append([select_output(y, output) if keras.tree.is_nested(y) else y for y in labels])
    uncertainty = _uncertainty(_Sums(*_concatenated(parts)), multi_label)
    return (uncertainty, *_concatenated(beside))


def _concatenated(rows):
    """Column by column, the arrays of all batches as one; None stays None."""
    columns = zip(*rows, strict=True)
    return [None if part[0] is None else np.concatenate(part) for part in columns]


def _sampler(model, *arguments):
    """A `_Sampler` of `model`, the one of an earlier call if nothing has changed since.

    What it has traced knows the model's variables and whether its loss takes logits, so these are
    compared. Like Keras' own `predict_function`, it does not see other attributes change.
    """
    _check_model(model)
    variables = tuple(id(variable) for variable in model.variables)
    key = (*arguments, variables, loss_takes_logits(model, arguments[1]))
    kept = vars(model).get("_tfuq_samplers", {})
    sampler = kept.get(key) or _Sampler(model, *arguments)
    latest = [(k, v) for k, v in kept.items() if k != key][1 - KEPT_SAMPLERS :]
    # Past Keras' own `__setattr__`, which tracks what is set as a part of the model.
    object.__setattr__(model, "_tfuq_samplers", dict([*latest, (key, sampler)]))
    return sampler


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a Keras model. Received: model={model!r}")


class _Sampler:
    """A model cut in two where randomness enters: a prefix that runs once, and the rest."""

    def __init__(self, model, num_samples, output, from_logits, multi_label, seed):
        check_integer("num_samples", num_samples, 1)
        check_integer("seed", seed, 0)
        self.model, self.output, self.multi_label = model, output, multi_label
        self.from_logits = loss_takes_logits(model, output) if from_logits is None else from_logits
        numbers = np.arange(num_samples)
        self.seeds = tf.constant(np.stack([np.full_like(numbers, seed), numbers], 1), "int32")
        self._cut = {}

    def stack(self, batch):
        """Probabilities `(samples, batch, ..., classes)`."""
        prefix, rest, _ = self._parts(batch)
        return rest(*prefix(batch))

    def sums(self, batch):
        """`_Sums` of one batch, with memory for one sample."""
        prefix, _, sums = self._parts(batch)
        return [part.numpy() for part in sums(*prefix(batch))]

    def _parts(self, batch):
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), batch)
        key = str(spec)
        if key not in self._cut:
            if self.from_logits is None:
                reading = Reading(self.output, None, self.multi_label)
                self.from_logits = not reading.are_probs(self._predict(batch))
            self._cut[key] = self._make_parts(spec)
        return self._cut[key]

    def _predict(self, batch):
        return np.asarray(select_output(self.model(batch, training=False), self.output))

    def _make_parts(self, spec):
        prefix, rest = _cut_at_randomness(self._draw, spec)

        @tf.function
        def stack(*frontier):
            return tf.map_fn(
                lambda seed: rest(*frontier, seed), self.seeds, fn_output_signature="float32"
            )

        @tf.function
        def sums(*frontier):
            first = self._terms(rest(*frontier, self.seeds[0]))
            start = (*first, tf.zeros_like(first[0]))

            def add(state, number):
                mean, entropies, votes, squares = state
                probs, *more = self._terms(rest(*frontier, self.seeds[number]))
                step = probs - mean  # Welford's recursion
                mean += step / tf.cast(number + 1, "float32")
                return mean, entropies + more[0], votes + more[1], squares + step * (probs - mean)

            count = self.seeds.shape[0]
            mean, *totals = tf.foldl(add, tf.range(1, count), start)
            return (mean, *(total / count for total in totals))

        return prefix, stack, sums

    def _draw(self, batch, seed):
        """Probabilities of one network."""
        with one_draw(seed) as draw:
            outputs = self.model(batch, training=False)
        taking = [layer for layer in random_layers(self.model) if id(layer) in draw.layers]
        if not any(layer.is_random() for layer in taking):
            raise ValueError(
                "Argument `model` must hold layers with random weights, such as "
                "`tfuq.layers.VBLLDense`, `DenseVariational`, `MCDropout` or, once weights are "
                "selected, `SparseBayesDense`; its predictions would all be the same. "
                f"Received: {self.model}"
            )
        outputs = tf.cast(select_output(outputs, self.output), "float32")
        if not self.from_logits:
            return outputs
        binary = _is_binary(outputs.shape, self.multi_label)
        return tf.sigmoid(outputs) if binary else tf.nn.softmax(outputs)

    def _terms(self, probs):
        """A sample's probabilities, entropy and votes."""
        if _is_binary(probs.shape, self.multi_label):
            entropies = _tensor_entropy(probs) + _tensor_entropy(1 - probs)
            return probs, entropies, tf.cast(probs > 0.5, "float32")
        votes = tf.one_hot(tf.argmax(probs, -1), probs.shape[-1])
        return probs, tf.reduce_sum(_tensor_entropy(probs), -1), votes


def _tensor_entropy(probs):
    return -tf.math.xlogy(probs, probs)


def _cut_at_randomness(function, spec):
    """`function(batch, seed)` as `prefix(batch)` and `rest(*prefix(batch), seed)`.

    The graph is cut at the tensors that depend on the batch and not on the seed, and are used by
    what depends on the seed. So it works for a model of any style.
    """
    placeholders = []

    def traced(batch, seed):
        placeholders.append((batch, seed))
        return function(batch, seed)

    seed_spec = tf.TensorSpec((2,), "int32")
    graph_function = tf.compat.v1.wrap_function(traced, [spec, seed_spec])
    batch, seed = placeholders[0]
    inputs = tf.nest.flatten(batch)
    (result,) = tf.nest.flatten(graph_function.structured_outputs)
    random = _dependents([seed])
    moving = _dependents(inputs) | {id(tensor.op) for tensor in inputs}
    frontier = {}
    for op in graph_function.graph.get_operations():
        if id(op) in random:
            for tensor in op.inputs:
                if id(tensor.op) in moving and id(tensor.op) not in random:
                    frontier[id(tensor)] = tensor
    frontier = list(frontier.values())
    prefix = graph_function.prune(inputs, frontier)
    rest = graph_function.prune([*frontier, seed], result)
    # A function around it, because a pruned one is not optimised on its own.
    prefix = tf.function(prefix)
    return lambda batch: prefix(*tf.nest.flatten(batch)), rest


def _dependents(tensors):
    """Ids of the operations that depend on `tensors`."""
    found, waiting = set(), [op for tensor in tensors for op in tensor.consumers()]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found.add(id(op))
            waiting += [consumer for output in op.outputs for consumer in output.consumers()]
    return found


# --- Augmented images -------------------------------------------------------------------------


def test_time_augmentation(
    model,
    x,
    augment,
    num_samples=None,
    batch_size=32,
    *,
    output=None,
    from_logits=None,
    multi_label=False,
    include_original=True,
    summary=False,
    seed=0,
    verbose=0,
):
    """Probabilities that a model gives to the same images, augmented in several ways.

    Where they differ, the prediction hangs on what should not matter. In a `decompose` of the
    stack, the mutual information is then what augmentation brings in, not what weights do: a model
    with random weights predicts as in `predict`, with the noise that its layers have fixed for
    inference, the same for each augmentation.

    The augmentation runs eagerly, batch by batch. Its random numbers, those of Keras layers as well
    as the global ones, start from `seed` and are put back, so that the same seed, data and
    `batch_size` give the same stack; a function that holds a generator of its own takes `seed`
    instead. More samples begin with those of fewer.

    Formula:
        p_s(y | x) = T_s^-1 p(y | T_s x)
    with the augmentations T_s, and their inverses where predictions are per pixel.

    Args:
        model: Keras model of any style.
        x: Images: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of images or of pairs. Labels are not looked at.
        augment: What makes other images of a batch:

            - a Keras layer, such as `keras.layers.RandomFlip()` or a `Sequential` of layers,
              called with `training=True`;
            - a function of the images, a NumPy array (in the structure of `x`), which returns as
              many; if it takes `seed`, it gets an integer, another one in each sample and batch;
            - a list of such layers and functions, one for each sample. Of a pair
              `(augmentation, inverse)` the inverse undoes in predictions per pixel, a NumPy array
              `(batch, height, width, classes)`, what was done to the images.
        num_samples: Number of samples, the original images among them. By default 30; None for a
            list.
        batch_size: Examples at a time, for arrays; datasets have their own.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the compiled loss says; of a
            model without, logits are what lies outside [0, 1] or does not sum to 1.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        include_original: Whether the images as they are are the first sample.
        summary: Whether to return the `Uncertainty` of the stack, without keeping that: memory
            does not grow with the number of samples times that of examples.
        seed: Integer from which the augmentations are drawn.
        verbose: 1 shows a progress bar.

    Returns:
        Array `(samples, examples, ..., classes)`, float32; or `Uncertainty`.

    Raises:
        ValueError: If `augment` returns another number of images, or a shape that the model does
            not take, the predictions differ in shape, the data are empty, or an argument is out of
            its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.predictive import decompose, test_time_augmentation

    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    x = np.random.rand(5, 8, 8, 1)
    stack = test_time_augmentation(model, x, keras.layers.RandomFlip(), num_samples=4)
    print(stack.shape, decompose(stack).confidence)  # (4, 5, 3)

    masks = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, padding="same")])
    mirror = lambda images: images[:, :, ::-1]  # noqa: E731
    stack = test_time_augmentation(masks, x, [(mirror, mirror)])  # (2, 5, 8, 8, 2)
    ```

    References:
        - Wang, Li, Aertsen, Deprest, Ourselin, Vercauteren: Aleatoric uncertainty estimation with
          test-time augmentation for medical image segmentation with convolutional neural networks,
          Neurocomputing 2019.
    """
    _check_model(model)
    check_integer("seed", seed, 0)
    views = make_views(augment, num_samples, include_original)
    reading, expected = Reading(output, from_logits, multi_label), expected_inputs(model)
    is_logits, found = None, []

    @tf.function(autograph=False, reduce_retracing=True)  # autograph would wrap our errors
    def probs(images):
        return reading.probs(model, images, is_logits)

    for number, (batch, *_) in enumerate(_batches(x, batch_size, verbose)):
        if is_logits is None:
            is_logits = reading.is_logits(model, batch)
        stack = predictions(views, batch, number, lambda i: probs(i).numpy(), expected, seed)
        found.append(decompose(stack, multi_label) if summary else stack)
    return Uncertainty(*_concatenated(found)) if summary else np.concatenate(found, axis=1)


test_time_augmentation.__test__ = False  # pytest, which would collect it wherever it is imported
