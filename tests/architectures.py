"""Networks of known shape, small enough for tests: ResNet-18 and U-Net."""

import keras
from keras import layers


def resnet18(width=64, classes=10, shape=(None, None, 3)):
    """ResNet-18 (He et al. 2016) with the stem for small images: 3x3, no pooling."""

    def conv(x, filters, size, strides=1):
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def block(x, filters, strides):
        y = layers.ReLU()(conv(x, filters, 3, strides))
        y = conv(y, filters, 3)
        if strides != 1 or x.shape[-1] != filters:
            x = conv(x, filters, 1, strides)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input(shape)
    x = layers.ReLU()(conv(inputs, width, 3))
    for stage in range(4):
        for i in range(2):
            x = block(x, width * 2**stage, 2 if stage and not i else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="resnet18")


def unet(width=4, depth=2, classes=1, shape=(None, None, 1)):
    """U-Net (Ronneberger et al. 2015) with same padding; sides are multiples of 2^depth."""

    def double(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    inputs = keras.Input(shape)
    x, skips = inputs, []
    for level in range(depth):
        x = double(x, width * 2**level)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = double(x, width * 2**depth)
    for level, skip in reversed(list(enumerate(skips))):
        x = layers.Conv2DTranspose(width * 2**level, 2, 2)(x)
        x = double(layers.Concatenate()([skip, x]), width * 2**level)
    return keras.Model(inputs, layers.Conv2D(classes, 1)(x), name="unet")


def of_logits(model):
    """The model, compiled with a loss that says that it returns logits."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=model.run_eagerly)
    return model
