"""Corruptions of images, and the accuracy and calibration of models on them.

Each corruption is a function `(images, severity, *, severity_of=None, seed=0)` in TensorFlow, for
images `(batch, height, width, 1 or 3)`, or one of them, of uint8 or of floating point in [0, 1],
eager, in a `tf.function` or in `tf.data`. Severities 1 to 5 have the constants of CIFAR-10-C or of
ImageNet-C (Hendrycks and Dietterich 2019), as `severity_of` says, or else of those whose images, 32
or 224 pixels wide, are nearer in size: the shorter side decides, at 85. Lengths in pixels are not
scaled. What differs is said in each docstring; uint8 is rounded, where those sets cut off. To their
19 kinds `decolor` and `dirty_lens` are added.

The same seed gives the same result, each image of a batch has noise of its own, and no global seed
is touched. Wrong arguments and images outside [0, 1] are refused, the latter in a graph when it
runs; XLA drops the check. Results are clipped to [0, 1].
"""

from tfuq._arguments import public_dir
from tfuq.corruptions._registry import corrupt, names
from tfuq.corruptions.blur import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
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
from tfuq.corruptions.weather import dirty_lens, fog, frost, snow, spatter

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
    "glass_blur",
    "impulse_noise",
    "jpeg_compression",
    "motion_blur",
    "names",
    "noise_settings",
    "pixelate",
    "saturate",
    "shot_noise",
    "snow",
    "spatter",
    "speckle_noise",
    "zoom_blur",
]
__dir__ = public_dir(__all__)
