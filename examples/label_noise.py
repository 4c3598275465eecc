"""Learning from labels of which two in five are wrong: CIFAR-10 as people labelled it at worst.

    python examples/label_noise.py                  # files in --data, TFUQ_DATA or ../shared/data
    python examples/label_noise.py --source tfds    # tensorflow-datasets
    python examples/label_noise.py --quick          # under a minute: does it run here?

One small network is trained three times, and only its head differs: `Dense`, `MCSoftmaxDenseFA`
with noise that is independent between classes (diagonal), and with noise that is not (full): who
takes a cat for a dog seldom takes it for a truck. All learn from the noisy labels of CIFAR-10N
(Wei et al. 2022) alone; the clean test labels serve for the tables only. It needs the extra
`examples`, or `datasets` for the second line.
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

import tfuq

HEADS = {"Dense": None, "diagonal": 0, "full": 6}  # the number of factors of the noise
LABELS = {  # name in the files: name in tensorflow-datasets
    "worst": "worse_label",
    "aggre": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}
IMAGES, PEOPLE = "cifar10_jpeg.npz", "cifar10_human.npz"
LOOK_ALIKE = np.array([6, 7, 3, 8, 9, 6, 5, 1, 3, 4])  # of the digits 0 to 9
NOISE = 0.4  # of the digits' labels: that of "worst"
EPOCHS, QUICK_IMAGES = 6, 512
BATCH_SIZE, LEARNING_RATE, HELD_OUT = 128, 2e-3, 0.1
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Data = collections.namedtuple("Data", ["x_train", "y_train", "true_train", "x_test", "y_test"])


def default_folder():
    """Where the files are looked for unless `--data` says otherwise."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    return pathlib.Path(os.environ.get("TFUQ_DATA") or beside)


def read_file(folder, name):
    """The arrays of an `.npz` file, each read when asked for."""
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is missing in {folder}. Name its folder with --data or TFUQ_DATA, "
            "or use --source tfds or --source digits."
        )
    return np.load(path, allow_pickle=False)


def decode_jpegs(data, offsets, count=None):
    """The first `count` JPEG files of `data`, which stand end to end, as uint8 `(n, h, w, 3)`."""
    from PIL import Image

    files = np.split(data, offsets[1:-1])[:count]
    return np.stack([Image.open(io.BytesIO(file.tobytes())).convert("RGB") for file in files])


def load_files(folder, labels, limit=None):
    """CIFAR-10 and the people's labels of it, in the same order, from two files."""
    images, people = read_file(folder, IMAGES), read_file(folder, PEOPLE)
    return Data(
        decode_jpegs(images["train_bytes"], images["train_offsets"], limit),
        people[f"cifar10n_{labels}"][:limit],
        images["y_train"][:limit],
        decode_jpegs(images["test_bytes"], images["test_offsets"], limit),
        images["y_test"][:limit],
    )


def load_tfds(folder, labels, limit=None):
    """The same from tensorflow-datasets, whose `cifar10_n` has images and all labels."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            '--source tfds needs tensorflow-datasets: pip install "tfuq[datasets]"'
        ) from error

    splits = tfds.load("cifar10_n", split=["train", "test"], data_dir=folder)
    train, test = (split.batch(len(split)).get_single_element() for split in splits)
    parts = (train["image"], train[LABELS[labels]], train["label"], test["image"], test["label"])
    return Data(*(part.numpy()[:limit] for part in parts))


def load_digits(limit=None, seed=0):
    """Scikit-learn's handwritten digits: real images, but SYNTHETIC noise on their labels."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = (digits.images[..., None] * 15).astype("uint8")
    x_train, x_test, true, y_test = model_selection.train_test_split(
        images, digits.target, test_size=0.4, stratify=digits.target, random_state=seed
    )
    wrong = np.random.default_rng(seed).random(len(true)) < NOISE
    noisy = np.where(wrong, LOOK_ALIKE[true], true)
    return Data(*(part[:limit] for part in (x_train, noisy, true, x_test, y_test)))


def make_head(name, temperature, seed):
    """The one line that differs between the models."""
    if name == "Dense":
        return keras.layers.Dense(10)
    return tfuq.layers.MCSoftmaxDenseFA(
        10, num_factors=HEADS[name], temperature=temperature, logits_only=True, seed=seed
    )


def build_trunk(input_shape):
    """From images to 128 features."""
    layers = keras.layers
    trunk = keras.Sequential([keras.Input(input_shape, dtype="uint8")])
    trunk.add(layers.Rescaling(1 / 127.5, offset=-1.0))
    if input_shape[-1] == 3:  # a mirrored photograph is one; a mirrored digit is none
        trunk.add(layers.RandomFlip("horizontal"))
    for width in (32, 64, 128):
        trunk.add(layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False))
        trunk.add(layers.BatchNormalization(momentum=0.9))
        trunk.add(layers.ReLU())
    trunk.add(layers.Flatten())
    trunk.add(layers.Dense(128, activation="relu"))
    return trunk


