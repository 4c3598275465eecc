"""Predictions for the same images, augmented in several ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, ModelLike, Output, check_integer, check_model
from tfuq._models.batches import batches
from tfuq._models.meaning import reading_of
from tfuq._predictions.stacks import samples
from tfuq._predictions.uncertainty import Uncertainty, concatenated, decompose_known
from tfuq.predictive._views import expected_inputs, make_views, predictions


def test_time_augmentation(
    model: ModelLike,
    x: Data,
    augment: Any,
    num_samples: int | None = None,
    batch_size: int = 32,
    *,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    include_original: bool = True,
    summary: bool = False,
    seed: int = 0,
    verbose: int = 0,
) -> np.ndarray | Uncertainty:
    """Test-time augmentation: a stack of predictions of the same images, augmented.

    If they differ, the prediction depends on things that should not matter. In a `decompose` of the
    stack, the mutual information comes from the augmentation, not from the weights: a model with
    random weights predicts as in `predict`, with the fixed noise of inference, the same for each
    augmentation.

    The augmentation runs eagerly, batch by batch. Random states, of Keras layers and global ones,
    start from `seed` and are restored afterwards, so the same seed, data and `batch_size` give the
    same stack. A function with its own generator takes `seed` instead. A larger stack begins with
    the samples of a smaller one.

    Formula:
        p_s(y | x) = T_s^-1 p(y | T_s x)
    with the augmentations T_s, and their inverses where predictions are per pixel.

    Args:
        model: Keras model of any style.
        x: Images: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of images or of pairs. Labels are ignored.
        augment: What makes other images of a batch:

            - a Keras layer, such as `keras.layers.RandomFlip()` or a `Sequential` of layers,
              called with `training=True`;
            - a function of the images, a NumPy array (in the structure of `x`), which returns as
              many; if it takes `seed`, it gets an integer, another one in each sample and batch;
            - a list of such layers and functions, one for each sample. In a pair `(augmentation,
              inverse)` the inverse undoes the augmentation in predictions per pixel, a NumPy array
              `(batch, height, width, classes)`.
        num_samples: Number of samples, the original images among them. By default 30; None for a
            list.
        batch_size: Examples at a time, for arrays; datasets have their own.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the last layer declares, else
            what the compiled loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        include_original: Whether the unchanged images are the first sample.
        summary: Whether to return the `Uncertainty` of the stack, without keeping that: memory
            does not grow with the number of samples times that of examples.
        seed: Integer that determines the augmentations.
        verbose: 1 shows a progress bar.

    Returns:
        Array `(samples, examples, ..., classes)`, float32; or `Uncertainty`. An image that is not
        finite is unknown: its probabilities and measures are NaN, its label is -1.

    Raises:
        ValueError: If `augment` returns another number of images, or a shape that the model does
            not take, the predictions differ in shape, the data are empty, or an argument is out of
            its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.predictive import decompose, test_time_augmentation

    layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    x = np.random.rand(5, 8, 8, 1)
    stack = test_time_augmentation(model, x, keras.layers.RandomFlip(), num_samples=4)
    print(stack.shape, decompose(stack).confidence)  # (4, 5, 3)

    masks = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, padding="same")])
    mirror = lambda images: images[:, :, ::-1]  # noqa: E731
    stack = test_time_augmentation(masks, x, [(mirror, mirror)], from_logits=True)
    print(stack.shape)  # (2, 5, 8, 8, 2)
    ```

    References:
        - Wang, Li, Aertsen, Deprest, Ourselin, Vercauteren: Aleatoric uncertainty estimation with
          test-time augmentation for medical image segmentation with convolutional neural networks,
          Neurocomputing 2019.

    See also: `tfuq.predictive.decompose`, `tfuq.predictive.sample_predictions`.
    """
    check_model(model)
    check_integer("seed", seed, 0)
    views = make_views(augment, num_samples, include_original)
    reading, expected = reading_of(output, from_logits, multi_label), expected_inputs(model)
    stacks = []

    @tf.function(autograph=False, reduce_retracing=True)  # autograph would wrap our errors
    def probs(images):
        return reading.probs(model, images)

    for number, (batch, *_) in enumerate(batches(x, batch_size, verbose, model=model)):
        if not stacks:
            reading = reading.known(model, batch)
        stack = predictions(views, batch, number, lambda i: probs(i).numpy(), expected, seed)
        reading.checked(stack)
        stacks.append(decompose_known(stack, reading.multi_label) if summary else stack)
    if summary:
        return Uncertainty(*concatenated(stacks)).told(reading.multi_label)
    return samples(np.concatenate(stacks, axis=1))


test_time_augmentation.__test__ = False  # pytest, which would collect it wherever it is imported
