"""Public sets of images, by tensorflow-datasets (extra `datasets`), in one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import PathLike, check_choice, shown
from tfuq.datasets._pipelines import Form

SHUFFLED = 10_000  # examples among which `shuffle=True` mixes, beside tensorflow-datasets' files
# Sets of corrupted images, and what names their configurations.
CORRUPTED = {
    "cifar10_corrupted": ("corruption", "severity"),
    "imagenet2012_corrupted": ("corruption", "severity"),
    "mnist_corrupted": ("corruption",),
}
HUMAN = ("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
# Not there, and asked for: what to read instead.
MEDMNIST = (
    "It is one of MedMNIST's: `tfuq.datasets.from_npz` reads the .npz file that the package "
    "medmnist downloads."
)
FOLDERS = (
    "Download it from its makers; `keras.utils.image_dataset_from_directory` reads folders of "
    "images, `tfuq.datasets.from_npz` arrays."
)
ELSEWHERE = {
    **dict.fromkeys(("bloodmnist", "breastmnist", "chestmnist", "dermamnist"), MEDMNIST),
    **dict.fromkeys(("octmnist", "organamnist", "pathmnist", "retinamnist"), MEDMNIST),
    **dict.fromkeys(("aptos", "ham10000", "idrid", "isic", "lidc", "notmnist"), FOLDERS),
    **dict.fromkeys(("tinyimagenet", "webvision", "clothing1m"), FOLDERS),
}


class PublicSet(NamedTuple):
    """How examples of tensorflow-datasets become pairs `(image, label)`.

    Example:

    >>> from tfuq.datasets import describe
    >>> found = describe("cifar10_h")
    >>> print(found.label, found.num_classes, found.splits)
    soft_label 10 ('train', 'test')

    See also: `tfuq.datasets.load`, `tfuq.datasets.describe`.
    """

    builder: str
    """Its name in tensorflow-datasets."""
    label: str | None
    """The feature that is the label; None where the label is the number of the configuration."""
    num_classes: int
    """Number of classes of that label."""
    splits: tuple
    """Names of its parts; `"train[:10%]"` and the like work too."""
    labels: tuple = ()
    """Other features that `load(label=...)` takes."""
    note: str = ""
    """What else to know."""


_TRAIN_TEST = ("train", "test")
_NO_NOISE = "Human labels are given for the training part alone: for `test`, `label='label'`. "
_MANUAL = "Files to be downloaded by hand, as tensorflow-datasets says when it misses them."
_SETS = {
    "cifar10": PublicSet("cifar10", "label", 10, _TRAIN_TEST),
    "cifar100": PublicSet("cifar100", "label", 100, _TRAIN_TEST, ("coarse_label",)),
    "cifar10_1": PublicSet(
        "cifar10_1", "label", 10, ("test",), note="New test images, `cifar10_1/v4` or `/v6`."
    ),
    "cifar10_c": PublicSet(
        "cifar10_corrupted", "label", 10, ("test",), note="Takes `corruption` and `severity`."
    ),
    "cifar10_h": PublicSet(
        "cifar10_h",
        "soft_label",
        10,
        _TRAIN_TEST,
        ("label",),
        "Shares of about 51 human votes for each test image; one-hot for the training images.",
    ),
    "cifar10_n": PublicSet(
        "cifar10_n", "aggre_label", 10, _TRAIN_TEST, ("label", *HUMAN[1:]), _NO_NOISE + _MANUAL
    ),
    "cifar100_n": PublicSet(
        "cifar100_n",
        "noise_label",
        100,
        _TRAIN_TEST,
        ("label", "coarse_label"),
        _NO_NOISE + _MANUAL,
    ),
    "diabetic_retinopathy_detection": PublicSet(
        "diabetic_retinopathy_detection",
        "label",
        5,
        ("train", "validation", "test", "sample"),
        note="EyePACS; `/250K`, `/1M`, `/btgraham-300` are smaller. " + _MANUAL,
    ),
    "dtd": PublicSet("dtd", "label", 47, ("train", "validation", "test"), note="Textures."),
    "fashion_mnist": PublicSet("fashion_mnist", "label", 10, _TRAIN_TEST),
    "imagenet_c": PublicSet(
        "imagenet2012_corrupted",
        "label",
        1000,
        ("validation",),
        note="Takes `corruption` and `severity`. " + _MANUAL,
    ),
    "kmnist": PublicSet("kmnist", "label", 10, _TRAIN_TEST),
    "lsun": PublicSet(
        "lsun",
        None,
        30,
        ("train", "validation"),
        note="One category at a time, `lsun/bedroom`; the label is its number. Objects, such as "
        "`lsun/cat`, have no validation part. Reading LSUN's files needs tensorflow-io.",
    ),
    "mnist": PublicSet("mnist", "label", 10, _TRAIN_TEST),
    "mnist_c": PublicSet("mnist_corrupted", "label", 10, _TRAIN_TEST, note="Takes `corruption`."),
    "omniglot": PublicSet(
        "omniglot", "label", 1623, ("train", "test", "small1", "small2"), ("alphabet",)
    ),
    "oxford_iiit_pet": PublicSet(
        "oxford_iiit_pet",
        "label",
        37,
        _TRAIN_TEST,
        ("species", "segmentation_mask"),
        "Masks hold 1 (pet), 2 (background) and 3 (border).",
    ),
    "patch_camelyon": PublicSet("patch_camelyon", "label", 2, ("train", "validation", "test")),
    "pneumonia_mnist": PublicSet(
        "pneumonia_mnist", "label", 2, ("train", "validation", "test"), note="Of MedMNIST."
    ),
    "stl10": PublicSet("stl10", "label", 10, _TRAIN_TEST),
    "svhn": PublicSet("svhn_cropped", "label", 10, ("train", "test", "extra")),
}


def names() -> list[str]:
    """Names of the sets whose labels `load` knows, sorted; `describe` tells more of each.

    Returns:
        List of strings.

    Example:

    >>> from tfuq.datasets import names
    >>> print([name for name in names() if name.startswith("cifar10_")])
    ['cifar10_1', 'cifar10_c', 'cifar10_h', 'cifar10_n']

    See also: `tfuq.datasets.describe`, `tfuq.datasets.load`.
    """
    return sorted(_SETS)


def describe(name: str) -> PublicSet:
    """Describes a set before it is loaded.

    Args:
        name: One of `names()`.

    Returns:
        `PublicSet`.

    Raises:
        ValueError: If there is no such name.

    Example:

    >>> from tfuq.datasets import describe
    >>> print(describe("lsun").splits)
    ('train', 'validation')

    See also: `tfuq.datasets.names`, `tfuq.datasets.load`.
    """
    check_choice("name", name, names())
    return _SETS[name]


def load(
    name: str,
    split: str | Sequence[str] | None = "train",
    *,
    batch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_to_aspect_ratio: bool = False,
    label: str | None = None,
    corruption: str | None = None,
    severity: int | None = None,
    shuffle: bool | int = False,
    seed: int = 0,
    cache: bool = False,
    data_dir: PathLike | None = None,
    download: bool = True,
) -> Any:
    """A public set of images as a `tf.data.Dataset` of pairs `(image, label)`.

    Any name of `names()`, or any other of tensorflow-datasets whose examples are pairs of an image
    and a label; a configuration stands behind a stroke, as in `"lsun/bedroom"`. Nothing is
    downloaded before this call; check each set's terms of use.

    Args:
        name: Name of the set.
        split: Name of the part, `"train[:10%]"` and the like, or a list of these for a list of
            datasets.
        batch_size: Examples in a batch; None for single examples.
        image_size: `(height, width)`, or one number for both, that images are resized to
            (bilinear, antialiased); masks too (nearest).
        crop_to_aspect_ratio: Whether resizing cuts off what is too long, instead of squeezing it.
        label: The feature that is the label, such as `"coarse_label"`. By default what
            `describe(name).label` says.
        corruption: Kind of corruption of `"cifar10_c"` or `"mnist_c"`, such as `"fog"`.
        severity: Its severity from 1 to 5, for `"cifar10_c"`.
        shuffle: Whether each epoch has an order of its own: files are shuffled, and examples among
            10,000; a number says among how many.
        seed: Integer that determines the orders.
        cache: Whether to keep what is decoded and resized in memory, from the first epoch on.
        data_dir: Folder of the files. By default that of tensorflow-datasets.
        download: Whether to fetch what is not there yet.

    Returns:
        `tf.data.Dataset` of `(image, label)`: images `(height, width, channels)`, uint8; labels
        int64, of `"cifar10_h"` probabilities `(10,)`, float32.

    Raises:
        ImportError: If tensorflow-datasets is missing.
        ValueError: If there is no such set, split, label or corruption, images of different sizes
            are to be batched, or an argument is out of its range.

    Example:

    ```python
    from tfuq.datasets import load


    def pets_and_corrupted():  # call this where the data can be downloaded
        train = load("oxford_iiit_pet", "train", batch_size=32, image_size=224, shuffle=True)
        foggy = load("cifar10_c", "test", corruption="fog", severity=3, batch_size=100)
        return train, foggy
    ```

    References:
        - https://www.tensorflow.org/datasets

    See also: `tfuq.datasets.names`, `tfuq.datasets.from_npz`.
    """
    form = Form(batch_size, image_size, crop_to_aspect_ratio, shuffle, seed, cache)
    form.check()
    several = isinstance(split, (list, tuple))
    parts = list(split) if several else [split]
    if None in parts or not parts:
        raise ValueError(
            "Argument `split` must be the name of a part, or a list. "
            f"Received: split={shown(split)}"
        )
    builder = _builder(name, corruption, severity, data_dir)
    features = _features(builder, label)
    for part in parts:
        _check_human(builder.name, features[1], part)
    if download:
        builder.download_and_prepare()
    found = [_dataset(builder, part, features, form) for part in parts]
    return found if several else found[0]


def _builder(name, corruption, severity, data_dir):
    """The builder of tensorflow-datasets, which knows features and files."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f'{error}. tfuq.datasets.load needs tensorflow-datasets: pip install "tfuq[datasets]"'
        ) from error
    name, _, config = name.partition("/")
    builder = _SETS[name].builder if name in _SETS else name
    try:
        configs = [each.name for each in tfds.builder_cls(builder).BUILDER_CONFIGS]
    except tfds.core.DatasetNotFoundError as error:
        raise _not_found(name, tfds.__version__) from error
    if corruption is not None or severity is not None or (builder in CORRUPTED and not config):
        config = _corrupted(name, builder, config, configs, corruption, severity)
    if config or builder == "lsun":
        check_choice("name", f"{name}/{config}", [f"{name}/{each}" for each in configs] or [name])
    return tfds.builder(builder, config=config or None, data_dir=data_dir)


