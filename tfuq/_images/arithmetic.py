"""Arithmetic on batches of images `(batch, height, width, channels)`: filters, warps, clouds.

What lies beyond a border is named as in `numpy.pad`: `"edge"` repeats the last pixel, `"reflect"`
mirrors the image in it, `"symmetric"` mirrors it in the pixel's outer side.
"""

import numpy as np
import tensorflow as tf

# Luma of ITU-R BT.601, as in PIL, OpenCV and TensorFlow.
LUMA = (0.299, 0.587, 0.114)


def sides(images):
    """Height and width of images whose size the graph has to know."""
    height, width = images.shape[1:3]
    if height is None or width is None:
        raise ValueError(
            "Argument `images` must have a height and width that are known when the graph is "
            f"built. Received: images of shape {tuple(images.shape)}"
        )
    return height, width


def grey(images):
    """Luma `(batch, height, width, 1)`; grey images as they are."""
    if images.shape[-1] == 1:
        return images
    return tf.reduce_sum(images * tf.constant(LUMA), axis=-1, keepdims=True)


def tint(colour, images):
    """`colour` (red, green, blue) as a pixel of these images: its luma if they are grey."""
    colour = tf.reshape(tf.constant(colour, "float32"), (1, 1, 1, 3))
    return colour if images.shape[-1] == 3 else grey(colour)


def inside(index, size, border):
    """Integer positions, however far out, as positions in [0, size)."""
    if border == "edge":
        return tf.clip_by_value(index, 0, size - 1)
    if border == "symmetric":
        index = tf.math.floormod(index, 2 * size)
        return tf.minimum(index, 2 * size - 1 - index)
    period = tf.maximum(2 * (size - 1), 1)
    index = tf.math.floormod(index, period)
    return tf.minimum(index, period - index)


# --- Filters ----------------------------------------------------------------------------------


def padded(images, rows, columns, border):
    """Images with so many rows and columns more on each side."""
    for axis, extra in ((1, rows), (2, columns)):
        if extra:
            size = tf.shape(images)[axis]
            images = tf.gather(
                images, inside(tf.range(-extra, size + extra), size, border), axis=axis
            )
    return images


