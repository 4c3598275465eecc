"""Inputs of the command line: models, data and rules, all by their paths."""

import pathlib
import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._files.reading import load_keras, open_arrays
from tfuq._images.inputs import InputSpec
from tfuq._predictions.class_names import agreed_names, check_count, checked_names
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.scores import GIVEN, OF_STACKS
from tfuq.cli._folders import found_in, readable
from tfuq.cli._stderr import bars
from tfuq.datasets import from_npz
from tfuq.ensembles import DeepEnsemble
from tfuq.export.loading import FILES, load_export
from tfuq.ood import load_detector
from tfuq.predictive.declarations import declared
from tfuq.predictive.inputs import Files, decoder, read_npz, source_of
from tfuq.predictive.number_rows import NumberRows, rows_of
from tfuq.predictive.rows import as_model, members_of
from tfuq.selective import (
    BetaCalibration,
    ConformalPredictor,
    ConformalRegressor,
    DirichletCalibration,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
    VennAbersCalibration,
)

CALIBRATIONS = {
    "temperature": TemperatureScaling,
    "vector": VectorScaling,
    "isotonic": IsotonicCalibration,
    "beta": BetaCalibration,
    "dirichlet": DirichletCalibration,
    "venn-abers": VennAbersCalibration,
}


# --- Options as keywords ------------------------------------------------------------------------


def interval_options(arguments):
    return {"level": arguments.level, "conformal": load_conformal(arguments.conformal)}


def prediction_options(arguments):
    """The same as keywords of `score_dataset`."""
    output = arguments.output_name
    return {
        "num_samples": arguments.num_samples,
        "seed": arguments.seed,
        "from_logits": None if arguments.from_logits is None else arguments.from_logits == "yes",
        "output": int(output) if output and output.lstrip("-").isdigit() else output,
        "family": arguments.family,
    }


# --- Files ---------------------------------------------------------------------------------------


def existing(name, path):
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"{name} must exist. Received: {path}")
    return path


def load_model(arguments):
    """A Keras model, an ensemble, a SavedModel or a file of another runtime."""
    path, key = existing("MODEL", arguments.model), getattr(arguments, "key", None)
    has_graph = (path / "saved_model.pb").is_file()
    is_export = path.suffix in FILES or has_graph or (path / "metadata.json").is_file()
    if key is not None and not is_export:
        raise ValueError(
            f"--key must be left out for a MODEL that `tfuq export` did not write. Received: {path}"
        )
    if path.is_file() and path.suffix == ".keras":
        return _load_keras(path)
    if (path / "ensemble.json").is_file():
        return DeepEnsemble.load(path)
    if not is_export:
        raise ValueError(
            "MODEL must be a .keras file, the folder of a DeepEnsemble or of a SavedModel, or an "
            f".onnx or .tflite file of `tfuq export`. Received: {path}"
        )
    if path.is_dir() and key is None and not arguments.trust:
        raise ValueError(
            "MODEL is a SavedModel, which is code: it may read and write files when it is loaded "
            "or run. Pass --trust if you know where it comes from, or --key PUBLIC.pem to check "
            f"who signed it. Received: {path}"
        )
    return _load_export(path, key)


def _load_export(path, key):
    """What `tfuq export` wrote, if it is as it was; or any SavedModel, which is trusted."""
    if path.is_file() or (path / "metadata.json").is_file() or key is not None:
        return load_export(path, key)
    try:
        return tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"MODEL must be a SavedModel that can be loaded. Received: {path} ({error})"
        ) from error


def _load_keras(path):
    with warnings.catch_warnings():
        # Nothing is trained here: it does not matter what the optimizer remembers.
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        return load_keras(path, "MODEL")


def load_rule(path):
    return None if path is None else _fitted("--rule", path, [RejectionRule])


def load_conformal(path):
    return (
        None
        if path is None
        else _fitted("--conformal", path, [ConformalRegressor, ConformalPredictor])
    )


