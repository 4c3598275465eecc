"""Six ways to train a residual network on medical images: how much of it must be random?

    python examples/sparse_bayes_classification.py --dataset pneumonia --json pneumonia.json
    python examples/sparse_bayes_classification.py --dataset ham10000 --json ham10000.json
    python examples/sparse_bayes_classification.py --dataset ham10000 --multi-label
    python examples/sparse_bayes_classification.py --dataset chest      # multi-label, 14 findings
    python examples/sparse_bayes_classification.py --json pneumonia.json --report
    python examples/sparse_bayes_classification.py --quick              # does it run here?

Deterministic, an ensemble of 5, networks of which 1 %, 5 % and 20 % of the weights are random, and
a fully Bayesian one (Abboud et al. 2024, section 3.2 and table 1). All have the same budget of E
epochs: each member of the ensemble has E; the partly Bayesian ones have E/2 deterministic, are
told their most salient weights, and have E/2 with these random, in one `fit`; the fully Bayesian
one is trained from scratch for E. Predictions are means over 5 draws of the weights.

What differs from the paper: images of 28x28 or 32x32 pixels and a subset of them; one block in each
of the four stages, that is ResNet-10, with 8 channels at the start (`--blocks 2 --width 64` is the
paper's ResNet-18, here with a 3x3 stem and no pooling after it); 6 epochs; 1 draw of the weights
per training step instead of 5 (`--train-samples 5`); Adam with the learning rate 0.002 instead of
SGD with 0.01, which needs more epochs (the weight decay is the paper's, 1e-5; what sets the noise
does not decay); and no class weights, which bend the probabilities that Brier score and calibration
judge. beta is 0.01 as in the paper, on a KL divergence divided by the number of training labels.

DIR, by `--data-dir` or the environment variable TFUQ_DATA, holds
pneumoniamnist_28.npz (MedMNIST's arrays as x_train, y_train, x_test, y_test), or
ham10000_64_jpeg.npz (train_bytes, train_offsets, y_train and so on: JPEG files end to end), or
chestmnist.npz as MedMNIST offers it. By default, all methods and three seeds of one data set take
10 to 15 minutes on two free cores. It needs the extra `examples`.
"""

import functools
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import _sparse_bayes as shared
import keras
import numpy as np
from sklearn.metrics import roc_auc_score

import tfuq

SIZE = 32  # of dermoscopic images
DEFAULTS = {
    "pneumonia": {"epochs": 6, "images": 1000, "test_images": 624},
    "ham10000": {"epochs": 6, "images": 1000, "test_images": 500},
    "chest": {"epochs": 6, "images": 1000, "test_images": 1000},
}
COMMON = {"width": 8, "batch_size": 50, "test_batch_size": 250, "stages": 4, "blocks": 1}
QUICK = {"epochs": 2, "images": 96, "test_images": 64, "stages": 1, "width": 4}
BETA = (0.01, 0.01)
COLUMNS = {
    "accuracy": "accuracy",
    "brier": "Brier",
    "entropy": "entropy",
    "auc": "AUC",
    "ece": "ECE",
}
PAPER_COLUMNS = ("accuracy", "Brier", "entropy")  # ChestMNIST
PAPER = {
    "deterministic": (0.899, 0.098, 0.493),
    "ensemble": (0.936, 0.053, 1.162),
    "partial 1 %": (0.934, 0.064, 0.367),
    "partial 5 %": (0.931, 0.067, 0.404),
    "partial 20 %": (0.925, 0.083, 1.303),
    "Bayesian": (0.723, 0.215, 3.794),
}


# --- Data: (x, y) for training and for testing, uint8 (n, height, width, channels) ------------


def load_pneumonia(folder):
    file = shared.read_file(folder, "pneumoniamnist_28.npz", "chest X-rays of MedMNIST")
    return [(file[f"x_{part}"][..., None], file[f"y_{part}"]) for part in ("train", "test")]


def load_ham10000(folder):
    file = shared.read_file(folder, "ham10000_64_jpeg.npz", "dermoscopic images, seven kinds")
    return [
        (shared.decode_jpegs(file[f"{p}_bytes"], file[f"{p}_offsets"], SIZE), file[f"y_{p}"])
        for p in ("train", "test")
    ]


def load_chest(folder):
    file = shared.read_file(folder, "chestmnist.npz", "from medmnist.com, 28x28")
    return [(file[f"{p}_images"][..., None], file[f"{p}_labels"]) for p in ("train", "test")]