def _corrupted(name, builder, config, configs, corruption, severity):
    """The configuration that corruption and severity name."""
    takes = () if config else CORRUPTED.get(builder, ())
    given = {"corruption": corruption, "severity": severity}
    kinds = {each.rsplit("_", 1)[0] if "severity" in takes else each for each in configs}
    choices = {"corruption": sorted(kinds), "severity": range(1, 6)}
    for argument, value in given.items():
        if argument in takes:
            check_choice(argument, value, choices[argument])
        elif value is not None:
            raise ValueError(
                f"Argument `{argument}` must be None, except for sets of corrupted images whose "
                f"name does not say it. Received: {argument}={shown(value)} for {name!r}"
            )
    return "_".join(str(given[argument]) for argument in takes)


def _not_found(name, version):
    hint = ELSEWHERE.get(name.lower().replace("_", "").replace("-", ""), "")
    return ValueError(
        f"Argument `name` must be one of {names()}, or another name of tensorflow-datasets. "
        f"Received: name={name!r}, which tensorflow-datasets {version} does not have. {hint}"
    )


def _features(builder, label):
    """Names of the features that are image and label; `(image, None)` where none is the label."""
    known = next((each for each in _SETS.values() if each.builder == builder.name), None)
    features = builder.info.features
    image, default = ("image", known.label) if known else _supervised(builder)
    if label is None:
        return image, default
    choices = [key for key in features if key != image and _is_label(features[key])]
    check_choice("label", label, choices)
    return image, label


