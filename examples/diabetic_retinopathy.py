"""Grading diabetic retinopathy, and refusing to grade: a network whose last layer is Bayesian.

    python examples/diabetic_retinopathy.py --data-dir DIR    # IDRiD, 516 images
    python examples/diabetic_retinopathy.py --tfds            # EyePACS, by tensorflow-datasets
    python examples/diabetic_retinopathy.py --quick           # under half a minute: does it run?

The steps of Ramalingam et al., "Enhancing Safety in Diabetic Retinopathy Detection": local
contrast (CLAHE), grades balanced by synthetic images (SMOTE), a network with a `Dense` head, that
head replaced by `VBLLDense`, layers unfrozen from the top, 30 samples of the weights, and refusal
of what the network is unsure about. Trained from scratch, a small network on small images: it
shows the method, not the paper's figures.

DIR, or the environment variable TFUQ_DATA, holds idrid_grading_128_jpeg.npz: `train_bytes` and
`test_bytes`, the JPEG files end to end (uint8); `train_offsets` and `test_offsets`, where each
begins and the last one ends; `y_train` and `y_test`, the grades from 0 to 4. IDRiD (Porwal et al.
2018) has 413 + 103 images. It needs the extra `examples`, and `datasets` for the second line.
"""

import argparse
import collections
import io
import math
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfuq
from tfuq.datasets import smote

try:
    from matplotlib.figure import Figure
    from PIL import Image
    from skimage import color, exposure
    from sklearn.metrics import ConfusionMatrixDisplay
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise ImportError(f'{error}. This example needs: pip install "tfuq[examples]"') from error

FILE, TFDS_NAME = "idrid_grading_128_jpeg.npz", "diabetic_retinopathy_detection/250K"
GRADES = ("none", "mild", "moderate", "severe", "proliferative")
SHARES = (0.33, 0.05, 0.33, 0.18, 0.11)  # of the synthetic discs; IDRiD's
TEST, VALIDATION, BALANCE = 0.15, 0.15, 0.5
SIZE, CLIP_LIMIT, BATCH_SIZE = 128, 0.01, 32
WIDTHS = (16, 32, 64, 64)
EPOCHS, RATE, FINE_RATE = 40, 1e-3, 3e-4
STAGES, STAGE_EPOCHS = 4, 5
QUICK_IMAGES, QUICK_SIZE, TFDS_IMAGES = 100, 48, 2000
THRESHOLD, THRESHOLDS = 0.7, (0.5, 0.6, 0.7, 0.8, 0.9)
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25)
PAPER = {  # its table I, at the threshold 0.7
    "accuracy on accepted": 0.8993,
    "coverage": 0.7450,
    "rejection rate": 0.2550,
    "ECE": 0.0217,
}

Data = collections.namedtuple("Data", ["x_train", "y_train", "x_val", "y_val", "x_test", "y_test"])


# --- Images -----------------------------------------------------------------------------------


def decode_jpegs(data, offsets):
    """The JPEG files of `data`, which stand end to end, as uint8 `(n, height, width, 3)`."""
    files = np.split(data, offsets[1:-1])
    return np.stack([Image.open(io.BytesIO(file.tobytes())).convert("RGB") for file in files])


def load_idrid(folder, limit=None, seed=0):
    """The official parts `(x, y)` for training and for testing, at most `limit` images of each."""
    path = pathlib.Path(folder or "") / FILE
    if not folder or not path.is_file():
        where = f"in {folder}" if folder else "(neither --data-dir nor TFUQ_DATA is set)"
        raise FileNotFoundError(
            f"{FILE} is missing {where}. Name its folder with --data-dir or TFUQ_DATA, or use "
            "--tfds; --quick alone needs no data."
        )
    with np.load(path, allow_pickle=False) as file:
        parts = [
            (decode_jpegs(file[f"{name}_bytes"], file[f"{name}_offsets"]), file[f"y_{name}"])
            for name in ("train", "test")
        ]
    return [draw_some(x, y.astype("int64"), limit, seed) for x, y in parts]