def train(name, data, *, temperature=1.0, epochs=EPOCHS, seed=0, verbose="auto"):
    """A model with this head, and its NLL on the noisy labels of the tenth that is held out."""
    keras.utils.set_random_seed(seed)
    model = build_trunk(data.x_train.shape[1:])  # the same weights at the start for every head
    model.add(make_head(name, temperature, seed))
    batch_size = min(BATCH_SIZE, math.ceil(len(data.x_train) / 32))  # few images: smaller batches
    steps = epochs * math.ceil(len(data.x_train) * (1 - HELD_OUT) / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    history = model.fit(
        data.x_train,
        data.y_train,
        batch_size=batch_size,
        epochs=epochs,
        validation_split=HELD_OUT,
        verbose=verbose,
    )
    return model, history.history["val_loss"][-1]


def judge(y_true, logits):
    """Accuracy (fraction), negative log-likelihood (nats) and expected calibration error."""
    return {
        "accuracy": float(np.mean(np.argmax(logits, axis=-1) == y_true)),
        "nll": tfuq.metrics.negative_log_likelihood(y_true, logits, from_logits=True),
        "ece": tfuq.metrics.expected_calibration_error(y_true, logits, from_logits=True),
    }


def print_table(title, *rows):
    """Columns as wide as their widest cell, the first row apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}\n")
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        print(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def print_scores(y_test, logits):
    scores = {name: judge(y_test, values).values() for name, values in logits.items()}
    rows = ([name, *(f"{score:.4f}" for score in scores[name])] for name in scores)
    print_table("On clean test labels", ["head", "accuracy", "NLL (nats)", "ECE"], *rows)


def print_rejection(y_test, logits):
    """What each head answers, and how well, if it may refuse."""
    tables = [
        tfuq.metrics.rejection_table(y_test, values, THRESHOLDS, from_logits=True)
        for values in logits.values()
    ]
    rows = (
        [f"{threshold:g}", *(f"{t['accuracy'][i]:.4f} ({t['coverage'][i]:.4f})" for t in tables)]
        for i, threshold in enumerate(THRESHOLDS)
    )
    title = "Accuracy on what is accepted at a threshold (accepted fraction; nan: none of it)"
    print_table(title, ["threshold", *logits], *rows)


def draw(y_test, logits, folder, note=None):
    """The rejection curves of the heads, as `label_noise.png`, under a note."""
    try:
        from tfuq import plots
    except ImportError as error:
        print(f"\nNo figure. {error}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    figure = plots.rejection_curve(y_test, logits, from_logits=True).figure
    figure.suptitle(note, color="tab:red")
    figure.savefig(folder / "label_noise.png", dpi=120)
    print(f"\nFigure: {folder / 'label_noise.png'}")


def make_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--source",
        choices=("files", "tfds", "digits"),
        help=f"files (the default): {IMAGES} and {PEOPLE} in --data. tfds: cifar10_n of "
        "tensorflow-datasets, which says how to fetch the people's labels by hand. digits: "
        "scikit-learn's digits with synthetic confusions of look-alikes, no human noise",
    )
    add("--data", metavar="DIR", help="folder of the files, or data_dir of tensorflow-datasets")
    add("--labels", choices=LABELS, help="which human labels (default: worst, 40%% wrong)")
    add("--epochs", type=int, help=f"at least 1 (default: {EPOCHS}, or 1 with --quick)")
    add("--temperature", type=float, default=1.0, help="of the soft-max, above 0 (default: 1)")
    add("--seed", type=int, default=0, help="of weights, batches and noise (default: 0)")
    add("--output", metavar="DIR", default="demo_output", help="for the figure (demo_output)")
    quick = f"{QUICK_IMAGES} images and 1 epoch, to see that it runs; digits if there are no files"
    add("--quick", action="store_true", help=quick)
    return parser


def read_arguments(argv):
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.epochs is None:
        arguments.epochs = 1 if arguments.quick else EPOCHS
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {arguments.epochs}")
    if not 0 < arguments.temperature < math.inf:
        parser.error(f"--temperature must be above 0, not {arguments.temperature}")
    if arguments.source == "digits" and (arguments.data or arguments.labels):
        parser.error("--source digits has no use for --data and --labels")
    return arguments


def load(source, folder, labels, limit):
    """The data of a source, which is named on the way."""
    if source == "digits":
        print("Scikit-learn's digits with SYNTHETIC label noise: look-alikes confused")
        return load_digits(limit)
    print(f"CIFAR-10 with the labels {labels!r} of CIFAR-10N, from {folder or source}")
    return {"files": load_files, "tfds": load_tfds}[source](folder, labels, limit)


def load_asked(arguments):
    """The data that the arguments ask for; with `--quick`, digits where the files are not."""
    source, limit = arguments.source or "files", QUICK_IMAGES if arguments.quick else None
    folder = arguments.data or (default_folder() if source == "files" else None)
    try:
        return load(source, folder, arguments.labels or "worst", limit)
    except FileNotFoundError as error:
        if arguments.source or not arguments.quick:
            raise
        print(error)
        return load("digits", None, None, limit)


def main(argv=None):
    arguments = read_arguments(argv)
    try:
        data = load_asked(arguments)
    except (FileNotFoundError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    wrong = np.mean(data.y_train != data.true_train)
    print(f"{len(data.y_train)} training images, {wrong:.1%} of their labels wrong")
    logits = {}
    for name in HEADS:
        print(f"\n{name}")
        options = {"temperature": arguments.temperature, "epochs": arguments.epochs}
        model, _ = train(name, data, seed=arguments.seed, **options)
        logits[name] = model.predict(data.x_test, batch_size=512, verbose=0)
    print_scores(data.y_test, logits)
    print_rejection(data.y_test, logits)
    note = "--quick: one epoch, few images. This picture means nothing."
    draw(data.y_test, logits, pathlib.Path(arguments.output), note if arguments.quick else None)


if __name__ == "__main__":
    main()
