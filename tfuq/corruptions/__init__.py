"""Corruptions of images, and the accuracy and calibration of models on them.

Each corruption is a function `(images, severity, *, seed=0)` in TensorFlow, for batches
`(batch, height, width, 1 or 3)` of uint8 or of floating point in [0, 1], eager, in a `tf.function`
or in `tf.data`. Severities 1 to 5 have the constants of CIFAR-10-C (Hendrycks and Dietterich 2019),
with what differs said in each docstring; uint8 is rounded, where CIFAR-10-C cuts off. Of its 19
kinds, `glass_blur` and `spatter` are missing; `decolor` and `dirty_lens` are added. The same seed
gives the same result, each image of a batch has noise of its own, and no global seed is touched. In
eager mode a wrong argument and images outside [0, 1] are refused; a graph cannot look at values.
Results are clipped to [0, 1].
"""

from tfuq._arguments import public_dir
from tfuq.corruptions._registry import corrupt, names
from tfuq.corruptions.blur import defocus_blur, gaussian_blur, motion_blur, zoom_blur
from tfuq.corruptions.digital import (
    brightness,
    contrast,
    decolor,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from tfuq.corruptions.evaluation import CorruptionReport, corruption_report
from tfuq.corruptions.layer import CorruptionLayer
from tfuq.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from tfuq.corruptions.noisy_training import NoiseSettings, noise_settings
from tfuq.corruptions.weather import dirty_lens, fog, frost, snow

__all__ = [
    "CorruptionLayer",
    "CorruptionReport",
    "NoiseSettings",
    "brightness",
    "contrast",
    "corrupt",
    "corruption_report",
    "decolor",
    "defocus_blur",
    "dirty_lens",
    "elastic_transform",
    "fog",
    "frost",
    "gaussian_blur",
    "gaussian_noise",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "names",
    "noise_settings",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "speckle_noise",
    "zoom_blur",
]
__dir__ = public_dir(__all__)