def _supervised(builder):
    """Image and label as the makers of a set pair them."""
    features, pair = builder.info.features, builder.info.supervised_keys or ()
    found = [features[key] if isinstance(key, str) else None for key in pair]
    if len(pair) != 2 or None in found or not _is_image(found[0]) or not _is_label(found[1]):
        raise ValueError(
            "Argument `name` must be a set of pairs of an image and a label. "
            f"Received: name={builder.name!r}, whose features are {features}"
        )
    return pair


def _is_label(feature):
    """Whether a feature holds numbers, as many in each example, or a mask."""
    return _kind(feature) in "fiub" and (None not in feature.shape or _is_image(feature))


def _is_image(feature):
    return _kind(feature) in "fiu" and len(feature.shape) == 3


def _kind(feature):
    dtype = feature.np_dtype  # a dict, if the feature is one
    return np.dtype(dtype).kind if isinstance(dtype, (type, np.dtype)) else "O"


def _check_human(builder, label, split):
    human = {"cifar10_n": HUMAN, "cifar100_n": ("noise_label",)}.get(builder, ())
    if label in human and "test" in str(split):
        raise ValueError(
            "Argument `label` must be 'label' for the test images of "
            f"{builder}, which have no human labels. Received: label={shown(label)}"
        )


def _dataset(builder, split, features, form):
    import tensorflow_datasets as tfds

    image, label = features
    number = None
    if label is None:
        configs = [each.name for each in builder.BUILDER_CONFIGS]
        number = tf.constant(configs.index(builder.builder_config.name), "int64")

    def pair(example):
        return example[image], number if label is None else example[label]

    dataset = builder.as_dataset(
        split=split,
        shuffle_files=bool(form.shuffle),
        read_config=tfds.ReadConfig(shuffle_seed=form.seed),
        # What is not asked for is not decoded.
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(filter(None, features), True)),
    )
    return form.finished(dataset.map(pair, num_parallel_calls=tf.data.AUTOTUNE), SHUFFLED)