def load_ood(path, model):
    """A detector of the model, or None."""
    return None if path is None else load_detector(existing("--ood", path), model)


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


# --- Data ----------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Batches, names of classes if they are known, and pictures of the examples if there are."""

    source: object
    classes: list | None
    pictures: object


def known_names(arguments, model, rule=None):
    """Names of the classes, in their order, that all agree on who know any; else None."""
    given = arguments.class_names and arguments.class_names.split(",")
    return agreed_names(
        {
            "--class-names": checked_names(given, "--class-names"),
            "MODEL": declared(model).class_names,
            "--rule": getattr(rule, "class_names", None),
        }
    )


def load_data(arguments, model, rule=None):
    """`Data` of an .npz file or a folder."""
    path = existing("DATA", arguments.data)
    names = known_names(arguments, model, rule)
    if path.is_dir() and not list(path.glob("*.npz")):
        return _folder(path, arguments, model, names)
    if path.is_dir():
        raise ValueError(f"DATA must be an .npz file or a folder of images. Received: {path}")
    if path.suffix != ".npz":
        raise ValueError(f"DATA must be an .npz file or a folder of images. Received: {path}")
    data, pictures = _npz(path, arguments, model)
    return Data(source_of(data, arguments.batch_size, None, None, bars()), names, pictures)


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
        inputs = _inputs(arguments, model)
        return data.map(lambda x, y: (inputs.prepared(x), y)), None
    x, y = read_npz(path, arguments.split)
    if arguments.scale is not None:
        x = x.astype("float32") * np.float32(arguments.scale)
    is_picture = x.ndim == 4 and x.shape[-1] in (1, 3)
    return (x if y is None else (x, y)), (x if is_picture else None)


def _inputs(arguments, model):
    """The `InputSpec` of images: as declared of the model, or 0 to 255 times --scale."""
    known, scale = declared(model).inputs, arguments.scale
    if scale is None:
        if known is None:
            raise ValueError(
                "--scale must be given for images, as MODEL declares no range: 1 for pixels "
                "from 0 to 255, 0.00392156862745098 for 0 to 1; or declare the range once "
                "(`tfuq.predictive.declare(model, value_range=(0, 1))`). Received: no --scale"
            )
        return known
    given = InputSpec((0.0, 255.0 * scale)).checked()
    if known is None:
        return given
    if not np.allclose(known.value_range, given.value_range):
        raise ValueError(
            f"--scale must be left out: MODEL is declared to take images of {known.value_range}. "
            f"Received: {scale}"
        )
    return known


def _folder(path, arguments, model, names):
    """Images in sub-folders, which are classes, or images alone; `arguments.skipped` the others."""
    found, member = found_in(path), members_of(as_model(model))[0]
    if found.folders is not None:
        names = _checked_folders(found.folders, names, model)
    decode = decoder(member, _inputs(arguments, model))
    found = readable(found, member.input_shape[-1])
    labels = found.labels
    if labels is not None:
        labels = np.array([names.index(folder) for folder in found.folders])[labels]
    arguments.skipped = found.skipped
    source = Files(
        [str(file) for file in found.files], arguments.batch_size, decode, bars(), labels
    )
    return Data(source, names, Pictures(found.files, decode))


def _checked_folders(folders, names, model):
    """Names of all classes, of which `folders` are some; of all if no names are known."""
    if names is not None:
        unknown = [folder for folder in folders if folder not in names]
        if unknown:
            raise ValueError(
                f"DATA must hold sub-folders named after the classes, {', '.join(names)}. "
                f"Received: {', '.join(unknown[:10])}"
            )
        return names
    classes = _classes_of(model)
    if classes is not None and len(folders) != classes:
        raise ValueError(
            f"DATA must hold a sub-folder, which may be empty, for each of the {classes} classes "
            f"of MODEL, unless --class-names tells which is which. Received: {len(folders)}, "
            f"{', '.join(folders[:10])}"
        )
    return folders