def make_shapes(count, classes, seed=0):
    """SYNTHETIC: noise with a brighter bar, whose place tells the class."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        y = rng.integers(classes, size=count)
        x = rng.integers(0, 160, (count, 28, 28, 1))
        for image, label in zip(x, y, strict=True):
            image[:, 3 * label : 3 * label + 3] += 80
        parts.append((x.astype("uint8"), y))
    return parts


LOADERS = {"pneumonia": load_pneumonia, "ham10000": load_ham10000, "chest": load_chest}
CLASSES = {"pneumonia": 2, "ham10000": 7, "chest": 14}


def load(arguments):
    """The two parts; with `--quick`, synthetic ones where the files are not."""
    folder = arguments.data_dir or shared.default_folder()
    try:
        parts = LOADERS[arguments.dataset](folder)
    except FileNotFoundError as error:
        if not arguments.quick:
            raise
        print(f"{error}\nSYNTHETIC images instead.")
        parts = make_shapes(QUICK["images"], CLASSES[arguments.dataset])
    if arguments.multi_label:
        parts = [(x, as_labels(y, CLASSES[arguments.dataset])) for x, y in parts]
    return parts


def as_labels(y, count):
    """A label for each class; of data that have several already, those."""
    return (y if y.ndim == 2 else np.eye(count)[y]).astype("float32")


def draw_some(x, y, count, seed):
    """`count` of the images; all of them, in another order, if there are no more."""
    rows = np.random.default_rng(seed).permutation(len(x))[:count]
    return x[rows], y[rows]


# --- The network ------------------------------------------------------------------------------


def normalized(x):
    return keras.layers.BatchNormalization(momentum=0.9)(x)


def block(kit, x, width, strides):
    """relu(x + two convolutions of x), as in He et al. 2016."""
    relu = keras.layers.ReLU
    conv = functools.partial(kit.conv, width, padding="same", use_bias=False)
    y = relu()(normalized(conv(kernel_size=3, strides=strides)(x)))
    y = normalized(conv(kernel_size=3)(y))
    if strides > 1 or x.shape[-1] != width:
        x = normalized(conv(kernel_size=1, strides=strides)(x))
    return relu()(keras.layers.Add()([x, y]))


def build_resnet(kit, shape, classes, width, stages, blocks):
    """ResNet-18 for small images, if `blocks` is 2: a 3x3 convolution and no pooling at first."""
    inputs = keras.Input(shape, dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = normalized(kit.conv(width, 3, padding="same", use_bias=False)(x))
    x = keras.layers.ReLU()(x)
    for stage in range(stages):
        for number in range(blocks):
            x = block(kit, x, width * 2**stage, 2 if stage and not number else 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, kit.dense(classes)(x))


# --- Judgement --------------------------------------------------------------------------------


def mean_auc(y, probs):
    """Mean over labels, or over classes against the rest, of those that occur; nan if none does."""
    known = (y.min(axis=0) != y.max(axis=0)).nonzero()[0]
    if not len(known):
        return float("nan")
    return float(roc_auc_score(y[:, known], probs[:, known], average="macro"))


def judge(y, multi_label, probs):
    """The paper's figures; the entropy of several labels is that which the paper writes."""
    flags = {"multi_label": multi_label}
    right = (probs > 0.5) == y if multi_label else probs.argmax(axis=-1) == y
    binary_terms = "positive" if multi_label else "both"
    return {
        "accuracy": float(np.mean(right)),
        "brier": tfuq.metrics.brier_score(y, probs, class_reduction="mean", **flags),
        "entropy": tfuq.metrics.entropy_of_expectation(probs, binary_terms=binary_terms, **flags),
        "auc": mean_auc(as_labels(y, probs.shape[-1]), probs),
        "ece": tfuq.metrics.expected_calibration_error(y, probs, **flags),
    }


def make_problem(parts, settings):
    """The same images for every method and seed."""
    (x, y), (x_test, y_test) = (
        draw_some(*part, settings[name], seed=0)
        for part, name in zip(parts, ("images", "test_images"), strict=True)
    )
    multi_label, classes = settings["multi_label"], CLASSES[settings["dataset"]]
    loss = keras.losses.SparseCategoricalCrossentropy
    if multi_label:
        loss = keras.losses.BinaryCrossentropy
    sizes = (x.shape[1:], classes, *(settings[k] for k in ("width", "stages", "blocks")))
    return shared.Problem(
        build=lambda kit: build_resnet(kit, *sizes),
        make_loss=functools.partial(loss, from_logits=True),
        x=x,
        y=y,
        x_test=x_test,
        judge=functools.partial(judge, y_test, multi_label),
        terms=y.size,
        beta=BETA,
        multi_label=multi_label,
    )


def read_arguments(argv):
    parser = shared.make_parser(__doc__)
    parser.add_argument("--dataset", choices=LOADERS, default="pneumonia", help="(%(default)s)")
    parser.add_argument("--multi-label", action="store_true", help="a sigmoid for each class")
    help_text = "per stage: 1 is ResNet-10 (the default), 2 is ResNet-18"
    parser.add_argument("--blocks", type=shared.positive, help=help_text)
    arguments = shared.read_arguments(parser, argv)
    arguments.multi_label |= arguments.dataset == "chest"
    return arguments


def settings_of(arguments):
    defaults = {**COMMON, **DEFAULTS[arguments.dataset], "multi_label": arguments.multi_label}
    if arguments.quick:
        defaults |= QUICK
    return shared.settings_of(arguments, defaults, ("blocks",))


def main(argv=None):
    arguments = read_arguments(argv)
    table = COLUMNS, PAPER, PAPER_COLUMNS, shared.read_step_flops(arguments.flops)
    if arguments.report:
        shared.print_report(*shared.stored_runs(arguments.json), *table)
        return
    settings = settings_of(arguments)
    try:
        problem = make_problem(load(arguments), settings)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.dataset}: {len(problem.x)} training, {len(problem.x_test)} test images")
    runs = shared.run_all(problem, settings, arguments, lambda *_: None)
    shared.print_report(*runs, *table)


if __name__ == "__main__":
    main()
