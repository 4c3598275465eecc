"""Training that is rapid: six schemes side by side, from scratch and after a trunk is trained.

    python examples/rapid_training.py                  # files in --data, TFUQ_DATA, ../shared/data
    python examples/rapid_training.py --task ham10000  # another target
    python examples/rapid_training.py --task scratch   # CIFAR-10 alone, no transfer
    python examples/rapid_training.py --quick          # scikit-learn's digits, under a minute

A small residual network learns CIFAR-10; its trunk, with a new last layer, then learns to tell
three kinds of brain tumours and none (MRI), or seven kinds of skin lesions (HAM10000). On each
task: Adam and SGD with one rate until they stop early (the baselines of Mishra 2020, section
3.2.1), SGD with warm restarts (SGDR), the same with cycles that double (CLM), with rates by layer
(DLR), and with both. The last four are `tfuq.training.rapid_fit`. What counts is after how many
steps a scheme first reaches the best validation accuracy of plain SGD; those of the range test are
counted, too. Of the last scheme, the snapshots of all cycles together are compared with the last.

The small sets of the transfer have settings of their own, `TRANSFER`, which were chosen with the
seeds 10 and 11: 100 steps of a range test would be four epochs of brain MRI, so 25 go through three
decades of rates, and the rate is the lower end of the bracket that they find. Lesions have no top:
their images are flipped at random in training, in all schemes, as the paper's are. Unflipped, SGD
was at its best after 6 and 5 epochs, then learned them by heart, and SGDR+CLM was not faster.

With `--quick` the trunk learns the digits 0 to 4, and then 5 to 9. It needs the extra `examples`.
"""

import argparse
import math
import os
import pathlib
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import tfuq

BATCH_SIZE, SIZE = 64, 32
RATE, MOMENTUM = 0.01, 0.9  # of the baseline, as in the paper
PATIENCE = 5
TASKS = ("scratch", "brain_mri", "ham10000")
SCHEMES = {  # None: a baseline; otherwise arguments of `rapid_fit`
    "Adam": None,
    "SGD": None,
    "SGDR": {"cycle_mult": 1, "layer_rates": None},
    "SGDR+CLM": {"cycle_mult": 2, "layer_rates": None},
    "SGDR+DLR": {"cycle_mult": 1, "layer_rates": "log"},
    "SGDR+DLR+CLM": {"cycle_mult": 2, "layer_rates": "log"},
}


class Data(NamedTuple):
    """Images of a task, uint8, and their labels, in three parts."""

    train: tuple
    validation: tuple
    test: tuple

    @property
    def classes(self):
        return int(self.train[1].max()) + 1


class Settings(NamedTuple):
    """What all schemes share."""

    width: int = 16
    stages: int = 3
    max_epochs: int = 30  # of a baseline that does not stop
    num_cycles: int = 4  # of CLM: 1 + 2 + 4 + 8 epochs; SGDR has as many epochs, in cycles of one
    range_test: tuple = (("start", 1e-5), ("num_steps", 100))
    is_lower_end: bool = False  # the rate is where the bracket begins, not what is suggested
    min_factor: float = 0.3  # of the first layer's rate; at 0.01 most of so few layers stand still
    is_flipped: bool = False  # images in training, left to right and upside down
    verbose: int = 0

    @property
    def epochs(self):
        return 2**self.num_cycles - 1


TRANSFER = {  # an epoch is 25 steps of brain MRI, 44 of HAM10000
    "range_test": (("start", 1e-3), ("stop", 1.0), ("num_steps", 25), ("smoothing", 0.7)),
    "is_lower_end": True,
}
QUICK = Settings(width=4, stages=1, max_epochs=2, num_cycles=2, range_test=(("num_steps", 20),))


def settings_for(task, settings):
    """`settings`, or for a transfer to small sets those with what is other there."""
    if task == "scratch":
        return settings
    return settings._replace(**TRANSFER, is_flipped=task == "ham10000")