def draw_some(x, y, limit, seed=0):
    """At most `limit` of the images, with the grades in proportion; all if there are no more.

    Where fewer images than grades would be left over, so many fewer are taken: scikit-learn divides
    no part in proportion that has less than one image of each grade.
    """
    if limit is None or limit >= len(y):
        return x, y
    count = min(limit, len(y) - len(np.unique(y)))
    x, _, y, _ = train_test_split(x, y, train_size=count, stratify=y, random_state=seed)
    return x, y


def crop_to_disc(image, level=16):
    """The image without the dark margin around the disc; a dark image stays as it is."""
    bright = tf.reduce_max(image, axis=-1) > level
    where = tf.where(bright | ~tf.reduce_any(bright))
    first, last = tf.reduce_min(where, axis=0), tf.reduce_max(where, axis=0)
    return image[first[0] : last[0] + 1, first[1] : last[1] + 1]


def load_tfds(folder, limit=None):
    """The same parts of EyePACS (Kaggle 2015), of which `limit` images each are drawn."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            '--tfds needs tensorflow-datasets: pip install "tfuq[datasets]"'
        ) from error

    def small(example):
        image = tf.image.resize_with_pad(crop_to_disc(example["image"]), SIZE, SIZE, antialias=True)
        return tf.cast(tf.round(image), "uint8"), example["label"]

    splits = [f"{name}[:{limit or TFDS_IMAGES}]" for name in ("train", "test")]
    found = tfds.load(TFDS_NAME, split=splits, data_dir=folder)
    parts = [part.map(small).batch(len(part)).get_single_element() for part in found]
    return [(x.numpy(), y.numpy()) for x, y in parts]


def make_disc(grade, size, rng):
    """A SYNTHETIC image: a bright spot on an orange disc, and dark spots that come with grade."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.array([0.8, 0.4, 0.15]) * (1 - 0.4 * np.hypot(x, y))[..., None]
    image[np.hypot(x - rng.choice([-0.5, 0.5]), y) < 0.15] += 0.3
    for spot_x, spot_y in rng.uniform(-0.6, 0.6, (4 * grade, 2)):
        image[np.hypot(x - spot_x, y - spot_y) < 0.08] *= 0.3
    image += rng.normal(0, 0.03, image.shape)
    image[np.hypot(x, y) > 0.95] = 0
    return np.round(255 * np.clip(image, 0, 1)).astype("uint8")


def make_discs(count, size=QUICK_SIZE, seed=0):
    """SYNTHETIC parts, as many images in each, with the grades in about IDRiD's proportions."""
    rng = np.random.default_rng(seed)
    y = np.searchsorted(np.cumsum(SHARES), (np.arange(count) + 0.5) / count)
    return [(np.stack([make_disc(grade, size, rng) for grade in y]), y) for _ in range(2)]


# --- Preparation, as in section III.A of the paper --------------------------------------------


def equalize(image, clip_limit=CLIP_LIMIT):
    """CLAHE of the luminance of a uint8 image: vessels stand out, colours stay."""
    yuv = color.rgb2yuv(image)
    luminance = np.clip(yuv[..., 0], 0, 1)
    yuv[..., 0] = exposure.equalize_adapthist(luminance, clip_limit=clip_limit)
    return np.round(255 * np.clip(color.yuv2rgb(yuv), 0, 1)).astype("uint8")


def split(parts, official=False, seed=0):
    """`Data` from two parts: 70/15/15 of both together, or the second as it is for testing.

    Each grade has its share in each split. With the official split, validation takes 15 % of the
    first part.
    """
    if official:
        (x, y), (x_test, y_test) = parts
        held_out = VALIDATION
    else:
        x, y = (np.concatenate(column) for column in zip(*parts, strict=True))
        x, x_test, y, y_test = train_test_split(x, y, test_size=TEST, stratify=y, random_state=seed)
        held_out = VALIDATION / (1 - TEST)
    x, x_val, y, y_val = train_test_split(x, y, test_size=held_out, stratify=y, random_state=seed)
    return Data(x, y, x_val, y_val, x_test, y_test)


