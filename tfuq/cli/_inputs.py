"""What the command line is given: models, data, rules, all by their paths."""

import pathlib
import sys
import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._files.reading import load_keras, open_arrays
from tfuq.datasets import from_npz
from tfuq.ensembles import DeepEnsemble
from tfuq.predictive.inputs import IMAGES, Files, decoder, read_npz, source_of
from tfuq.predictive.rows import Scorer, as_model, members_of
from tfuq.selective import (
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
)

CALIBRATIONS = {
    "temperature": TemperatureScaling,
    "vector": VectorScaling,
    "isotonic": IsotonicCalibration,
}
MODEL_HELP = """\
MODEL is a file saved by Keras (model.keras, loaded in safe mode), a folder that
tfuq.ensembles.DeepEnsemble.save wrote, or the folder of a SavedModel, such as of
`tfuq export`."""
DATA_HELP = """\
DATA is an .npz file with inputs `x` and labels `y` (or x_test, y_test; images, labels;
test_images, test_labels; JPEG files in bytes, offsets), or a folder of images (png, jpg, bmp,
gif), in which sub-folders are classes, numbered in the order of their names. Images are
resized to what the model takes and have pixels from 0 to 255; `--scale 0.00392156862745098`
makes that 0 to 1."""


# --- Arguments that several commands share -------------------------------------------------------


def add_model(parser):
    parser.add_argument("model", metavar="MODEL", help="model.keras, or a folder")


def add_data(parser):
    """DATA and how it is read."""
    parser.add_argument("data", metavar="DATA", help="an .npz file, or a folder of images")
    group = parser.add_argument_group("how data are read")
    group.add_argument("--split", help="part of an .npz file: test reads x_test, y_test")
    group.add_argument("--scale", type=float, default=1.0, help="inputs are multiplied by this")
    group.add_argument("--batch-size", type=int, default=32, help="examples at a time (32)")


def add_prediction(parser):
    """How a model predicts."""
    group = parser.add_argument_group("how the model predicts")
    group.add_argument(
        "--num-samples", type=int, help="networks that are drawn, if it has random layers (30)"
    )
    group.add_argument("--seed", type=int, default=0, help="from which they are drawn (0)")
    group.add_argument(
        "--from-logits",
        choices=("yes", "no"),
        help="whether it gives logits; by default what its loss says, or its predictions show",
    )
    group.add_argument("--output-name", help="which output, if it has several: an index or name")


def prediction_options(arguments):
    """The same as keywords of `score_dataset`."""
    output = arguments.output_name
    return {
        "num_samples": arguments.num_samples,
        "seed": arguments.seed,
        "from_logits": None if arguments.from_logits is None else arguments.from_logits == "yes",
        "output": int(output) if output and output.lstrip("-").isdigit() else output,
    }


# --- Files ---------------------------------------------------------------------------------------


def existing(name, path):
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"{name} must exist. Received: {path}")
    return path


def load_model(path):
    """A Keras model, an ensemble or a SavedModel."""
    path = existing("MODEL", path)
    if path.is_file() and path.suffix == ".keras":
        return _load_keras(path)
    if (path / "ensemble.json").is_file():
        return DeepEnsemble.load(path)
    if (path / "saved_model.pb").is_file():
        return tf.saved_model.load(str(path))
    raise ValueError(
        "MODEL must be a .keras file, the folder of a DeepEnsemble or that of a SavedModel. "
        f"Received: {path}"
    )


def _load_keras(path):
    with warnings.catch_warnings():
        # Nothing is trained here: it does not matter what the optimizer remembers.
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        return load_keras(path, "MODEL")


def load_rule(path):
    return None if path is None else _fitted("--rule", path, [RejectionRule])


def load_calibration(path):
    return None if path is None else _fitted("--calibration", path, CALIBRATIONS.values())


def _fitted(option, path, kinds):
    """What one of `kinds` has saved."""
    existing(option, path)
    found = []
    for kind in kinds:
        try:
            return kind.load(path)
        except ValueError as error:
            found.append(error)
    names = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"{option} must be a file of {names}. Received: {path} ({found[0]})")


def progress(text):
    print(text, file=sys.stderr, flush=True)