def _classes_of(model):
    """How many classes a model tells apart; None where it does not say."""
    shape = getattr(members_of(as_model(model))[0], "output_shape", None)
    width = shape[-1] if isinstance(shape, tuple) and len(shape) == 2 else None
    return 2 if width == 1 else width


class Pictures:
    """Pictures that are read when they are looked at."""

    def __init__(self, names, decode):
        self.names, self._decode = names, decode

    def __len__(self):
        return len(self.names)

    def __getitem__(self, number):
        return np.asarray(self._decode(str(self.names[number])))


# --- Predictions ---------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """What a regression says of labelled data: columns by name, and the whole, if it is there."""

    told: dict
    found: object  # `RegressionUncertainty`; None of a SavedModel
    labels: np.ndarray
    strange: np.ndarray | None = None  # scores of a detector


def _numbers(scorer, data, arguments):
    told, parts, labels, strange = [], [], [], []
    for batch in _labelled(data, arguments):
        strange.append(scorer.strange(batch.inputs))
        if scorer.served is None:
            parts.append(scorer.uncertainty(batch.inputs))
        else:
            told.append(scorer.told(batch.inputs))
        labels.append(scorer.labels_of(batch.labels))
    labels, found = np.concatenate(labels).astype("float64"), None
    strange = None if scorer.ood is None else np.concatenate(strange)
    if parts:
        params = np.concatenate([part.params for part in parts], axis=1)
        found = RegressionUncertainty(params, parts[0].family, parts[0].note)
        told = [scorer.columns_of(found, strange)]
    columns = {name: np.concatenate([part[name] for part in told]) for name in told[0]}
    if labels.size != columns["mean"].size:
        raise ValueError(
            f"DATA must have labels of the shape of the numbers, {columns['mean'].shape}. "
            f"Received: {labels.shape}"
        )
    return Numbers(columns, found, labels.reshape(columns["mean"].shape), strange)


def scores_for(rule, found):
    """The scores of what was found, as an argument of a rule of such."""
    return {"score": found.strange} if rule.score == GIVEN else {}


def _labelled(data, arguments):
    for _, batch in data.source.after(0):
        if batch.labels is None:
            raise ValueError(
                "DATA must have labels: `y` in an .npz file, or a sub-folder for each class. "
                f"Received: {arguments.data}"
            )
        yield batch


class Predictions(NamedTuple):
    """Probabilities `(n, classes)`, or a stack `(samples, n, classes)`, and labels."""

    probs: np.ndarray
    labels: np.ndarray
    is_stack: bool
    strange: np.ndarray | None = None  # scores of a detector

    @property
    def mean(self):
        return self.probs.mean(0) if self.is_stack else self.probs


def predict(model, data, arguments, rule=None, score=None, *, ood=None, **intervals):
    """`Predictions`, or `Numbers`, for labelled data.

    Predictions are a stack only where the score of the rule needs one. `intervals` are the options
    `level` and `conformal` of a regression; `ood` is a detector, whose scores come beside.
    """
    needs = score if rule is None else rule.score
    scorer = rows_of(
        as_model(model),
        data.source.first.inputs,
        rule=rule,
        ood=ood,
        columns=None,
        multi_label=None,
        class_names=data.classes,
        is_exclusive=True,
        **intervals,
        **prediction_options(arguments),
    )
    if isinstance(scorer, NumberRows):
        return _numbers(scorer, data, arguments)
    keeps = scorer.has_stack and needs in OF_STACKS
    probs, labels, strange = [], [], []
    for batch in _labelled(data, arguments):
        scorer.check_inputs(batch.inputs)
        stack = scorer.predict(batch.inputs)[0]
        check_count(data.classes, stack.shape[-1])
        probs.append(stack if keeps else stack.mean(0))
        labels.append(scorer.labels_of(batch.labels))
        strange.append(scorer.strange(batch.inputs))
    probs, labels = np.concatenate(probs, axis=1 if keeps else 0), np.concatenate(labels)
    return Predictions(probs, labels, keeps, None if ood is None else np.concatenate(strange))