def balance(x, y, seed=0):
    """At least half as many images of each grade as of the most frequent one, and never fewer.

    SMOTE puts new images between neighbours of the same grade. More of them than that would teach
    the network that the rare grades are frequent, and spoil the calibration.
    """
    counts = collections.Counter(y.tolist())
    least = math.ceil(BALANCE * max(counts.values()))
    wanted = {grade: max(count, least) for grade, count in counts.items()}
    return smote(x, y, seed=seed, sampling_strategy=wanted)


def prepare(parts, official=False, seed=0):
    """`Data` with contrast for all images, and the same with balance for those to learn from."""
    parts = [(np.stack([equalize(image) for image in x]), y) for x, y in parts]
    data = split(parts, official, seed)
    x, y = balance(data.x_train, data.y_train, seed)
    return data, data._replace(x_train=x, y_train=y)


# --- Models, as in section III.B --------------------------------------------------------------


def build_model(size, widths, seed=0):
    """From images to logits: augmentation, strided convolutions, and a `Dense` head."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential([keras.Input((size, size, 3), dtype="uint8")])
    model.add(layers.Rescaling(1 / 255))
    model.add(layers.RandomFlip("horizontal"))
    model.add(layers.RandomRotation(0.04, fill_mode="constant"))  # of a full turn: 14 degrees
    model.add(layers.RandomBrightness(0.1, value_range=(0, 1)))
    model.add(layers.RandomContrast(0.2, value_range=(0, 1)))
    for width in widths:
        model.add(layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dropout(0.3))
    model.add(layers.Dense(len(GRADES)))
    return model


def fit(model, data, rate, epochs, callbacks=(), verbose=2):
    """Trains, and goes back to the epoch with the best loss on the validation images."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(data.x_val, data.y_val),
        callbacks=[*callbacks, best],
        verbose=verbose,
    )
    return model


def make_bayesian(model, num_images, seed=0):
    """A copy whose head is a `VBLLDense` that starts from the weights of the `Dense`.

    `num_images` are those that a camera took: what SMOTE made of them is no more evidence.
    """
    head = tfuq.layers.VBLLDense(len(GRADES), kl_weight=1 / num_images, seed=seed)
    return tfuq.convert.replace_head(model, head, copy=True)


# --- Judgement, as in sections III.C and III.D ------------------------------------------------


def predict(model, x, samples, seed=0):
    """`tfuq.predictive.Uncertainty` of either model; a `Dense` head is one sample of itself."""
    if isinstance(model.layers[-1], tfuq.layers.VBLLDense):
        return tfuq.predictive.predict_uncertainty(model, x, samples, seed=seed)
    probs = keras.ops.softmax(model.predict(x, batch_size=BATCH_SIZE, verbose=0))
    return tfuq.predictive.decompose(np.asarray(probs)[None])


def confidences(found):
    """The three scores as confidences in [0, 1]: an entropy H of K classes gives 1 - H / log K."""
    most = np.log(found.probs.shape[-1])
    return {
        "confidence": found.confidence,
        "predictive entropy": np.clip(1 - found.predictive_entropy / most, 0, 1),
        "mutual information": np.clip(1 - found.mutual_information / most, 0, 1),
    }


def table_one(y_true, found, threshold=THRESHOLD):
    """The figures of the paper's table I; its ECE is that of all predictions."""
    table = tfuq.metrics.rejection_table(y_true, found.probs, [threshold])
    return {
        "accuracy on accepted": table["accuracy"][0],
        "coverage": table["coverage"][0],
        "rejection rate": table["rejection_rate"][0],
        "ECE": tfuq.metrics.expected_calibration_error(y_true, found.probs),
    }


def accuracy_at(y_true, label, confidence, coverage):
    """Accuracy on the share `coverage` of the predictions that are the most confident."""
    count = max(1, round(coverage * len(y_true)))
    accepted = np.argsort(-confidence, kind="stable")[:count]
    return float(np.mean(label[accepted] == y_true[accepted]))


def show(value):
    """A fraction; a dash where nothing was accepted."""
    return "-" if np.isnan(value) else f"{value:.4f}"