# --- Data -------------------------------------------------------------------------------------


def default_folder():
    """Where the files are looked for unless `--data` says otherwise."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    return pathlib.Path(os.environ.get("TFUQ_DATA") or beside)


def split_off(x, y, count, seed=0):
    """`(x, y)` without `count` examples, and these, of each class its share."""
    from sklearn.model_selection import train_test_split

    x, held_x, y, held_y = train_test_split(x, y, test_size=count, stratify=y, random_state=seed)
    return (x, y), (held_x, held_y)


def read(folder, name, part):
    """The images of a part of a local file, halved to 32x32 if they are larger, and the labels."""
    path = pathlib.Path(folder) / name
    batches = list(tfuq.datasets.from_npz(path, part, image_size=SIZE, batch_size=500))
    return tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))


def load_local(folder, name, limit, held_out, test_limit):
    """A data set of a local file: `limit` images to train on, all but the held out if None."""
    train, validation = split_off(*read(folder, name, "train"), held_out)
    if limit is not None:
        train = split_off(*train, limit)[1]
    return Data(
        train, validation, tuple(array[:test_limit] for array in read(folder, name, "test"))
    )


def load_cifar10(folder, images=None):
    return load_local(folder, "cifar10_jpeg.npz", images, 5000, 5000)


def load_ham10000(folder):
    return load_local(folder, "ham10000_64_jpeg.npz", None, 700, None)


def load_brain_mri(folder):
    """Only its training part: the official test images are of another kind, their labels doubted.

    Grey images get three channels, as the trunk has learned from.
    """
    x, y = read(folder, "brain_mri_64.npz", "train")
    train, rest = split_off(np.repeat(x, 3, axis=-1), y, 1000)
    return Data(train, *split_off(*rest, 500))


LOADERS = {"scratch": load_cifar10, "brain_mri": load_brain_mri, "ham10000": load_ham10000}


def load_digits(lowest):
    """Five of scikit-learn's handwritten digits, from `lowest` on, with three channels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = (digits.target >= lowest) & (digits.target < lowest + 5)
    x = np.repeat((digits.images[chosen, :, :, None] * 15).astype("uint8"), 3, axis=-1)
    train, rest = split_off(x, digits.target[chosen] - lowest, 300)
    return Data(train, *split_off(*rest, 150))


# --- The network ------------------------------------------------------------------------------


def block(x, width, strides, name):
    """relu(x + two convolutions of x), as in He et al. 2016."""
    layers = keras.layers

    def conv(x, size, strides):
        x = layers.Conv2D(width, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    y = layers.ReLU()(conv(x, 3, strides))
    y = conv(y, 3, 1)
    if strides > 1 or x.shape[-1] != width:
        x = conv(x, 1, strides)
    return layers.ReLU(name=name)(layers.Add()([x, y]))


def build_trunk(shape, settings):
    """A residual network from images to features; its first convolution halves the images."""
    width = settings.width
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    for stage in range(settings.stages):
        x = block(x, width * 2**stage, 2 if stage else 1, f"stage{stage + 1}")
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="trunk")


