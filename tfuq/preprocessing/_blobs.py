"""Compact blobs in the middle of masks: what a picture was taken of."""

import tensorflow as tf

from tfuq._images.arithmetic import neighbourhood_max

WINDOW = 8  # times into the shorter side: a line of half that width fills no window by half


def without_middle(masked):
    """Masks `(batch, height, width, 1)` without what is joined to a compact blob in the middle.

    A blob is compact where a square window, an eighth of the shorter side, around one of its pixels
    is masked by more than half, which no line does; and it is in the middle if that pixel lies in
    the middle half of the image, along height and along width.
    """
    height, width = tf.shape(masked)[1], tf.shape(masked)[2]
    half = tf.maximum(tf.minimum(height, width) // (2 * WINDOW), 1)
    is_middle = _middle(height)[:, None, None] & _middle(width)[:, None]
    seeds = masked & (window_share(masked, half) > 0.5) & is_middle
    return masked & ~joined(seeds, masked)


def _middle(size):
    place = tf.range(size)
    return (place >= size // 4) & (place < size - size // 4)


def window_share(flags, half):
    """The share of each pixel's window, of 2 half + 1 pixels each way, that is True."""
    total, area = tf.cast(flags, "float32"), 1.0
    for axis in (1, 2):
        size = tf.shape(flags)[axis]
        place = tf.range(size)
        low, end = tf.maximum(place - half, 0), tf.minimum(place + half + 1, size)
        before = [[0, 0]] * axis + [[1, 0]] + [[0, 0]] * (3 - axis)
        running = tf.pad(tf.cumsum(total, axis), before)
        total = tf.gather(running, end, axis=axis) - tf.gather(running, low, axis=axis)
        area *= tf.reshape(tf.cast(end - low, "float32"), (-1, 1, 1) if axis == 1 else (-1, 1))
    return tf.ensure_shape(total / area, flags.shape)


def joined(seeds, flags):
    """What of `flags` a way through them, along sides or corners, joins to `seeds`."""
    flags, seeds = tf.cast(flags, "float32"), tf.cast(seeds, "float32")

    def grown(found, _):
        wider = tf.ensure_shape(tf.minimum(neighbourhood_max(found), flags), flags.shape)
        return wider, tf.reduce_any(wider > found)

    found, _ = tf.while_loop(lambda _, changed: changed, grown, (seeds, tf.constant(True)))
    return found > 0