# --- Data ----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Batches, names of classes if folders give them, and pictures of the examples if there are."""

    source: object
    classes: list | None
    pictures: object


def load_data(arguments, model):
    """`Data` of an .npz file or a folder."""
    path = existing("DATA", arguments.data)
    if path.is_dir() and not list(path.glob("*.npz")):
        return _folder(path, arguments, model)
    if path.is_dir():
        raise ValueError(f"DATA must be an .npz file or a folder of images. Received: {path}")
    if path.suffix != ".npz":
        raise ValueError(f"DATA must be an .npz file or a folder of images. Received: {path}")
    data, pictures = _npz(path, arguments, model)
    return Data(source_of(data, arguments.batch_size, None, None, 1), None, pictures)


def _npz(path, arguments, model):
    try:
        with open_arrays(path) as arrays:
            is_jpeg = any("offsets" in name for name in arrays.files)
    except Exception as error:
        raise ValueError(
            f"DATA must be an .npz file of arrays. Received: {path} ({error})"
        ) from error
    if is_jpeg:
        shape = getattr(members_of(as_model(model))[0], "input_shape", None)
        size = shape[1:3] if shape and len(shape) == 4 and None not in shape[1:3] else None
        data = from_npz(path, arguments.split, batch_size=arguments.batch_size, image_size=size)
        return data.map(lambda x, y: (tf.cast(x, "float32") * arguments.scale, y)), None
    x, y = read_npz(path, arguments.split)
    if arguments.scale != 1:
        x = x.astype("float32") * np.float32(arguments.scale)
    is_picture = x.ndim == 4 and x.shape[-1] in (1, 3)
    return (x if y is None else (x, y)), (x if is_picture else None)


def _folder(path, arguments, model):
    """Images in sub-folders, which are classes, or images alone."""
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    classes = [folder.name for folder in folders if images_in(folder)]
    names, labels = images_in(path), None
    if classes:
        if names:
            raise ValueError(
                "DATA must be a folder of images, or one of sub-folders of images. Received: "
                f"{path}, with images beside the folders {classes[:5]}"
            )
        parts = [images_in(path / name) for name in classes]
        labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        names = [name for part in parts for name in part]
    if not names:
        raise ValueError(f"DATA must hold images ({', '.join(IMAGES)}). Received: {path}")
    decode = decoder(members_of(as_model(model))[0], arguments.scale)
    source = Files([str(name) for name in names], arguments.batch_size, decode, 1, labels)
    return Data(source, classes or None, Pictures(names, decode))


def images_in(folder):
    """Images of a folder, not of those in it, in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)


class Pictures:
    """Pictures that are read when they are looked at."""

    def __init__(self, names, decode):
        self.names, self._decode = names, decode

    def __len__(self):
        return len(self.names)

    def __getitem__(self, number):
        return np.asarray(self._decode(str(self.names[number])))


# --- Predictions ---------------------------------------------------------------------------------


class Predictions(NamedTuple):
    """Probabilities `(n, classes)`, or a stack `(samples, n, classes)`, and labels."""

    probs: np.ndarray
    labels: np.ndarray
    is_stack: bool

    @property
    def mean(self):
        return self.probs.mean(0) if self.is_stack else self.probs


def predict(model, data, arguments, rule=None, score=None):
    """`Predictions` for labelled data; a stack only where the score of the rule needs one."""
    needs = score if rule is None else rule.score
    scorer = Scorer(
        as_model(model),
        data.source.first.inputs,
        rule=rule,
        ood=None,
        columns=None,
        multi_label=False,
        **prediction_options(arguments),
    )
    keeps = scorer.has_stack and needs in (
        "expected_entropy",
        "mutual_information",
        "variation_ratio",
    )
    probs, labels = [], []
    for _, batch in data.source.after(0):
        if batch.labels is None:
            raise ValueError(
                "DATA must have labels: `y` in an .npz file, or a sub-folder for each class. "
                f"Received: {arguments.data}"
            )
        stack = scorer.predict(batch.inputs)[0]
        probs.append(stack if keeps else stack.mean(0))
        labels.append(np.asarray(batch.labels))
    return Predictions(np.concatenate(probs, axis=1 if keeps else 0), np.concatenate(labels), keeps)