def make_model(trunk, classes, optimizer, is_flipped=False):
    """A copy of the trunk, its weights with it, and a new last layer, compiled."""
    trunk_copy = keras.models.clone_model(trunk)
    trunk_copy.set_weights(trunk.get_weights())
    inputs = keras.Input(trunk.input_shape[1:])
    x = keras.layers.RandomFlip()(inputs) if is_flipped else inputs
    model = keras.Model(inputs, keras.layers.Dense(classes, name="head")(trunk_copy(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def train_trunk(data, settings, seed=0):
    """A trunk that has learned a task by the recipe."""
    keras.utils.set_random_seed(seed)
    trunk = build_trunk(data.train[0].shape[1:], settings)
    model = make_model(trunk, data.classes, sgd())
    train_rapidly(model, data, settings, {"cycle_mult": 2, "layer_rates": None}, [])
    return model.get_layer("trunk")


# --- Schemes ----------------------------------------------------------------------------------


class Clock(keras.callbacks.Callback):
    """Steps of the optimizer and seconds at the end of each epoch, from its making on.

    The seconds are those that the process has computed for, whatever else the machine does.
    """

    def __init__(self):
        super().__init__()
        self.start = time.process_time()
        self.steps, self.seconds = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.steps.append(int(self.model.optimizer.iterations))
        self.seconds.append(time.process_time() - self.start)


def sgd():
    return keras.optimizers.SGD(RATE, momentum=MOMENTUM)


def train_plainly(model, data, settings, callbacks):
    """One rate, until the validation accuracy no longer rises."""
    stopping = keras.callbacks.EarlyStopping(
        "val_accuracy", patience=PATIENCE, restore_best_weights=True
    )
    return model.fit(
        *data.train,
        batch_size=BATCH_SIZE,
        epochs=settings.max_epochs,
        validation_data=data.validation,
        callbacks=[stopping, *callbacks],
        verbose=settings.verbose,
    )


def train_rapidly(model, data, settings, options, callbacks, snapshots=None, seed=0):
    """The recipe in one call, or after a range test of its own if the rate is the lower end.

    That test is of one rate for all layers, so that all schemes of a seed have the same rate.
    """
    is_growing = options["cycle_mult"] > 1
    range_test, found = dict(settings.range_test), None
    if settings.is_lower_end:
        found = tfuq.lr_range_test(
            model, data.train, batch_size=BATCH_SIZE, seed=seed, **range_test
        )
    history = tfuq.training.rapid_fit(
        model,
        data.train,
        data.validation,
        max_learning_rate=None if found is None else found.bracket[0],
        min_factor=settings.min_factor,
        num_cycles=settings.num_cycles if is_growing else settings.epochs,
        monitor="val_accuracy",
        patience=settings.epochs,
        range_test=range_test,
        batch_size=BATCH_SIZE,
        callbacks=callbacks,
        snapshots=snapshots,
        seed=seed,
        verbose=settings.verbose,
        **options,
    )
    if found is not None:
        history.range_test = found
    return history


def judge(probs, y):
    """Accuracy, negative log-likelihood in nats and calibration error of test images."""
    return {
        "accuracy": float(np.mean(probs.argmax(axis=-1) == y)),
        "nll": float(tfuq.metrics.negative_log_likelihood(y, probs)),
        "ece": float(tfuq.metrics.expected_calibration_error(y, probs)),
    }


def run_scheme(scheme, trunk, data, settings, seed, snapshots=None):
    """Trains by one scheme: its course, and what the model is worth on the test images.

    Returns a dict, and Keras' history. With `snapshots`, a folder, the dict also tells what the
    last snapshot and all of them together are worth.
    """
    keras.utils.set_random_seed(seed)
    options = SCHEMES[scheme]
    optimizer = keras.optimizers.Adam() if scheme == "Adam" else sgd()
    model = make_model(trunk, data.classes, optimizer, settings.is_flipped)
    clock = Clock()
    if options is None:
        history = train_plainly(model, data, settings, [clock])
        tested, rule = 0, None
    else:
        history = train_rapidly(model, data, settings, options, [clock], snapshots, seed)
        tested, rule = len(history.range_test.losses), history.schedule
    probs = keras.ops.softmax(model.predict(data.test[0], batch_size=256, verbose=0))
    run = {
        "scheme": scheme,
        "seed": seed,
        "val_accuracy": history.history["val_accuracy"],
        "steps": [step + tested for step in clock.steps],
        "seconds": clock.seconds,
        "rate": RATE if scheme == "SGD" else None if rule is None else rule.max_learning_rate,
        **judge(np.asarray(probs), data.test[1]),
    }
    if snapshots is not None:
        stack = history.snapshots.ensemble().predict(data.test[0], 256, from_logits=True)
        run["last"] = judge(stack[-1], data.test[1])
        run["ensemble"] = judge(stack.mean(axis=0), data.test[1])
    return run, history


def cost_of(run, accuracy, of="steps"):
    """Steps or seconds after which a run first had this validation accuracy; infinite if never."""
    pairs = zip(run["val_accuracy"], run[of], strict=True)
    return next((cost for found, cost in pairs if found >= accuracy), math.inf)


def speed_ups(run, baseline):
    """Equation 3.3, eta = cost of the baseline / cost of the scheme, by steps and by seconds.

    Either cost is that of first reaching the baseline's best validation accuracy.
    """
    best = max(baseline["val_accuracy"])
    return [cost_of(baseline, best, of) / cost_of(run, best, of) for of in ("steps", "seconds")]


# --- The script -------------------------------------------------------------------------------


def print_run(run, baseline):
    eta = "" if baseline is None else f"{speed_ups(run, baseline)[0]:6.2f}"
    print(
        f"{run['scheme']:14}{max(run['val_accuracy']):10.4f}{run['accuracy']:10.4f}"
        f"{run['nll']:8.4f}{run['ece']:8.4f}{run['steps'][-1]:8d}{run['seconds'][-1]:8.0f}{eta:>7}"
    )
    for name in ("last", "ensemble"):
        if name in run:
            print(f"  {name:22}{run[name]['accuracy']:10.4f}{run[name]['nll']:8.4f}", end="")
            print(f"{run[name]['ece']:8.4f}")


def compare(title, trunk, data, settings, seed, output):
    """Runs all schemes on one task and prints the table."""
    print(f"\n{title}: {len(data.train[0])} training images, {data.classes} classes")
    print("scheme        best val.      test     NLL     ECE   steps seconds    eta")
    runs = {}
    for scheme in ("SGD", *(name for name in SCHEMES if name != "SGD")):
        with tempfile.TemporaryDirectory() as folder:
            is_last = scheme == "SGDR+DLR+CLM"
            run, history = run_scheme(
                scheme, trunk, data, settings, seed, folder if is_last else None
            )
        runs[scheme] = run
        print_run(run, runs["SGD"])
    draw(history, output / f"rapid_training_{title}.png", title)


def draw(history, path, title):
    """The range test, and the rates of the training after it."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    history.range_test.plot(left)
    tfuq.plots.learning_rate_curve(history.schedule, ax=right)
    is_quick = title.startswith("digits")
    figure.suptitle(title.replace("_", " ") + is_quick * ": this picture means nothing")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    print(f"figure: {path}")


def load(arguments):
    """The data of the first task and, unless that is all, of the second."""
    alone = arguments.task == "scratch"
    if arguments.quick:
        return load_digits(0), None if alone else load_digits(5)
    source = load_cifar10(arguments.data, arguments.images)
    return source, None if alone else LOADERS[arguments.task](arguments.data)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="DIR", default=default_folder(), help="default: %(default)s")
    add("--task", choices=TASKS, default="brain_mri", help="default: %(default)s")
    add("--images", type=int, help="of CIFAR-10 to train on; default: all but those held out")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for figures")
    add("--verbose", type=int, choices=(0, 1, 2), default=0, help="as in Keras' fit (0)")
    add("--quick", action="store_true", help="digits, a small network: does it run?")
    arguments = parser.parse_args(argv)
    settings = (QUICK if arguments.quick else Settings())._replace(verbose=arguments.verbose)
    source, target = load(arguments)
    keras.utils.set_random_seed(arguments.seed)
    trunk = build_trunk(source.train[0].shape[1:], settings)
    data = source
    if target is not None:
        trunk, data = train_trunk(source, settings, arguments.seed), target
    settings = settings_for(arguments.task, settings)
    title = arguments.task
    if arguments.quick:
        title = f"digits_instead_of_{title}"
        print("--quick: scikit-learn's digits in place of the task; the figures mean nothing")
    compare(title, trunk, data, settings, arguments.seed, arguments.output)


if __name__ == "__main__":
    main()