def filtered(images, kernel, border):
    """Correlation of each channel with `kernel`, an array `(rows, columns)` of odd extents."""
    kernel = np.asarray(kernel, "float32")
    shape = tf.shape(images)
    images = padded(images, kernel.shape[0] // 2, kernel.shape[1] // 2, border)
    kernel = np.repeat(kernel[:, :, None, None], images.shape[-1], axis=2)
    images = tf.nn.depthwise_conv2d(images, kernel, (1, 1, 1, 1), "VALID")
    return tf.reshape(images, shape)  # TensorFlow leaves a batch of none as large as it was padded


def gaussian_weights(sigma, radius):
    """exp(-i^2 / (2 sigma^2)) for i = -radius ... radius, with sum 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def smoothed(images, sigma, radius=None):
    """Images under a Gaussian filter, to 4 sigma by default; edges are repeated."""
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5) if radius is None else radius)
    return filtered(filtered(images, weights[:, None], "edge"), weights[None], "edge")


def disk(radius, sigma):
    """Filter of a lens out of focus: a disk, smoothed by a Gaussian against its steps.

    That has 3 x 3 pixels, 5 x 5 where the radius is above 8.
    """
    soft = 1 if radius <= 8 else 2
    reach = int(radius) + soft
    squares = np.arange(-reach, reach + 1) ** 2
    kernel = (squares[:, None] + squares <= radius**2).astype("float64")
    weights = gaussian_weights(sigma, soft)
    for axis in (0, 1):
        kernel = np.apply_along_axis(np.convolve, axis, kernel, weights, "same")
    return kernel / kernel.sum()


def streaked(images, weights, steps):
    """sum_i weights_i * (images moved by steps_i), with moves rounded to whole pixels.

    Args:
        images: `(batch, height, width, channels)`; edges are repeated beyond the border.
        weights: Array `(count,)`.
        steps: Tensor `(batch, count, 2)` of rows and columns, or `(1, count, 2)` for all images.
    """
    steps = tf.transpose(tf.cast(tf.round(steps), "int32"), (1, 2, 0))[..., None]
    sides = tf.unstack(tf.shape(images)[1:3])
    rows, columns = (
        tf.unstack(inside(tf.range(side) + steps[:, axis], side, "edge"), len(weights))
        for axis, side in enumerate(sides)
    )
    total = tf.zeros_like(images)
    for weight, row, column in zip(weights, rows, columns, strict=True):
        total += float(weight) * _taken(_taken(images, row, 1), column, 2)
    return total


def _taken(images, index, axis):
    """images[index] along an axis, with an index `(batch, size)` or `(1, size)` for all images."""
    if index.shape[0] == 1:
        return tf.gather(images, index[0], axis=axis)
    return tf.gather(images, index, axis=axis, batch_dims=1)


def trailed(images, radius, sigma, angles):
    """Streaks that trail off like half a Gaussian over 2 radius + 1 pixels.

    Args:
        images: `(batch, height, width, channels)`.
        radius: Integer.
        sigma: Standard deviation in pixels.
        angles: Radians `(batch,)`, clockwise from the right, or `(1,)` for all images.
    """
    weights = gaussian_weights(sigma, 2 * radius)[2 * radius :]
    distances = tf.range(2.0 * radius + 1)
    steps = tf.stack([tf.sin(angles), tf.cos(angles)], axis=-1)[:, None] * distances[:, None]
    return streaked(images, weights / weights.sum(), steps)


# --- Shapes -----------------------------------------------------------------------------------


def neighbourhood_max(images):
    """The largest of each pixel and its eight neighbours."""
    found = tf.nn.max_pool2d(images, 3, 1, "SAME")
    return tf.reshape(found, tf.shape(images))  # TensorFlow changes an empty batch


def distances(marked, most):
    """Euclidean distance of each pixel to the nearest marked one; `most` + 1 or more if beyond.

    Args:
        marked: Booleans `(batch, height, width, 1)`.
        most: Up to which distance along an axis is looked at, an integer.
    """
    far = float((most + 1) ** 2)
    squared = tf.where(marked, 0.0, far)
    for axis in (1, 2):
        size = tf.shape(squared)[axis]
        place = tf.range(size)

        def nearer(step, found, start=squared, axis=axis, size=size, place=place):
            moved = place + step - most
            index = tf.clip_by_value(moved, 0, size - 1)  # what is there is nearer anyway
            there = tf.ensure_shape(tf.gather(start, index, axis=axis), start.shape)
            return step + 1, tf.minimum(found, there + tf.cast((step - most) ** 2, "float32"))

        bounds = tf.constant(0), squared
        _, squared = tf.while_loop(lambda step, _: step <= 2 * most, nearer, bounds)
    return tf.sqrt(tf.minimum(squared, far))


def equalized(images, levels):
    """Whole numbers below `levels`, as such from 0 to 255 that are about equally frequent.

    By the histogram of each image, as OpenCV's `equalizeHist`.
    """
    shape = tf.shape(images)
    flat = tf.reshape(tf.cast(images, "int32"), (shape[0], shape[1] * shape[2]))
    cell = flat + levels * tf.range(shape[0])[:, None]
    ones = tf.ones_like(cell, "float32")
    counts = tf.math.unsorted_segment_sum(ones, cell, levels * shape[0])
    counts = tf.reshape(counts, (shape[0], levels))
    running, least = tf.cumsum(counts, axis=-1), _first(counts)
    total = tf.cast(shape[1] * shape[2], "float32")
    table = tf.round(255 * tf.math.divide_no_nan(tf.nn.relu(running - least), total - least))
    return tf.reshape(tf.gather(table, flat, axis=1, batch_dims=1), shape)


def _first(counts):
    """How many have the lowest level that there is, `(batch, 1)`."""
    index = tf.argmax(tf.cast(counts > 0, "int32"), axis=-1)
    return tf.gather(counts, index, axis=1, batch_dims=1)[:, None]


# --- Warps ------------------------------------------------------------------------------------


def magnified(images, factors):
    """The middle of the images, so many times as large, by linear interpolation; one by one."""
    rows, columns = (
        _neighbours(tf.shape(images)[axis], np.asarray(factors, "float32")) for axis in (1, 2)
    )
    for row, column in zip(rows, columns, strict=True):
        larger = images
        for axis, (low, high, share) in ((1, row), (2, column)):
            share = tf.reshape(share, (-1, 1, 1) if axis == 1 else (-1, 1))
            low, high = (tf.gather(larger, index, axis=axis) for index in (low, high))
            larger = low + share * (high - low)
        yield larger


def _neighbours(size, factors):
    """For each factor the pixels beside each position, and how near that is to the second."""
    middle = tf.cast(size - 1, "float32") / 2
    position = middle + (tf.range(tf.cast(size, "float32")) - middle) / factors[:, None]
    below = tf.floor(position)
    low = tf.cast(below, "int32")
    parts = (inside(low, size, "edge"), inside(low + 1, size, "edge"), position - below)
    return list(zip(*(tf.unstack(part, len(factors)) for part in parts), strict=True))


def warped(images, rows, columns, border):
    """images[rows, columns] at real positions `(batch, height, width)`, by bilinear interpolation.

    Positions `(1, height, width)` serve all images.
    """
    batch, height, width, channels = tf.unstack(tf.shape(images))
    flat = tf.reshape(images, (batch, height * width, channels))
    rows, columns = (each + tf.zeros((batch, 1, 1)) for each in (rows, columns))
    top, left = tf.floor(rows), tf.floor(columns)
    down, right = rows - top, columns - left

    def corner(step_down, step_right):
        row = inside(tf.cast(top, "int32") + step_down, height, border)
        column = inside(tf.cast(left, "int32") + step_right, width, border)
        index = tf.reshape(row * width + column, (batch, -1))
        share = (down if step_down else 1 - down) * (right if step_right else 1 - right)
        found = tf.gather(flat, index, axis=1, batch_dims=1)
        return found * tf.reshape(share, (batch, -1, 1))

    total = corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)
    return tf.reshape(total, tf.shape(images))


def box_average(size, new_size):
    """Matrix `(new_size, size)` that shrinks a line of pixels: means of those that a box covers.

    A pixel is covered if its middle is, and counts whole, as with the box filter of PIL.
    """
    scale = size / new_size
    middle = (np.arange(new_size) + 0.5) * scale
    first, end = (np.floor(middle + shift + 0.5) for shift in (-scale / 2, scale / 2))
    pixels = np.arange(size)
    covered = (pixels >= first[:, None]) & (pixels < np.minimum(end, size)[:, None])
    return (covered / covered.sum(axis=1, keepdims=True)).astype("float32")


# --- Textures ---------------------------------------------------------------------------------


def plasma(noise, height, width, decay):
    """Clouds `(batch, height, width, 1)` that reach from 0 to 1: the plasma fractal.

    Diamond-square on a torus (Fournier et al. 1982): each step halves the distance between points,
    setting new ones to the mean of their four neighbours, plus a uniform number that is `decay`^2
    times smaller than in the step before.
    """
    numbers = noise.uniform(4 ** (max(height, width) - 1).bit_length(), low=-1.0)
    field, amplitude, used = tf.zeros_like(numbers)[:, :1, None], 1.0, 0
    while field.shape[1] < max(height, width):
        side = field.shape[1]
        end = used + 3 * side**2
        own = amplitude * tf.reshape(numbers[:, used:end], (-1, 3, side, side))
        right, below, across = (tf.roll(field, s, (1, 2)) for s in ((0, -1), (-1, 0), (-1, -1)))
        middle = (field + right + below + across) / 4 + own[:, 0]
        upper = (field + right + middle + tf.roll(middle, 1, 1)) / 4 + own[:, 1]
        left = (field + below + middle + tf.roll(middle, 1, 2)) / 4 + own[:, 2]
        pairs = [tf.stack([field, upper], axis=-1), tf.stack([left, middle], axis=-1)]
        field = tf.reshape(tf.stack(pairs, axis=2), (-1, 2 * side, 2 * side))
        amplitude, used = amplitude / decay**2, end
    field = field[:, :height, :width, None]
    field -= tf.reduce_min(field, axis=(1, 2, 3), keepdims=True)
    return tf.math.divide_no_nan(field, tf.reduce_max(field, axis=(1, 2, 3), keepdims=True))