def print_table(title, *rows):
    """Columns as wide as their widest cell, the first row apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}\n")
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def print_grades(data, balanced):
    """How many images of each grade there are in each split."""
    splits = {
        "training": data.y_train,
        "training, after SMOTE": balanced.y_train,
        "validation": data.y_val,
        "test": data.y_test,
    }
    rows = ([name, *map(str, np.bincount(y, minlength=len(GRADES)))] for name, y in splits.items())
    print_table("Images by grade", ["split", *GRADES], *rows)


def print_table_one(y_true, found):
    ours = {name: table_one(y_true, uncertainty) for name, uncertainty in found.items()}
    accuracies = (show(np.mean(uncertainty.label == y_true)) for uncertainty in found.values())
    rows = ([key, show(PAPER[key]), *(show(t[key]) for t in ours.values())] for key in PAPER)
    title = f"Table I: only predictions with a confidence of at least {THRESHOLD} are accepted"
    print_table(title, ["", "paper", *found], *rows, ["accuracy on all", "-", *accuracies])


CAVEAT = """
The paper's figures are of a DenseNet201 that knew ImageNet, and of images that it does not name.
Ours are of a small network that has seen nothing but {train} images of {size} x {size} pixels,
where the first lesions are smaller than a pixel: they show the steps, and do not reproduce the
paper. The standard error of an accuracy on all {test} test images is up to {error:.2f}, on accepted
ones more: of two models that differ by that, the better one may be the luckier one. And the second
was trained on from where the first had stopped."""


def print_caveat(data):
    """What the figures of table I are, and what they are not."""
    test, size = len(data.y_test), data.x_test.shape[1]
    print(CAVEAT.format(train=len(data.y_train), size=size, test=test, error=0.5 / test**0.5))


def print_thresholds(y_true, found):
    """What is left, and how good it is, at each threshold of each score."""
    columns = {}
    for name, uncertainty in found.items():
        for score, confidence in confidences(uncertainty).items():
            columns[f"{name}, {score}"] = tfuq.metrics.rejection_table(
                y_true, uncertainty.probs, THRESHOLDS, confidence=confidence
            )
    del columns["Dense, mutual information"]  # nothing is random there: it is 0
    rows = (
        [
            name,
            *(f"{show(t['accuracy'][i])} ({t['coverage'][i]:.2f})" for i in range(len(THRESHOLDS))),
        ]
        for name, t in columns.items()
    )
    title = "Accuracy on accepted (coverage) by threshold; entropies H count as 1 - H / log 5"
    print_table(title, ["score", *map(str, THRESHOLDS)], *rows)


def print_coverages(y_true, found):
    """The scores side by side where each refuses as many."""
    rows = []
    for name, uncertainty in found.items():
        for score, confidence in confidences(uncertainty).items():
            if (name, score) != ("Dense", "mutual information"):
                label = uncertainty.label
                values = (accuracy_at(y_true, label, confidence, c) for c in COVERAGES)
                rows.append([f"{name}, {score}", *map(show, values)])
    title = "Accuracy on accepted if each score accepts the same share"
    print_table(title, ["score", *map(str, COVERAGES)], *rows)


def draw(y_true, found, folder, note=None):
    """Rejection curve, confidence histogram and confusion matrices, in one file, under a note."""
    from tfuq import plots

    figure = Figure(figsize=(11, 9), layout="constrained")
    (curve, histogram), matrices = figure.subplots(2, 2)
    display = {"labels": range(len(GRADES)), "display_labels": GRADES, "colorbar": False}
    probs = {name: uncertainty.probs for name, uncertainty in found.items()}
    plots.rejection_curve(y_true, probs, ax=curve)
    plots.confidence_histogram(probs["VBLL"], y_true=y_true, threshold=THRESHOLD, ax=histogram)
    for axes, (name, uncertainty) in zip(matrices, found.items(), strict=True):
        ConfusionMatrixDisplay.from_predictions(
            y_true, uncertainty.label, ax=axes, cmap="Blues", xticks_rotation=45, **display
        )
        axes.set_title(name)
    if note is not None:
        figure.suptitle(note, color="tab:red")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "diabetic_retinopathy.png", dpi=110)
    print(f"\nFigure: {folder / 'diabetic_retinopathy.png'}")


# --- The run ----------------------------------------------------------------------------------


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help=f"folder of {FILE}, or of tensorflow-datasets")
    add(
        "--tfds",
        action="store_true",
        help=f"{TFDS_NAME} of tensorflow-datasets, which says how to fetch it from Kaggle",
    )
    add(
        "--limit",
        type=int,
        help="images of each official part, at least 50, grades in proportion (default: all of "
        f"IDRiD; {TFDS_IMAGES} with --tfds, whose memory SMOTE would fill; {QUICK_IMAGES} with "
        "--quick)",
    )
    add(
        "--official-split",
        action="store_true",
        help="test on the official part (default: 70/15/15)",
    )
    add("--epochs", type=int, help=f"of the Dense model (default: {EPOCHS}, or 1 with --quick)")
    add("--samples", type=int, default=30, help="of the weights, at least 2 (default: 30)")
    add("--seed", type=int, default=0, help="of splits, weights, batches and samples (default: 0)")
    add("--output", metavar="DIR", default="demo_output", help="for the figure (demo_output)")
    add("--quick", action="store_true", help="does it run? SYNTHETIC discs if there are no files")
    return parser


def read_arguments(argv=None):
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.epochs is None:
        arguments.epochs = 1 if arguments.quick else EPOCHS
    if arguments.limit is None and arguments.quick:
        arguments.limit = QUICK_IMAGES
    least = {"epochs": 1, "limit": 50, "samples": 2, "seed": 0}
    for name, minimum in least.items():
        value = getattr(arguments, name)
        if value is not None and value < minimum:
            parser.error(f"--{name} must be at least {minimum}, not {value}")
    return arguments


def load(arguments):
    """The parts that the arguments ask for; with `--quick` alone, discs where the file is not."""
    if arguments.tfds:
        print(f"EyePACS: {TFDS_NAME} of tensorflow-datasets")
        return load_tfds(arguments.data_dir, arguments.limit)
    folder = arguments.data_dir or os.environ.get("TFUQ_DATA")
    try:
        parts = load_idrid(folder, arguments.limit, arguments.seed)
    except FileNotFoundError as error:
        if arguments.data_dir or not arguments.quick:
            raise
        print(f"{error}\nSYNTHETIC discs with spots instead: the figures below mean nothing")
        return make_discs(arguments.limit, seed=arguments.seed)
    print(f"IDRiD, from {folder}")
    return parts


def train_both(data, num_images, arguments):
    """The model with the `Dense` head, and a copy with the head replaced and trained on."""
    seed, quick = arguments.seed, arguments.quick
    dense = build_model(data.x_train.shape[1], (8, 16) if quick else WIDTHS, seed)
    print("\nDense")
    fit(dense, data, RATE, arguments.epochs)
    print("\nVBLL: the head alone, then one more block every few epochs, from the top")
    bayesian = make_bayesian(dense, num_images, seed)
    stages, each = (2, 1) if quick else (len(WIDTHS), STAGE_EPOCHS)
    unfreezing = tfuq.callbacks.GradualUnfreezing(
        num_stages=stages, epochs_per_stage=each, verbose=1
    )
    fit(bayesian, data, FINE_RATE, each * (stages + 1), [unfreezing])
    return {"Dense": dense, "VBLL": bayesian}


def main(argv=None):
    arguments = read_arguments(argv)
    try:
        parts = load(arguments)
    except (FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    data, balanced = prepare(parts, arguments.official_split, arguments.seed)
    print_grades(data, balanced)
    models = train_both(balanced, len(data.y_train), arguments)
    found = {
        name: predict(model, data.x_test, arguments.samples, arguments.seed)
        for name, model in models.items()
    }
    print_table_one(data.y_test, found)
    print_caveat(data)
    print_thresholds(data.y_test, found)
    print_coverages(data.y_test, found)
    note = "--quick: one epoch, a small network. This picture means nothing."
    draw(data.y_test, found, pathlib.Path(arguments.output), note if arguments.quick else None)


if __name__ == "__main__":
    main()
