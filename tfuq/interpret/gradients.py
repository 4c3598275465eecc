"""Maps of the relevant places of an image, from gradients: Grad-CAM, guided backpropagation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, ModelLike, Output, check_flags, shown
from tfuq._models.finite import known_only
from tfuq._models.meaning import reading_of
from tfuq.interpret._explainer import Explainer, image_of
from tfuq.interpret._spatial_layers import spatial_layer

GUIDED = {"Relu": "TfuqGuidedRelu", "Relu6": "TfuqGuidedRelu6"}


def grad_cam(
    model: ModelLike,
    images: Data,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    layer: str | keras.layers.Layer | None = None,
    *,
    target: str = "class",
    num_samples: int | None = None,
    relu: bool = True,
    upsample: bool = True,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """Grad-CAM: maps of the image regions that support a class, or that make the model unsure.

    The model may be of any style, with the layer at any depth, and predicts as it does in
    `predict`; it is not changed. It is traced at each call, so give many images at once.

    Formula (Selvaraju et al. 2017, equations 1 and 2), for a score y and feature maps A_k of
    `layer` with Z places:

    ```
    map_ij = max(0, sum_k a_k A_kij),    a_k = (1 / Z) sum_ij dy / dA_kij
    ```

    With `num_samples`, y belongs to the mean prediction over that many draws of the network. Its
    gradient with respect to each draw's feature maps weighs these maps; the sum over draws comes
    before the maximum.

    Args:
        model: Keras model, channels last; or a `DeepEnsemble`, whose map is the mean of its
            members' for the class of their mean prediction (`layer` by name; no entropies).
        images: Images `(n, height, width, channels)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of them, with labels or without. Models of several
            inputs take them as they do in `predict` (in a list or dict); the first with four axes
            is the image.
        class_index: Which class is to be explained. None: the predicted one. An integer: that one,
            for all images. A sequence `(k,)`: these, for all images. An array `(n, k)`: those of
            each image, so `labels[:, None]` are the true classes. With one output per example the
            classes are 0 and 1; of multi-label predictions they are the labels.
        layer: The layer whose feature maps are used, or its name or path. None: the last layer with
            output `(batch, height, width, channels)` on which the output depends, in nested models,
            too. Tokens `(batch, places, channels)` of a vision transformer are places, the class
            token aside: where that alone is read at the end, the last layer is what the attention
            of the last block takes. Of a layer that is called several times, the last call counts.
            For models that predict each pixel, name a layer: the last one is the prediction.
        target: What is to be explained, y. `"class"`: the logit of the class, before a soft-max or
            sigmoid and, of a head that averages over draws, that of its mean; the probability where
            no layer shows the logit, and with `num_samples` the mean probability.
            `"probability"`: always that. `"predictive_entropy"`: of the mean prediction, the total
            uncertainty, in nats; `"expected_entropy"`: the mean of the draws' entropies, the
            aleatoric part; `"mutual_information"`: their difference, the epistemic part. Entropies
            of labels are summed. What is per pixel is averaged over the pixels.
        num_samples: Number of draws of a network with random weights; they are those of
            `tfuq.predictive.sample_predictions` for the same seed. None: the network of `predict`.
        relu: Whether negative parts are set to 0. If not, a place with a negative sign speaks
            against the class or makes the prediction more certain.
        upsample: Whether the maps are brought to the size of the images, by bilinear interpolation.
        output: Which output, when the model has several: an index, a key, a field of a named tuple,
            or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the last layer declares, else
            what the compiled loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        batch_size: Images at a time, for arrays; datasets have their own.
        seed: Integer that determines the drawn networks.

    Returns:
        Array `(n, height, width)`, float32, in units of y (nats for entropies); for several classes
        `(n, k, height, width)`. It is 0 or, without `relu`, negative where nothing raises y; NaN of
        images that are not finite.

    Raises:
        ValueError: If there is no such layer, its output is not spatial or does not matter to the
            model's; a class is out of range; images are not of the shape that the model takes;
            draws are asked of a model without randomness; or an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import grad_cam
    from tfuq.layers import MCDropout

    conv = keras.layers.Conv2D(4, 3, activation="relu")
    head = keras.layers.Dense(3, "softmax")
    layers = [conv, keras.layers.GlobalAveragePooling2D(), MCDropout(0.5), head]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    images = np.random.rand(2, 8, 8, 1)
    print(grad_cam(model, images).shape)  # (2, 8, 8), of the predicted classes
    print(grad_cam(model, images, [0, 2], num_samples=4).shape)  # (2, 2, 8, 8)
    doubts = grad_cam(model, images, target="mutual_information", num_samples=4)
    ```

    References:
        - Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: Visual Explanations from
          Deep Networks via Gradient-based Localization", ICCV 2017.

    See also: `tfuq.interpret.guided_grad_cam`, `tfuq.interpret.occlusion`,
    `tfuq.plots.explanation_maps`.
    """
    check_flags(relu=relu, upsample=upsample)
    reading = reading_of(output, from_logits, multi_label)
    if isinstance(getattr(model, "members", None), tuple):  # an ensemble
        options = {"target": target, "num_samples": num_samples, "seed": seed}
        shape = {"layer": layer, "upsample": upsample, "batch_size": batch_size}
        found = _of_members(model.members, images, class_index, reading, options, shape)
        return np.maximum(found, 0) if relu else found
    explainer = Explainer(model, class_index, target, num_samples, seed, reading)
    maps = None

    def explain(batch, classes):
        nonlocal maps
        maps = maps or _cam(explainer, batch, layer)
        return _finished(maps(batch, classes), batch, relu, upsample)

    return _over(explainer, images, batch_size, explain)


def _of_members(members, images, class_index, reading, options, shape):
    """The mean map of the members of an ensemble, of the same class for all."""
    if options["target"] not in ("class", "probability"):
        raise ValueError(
            "Argument `target` must be 'class' or 'probability' for an ensemble: there are no maps "
            f"of its members' disagreement. Received: target={shown(options['target'])}"
        )
    options = {**options, "output": reading.output, "from_logits": reading.from_logits}
    options["multi_label"] = reading.multi_label
    classes = class_index
    if class_index is None:
        classes = _predicted_together(members, images, reading, shape["batch_size"], options)
    maps = [grad_cam(member, images, classes, relu=False, **options, **shape) for member in members]
    found = np.mean(maps, axis=0)
    return found[:, 0] if class_index is None else found


def _predicted_together(members, images, reading, batch_size, options):
    """The class `(n, 1)` of the largest mean probability of all members."""
    if isinstance(images, (tf.data.Dataset, keras.utils.PyDataset)):
        raise ValueError(
            "Argument `images` must be arrays for an ensemble without `class_index`: each member "
            f"goes over them in the same order. Received: images={shown(images)}"
        )
    given = options["target"], options["num_samples"], options["seed"], reading
    explainers = [Explainer(member, None, *given) for member in members]
    found = []
    for parts in zip(*(each.over(images, batch_size) for each in explainers), strict=True):
        means = [each.mean(part[0]) for each, part in zip(explainers, parts, strict=True)]
        found.append(explainers[0].most_probable(sum(means)).numpy())
    return np.concatenate(found)


def guided_backpropagation(
    model: ModelLike,
    images: Data,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    *,
    target: str = "class",
    num_samples: int | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """Guided backpropagation: which pixel values of an image raise a score.

    A gradient of the score with respect to the image, except that each ReLU passes back only what
    is positive, of units that are active (Springenberg et al. 2015, section 3.4):

    ```
    R_in = [x > 0] [R_out > 0] R_out
    ```

    This holds for ReLU layers, `activation="relu"`, and functions such as `keras.ops.relu` in the
    `call` of any layer, with or without a largest value; other activations, also leaky ones, keep
    their gradients. The model is not changed.

    Args:
        model: Keras model that holds ReLU activations. This and the further arguments are those of
            `grad_cam`.
        images: Images.
        class_index: Classes.
        target: What is to be explained.
        num_samples: Number of draws, over which what comes back is averaged.
        output: Which output.
        from_logits: Whether the output holds logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        batch_size: Images at a time.
        seed: Integer that determines the drawn networks.

    Returns:
        Array `(n, height, width, channels)`, float32, or `(n, k, height, width, channels)` for
        several classes: units of the score per unit of the pixels. A larger value there raises the
        score where it is positive, and lowers it where it is negative.

    Raises:
        ValueError: If the model holds no ReLU, or as `grad_cam`.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import guided_backpropagation

    conv = keras.layers.Conv2D(4, 3, activation="relu")
    layers = [conv, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    print(guided_backpropagation(model, np.random.rand(2, 8, 8, 1)).shape)  # (2, 8, 8, 1)
    ```

    References:
        - Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for Simplicity: The All
          Convolutional Net", ICLR 2015 workshop.

    See also: `tfuq.interpret.guided_grad_cam`, `tfuq.interpret.grad_cam`.
    """
    reading = reading_of(output, from_logits, multi_label)
    explainer = Explainer(model, class_index, target, num_samples, seed, reading)
    return _over(explainer, images, batch_size, _guided(explainer))


def guided_grad_cam(
    model: ModelLike,
    images: Data,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    layer: str | keras.layers.Layer | None = None,
    *,
    target: str = "class",
    num_samples: int | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """Guided backpropagation, weighted by Grad-CAM.

    The product of `guided_backpropagation` and of the `grad_cam` map at the size of the image
    (Selvaraju et al. 2017, section 3.2), from one pass over the images.

    Args:
        model: Keras model that holds ReLU activations. This and the further arguments are those of
            `grad_cam`.
        images: Images.
        class_index: Classes.
        layer: The layer whose feature maps Grad-CAM uses.
        target: What is to be explained.
        num_samples: Number of draws; the product is one of means over the draws.
        output: Which output.
        from_logits: Whether the output holds logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        batch_size: Images at a time.
        seed: Integer that determines the drawn networks.

    Returns:
        Array `(n, height, width, channels)`, float32, or `(n, k, height, width, channels)` for
        several classes, with the signs of guided backpropagation.

    Raises:
        ValueError: As `guided_backpropagation`.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import guided_grad_cam

    conv = keras.layers.Conv2D(4, 3, activation="relu")
    layers = [conv, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    print(guided_grad_cam(model, np.random.rand(2, 8, 8, 1), [0, 1]).shape)  # (2, 2, 8, 8, 1)
    ```

    See also: `tfuq.interpret.grad_cam`, `tfuq.interpret.guided_backpropagation`.
    """
    reading = reading_of(output, from_logits, multi_label)
    explainer = Explainer(model, class_index, target, num_samples, seed, reading)
    guided, maps = _guided(explainer), None

    def explain(batch, classes):
        nonlocal maps
        maps = maps or _cam(explainer, batch, layer)
        where = _finished(maps(batch, classes), batch, relu=True, upsample=True)
        return where[..., None] * guided(batch, classes)

    return _over(explainer, images, batch_size, explain)


def _over(explainer, images, batch_size, explain):
    """What `explain(batch, classes)` gives for all images, without the axis of a single class."""
    found = [
        known_only(batch, explain(batch, classes)).numpy()
        for batch, classes, *_ in explainer.over(images, batch_size)
    ]
    found = np.concatenate(found)
    return found[:, 0] if explainer.is_single else found


# --- Grad-CAM ---------------------------------------------------------------------------------


def _cam(explainer, batch, layer):
    found = spatial_layer(explainer.model, explainer.outputs, batch, layer)

    def combine(features, gradients):
        return weighted_maps(found.of(features), found.of(gradients))

    return explainer.attribution(combine, found.layer)


def weighted_maps(features, gradients):
    """sum_k a_k A_k, `(batch, classes, rows, columns)`, with a_k the means of the gradients."""
    weights = tf.reduce_mean(gradients, axis=(2, 3))
    return tf.einsum("bkc,bhwc->bkhw", weights, features)


def _finished(maps, batch, relu, upsample):
    maps = tf.nn.relu(maps) if relu else maps
    if not upsample:
        return maps
    last = tf.transpose(maps, (0, 2, 3, 1))
    return tf.transpose(tf.image.resize(last, image_of(batch).shape[1:3]), (0, 3, 1, 2))


# --- Guided backpropagation -------------------------------------------------------------------


@tf.RegisterGradient("TfuqGuidedRelu")
def _guided_relu(op, gradient):
    return tf.raw_ops.ReluGrad(gradients=tf.nn.relu(gradient), features=op.outputs[0])


@tf.RegisterGradient("TfuqGuidedRelu6")
def _guided_relu6(op, gradient):
    return tf.raw_ops.Relu6Grad(gradients=tf.nn.relu(gradient), features=op.outputs[0])


@contextlib.contextmanager
def _guidance():
    """While it is open, each ReLU that is added to the graph has the guided gradient."""
    graph = tf.compat.v1.get_default_graph()
    with graph.gradient_override_map(GUIDED):
        yield
    if not any(op.type in GUIDED for op in graph.get_operations()):
        raise ValueError(
            "Argument `model` must hold ReLU activations: without them, guided backpropagation is "
            "a plain gradient. Received: a model without them"
        )


def _guided(explainer):
    return explainer.attribution(lambda _, gradients: gradients, context=_guidance)
