"""Which last layer? Six of them on the same frozen features, half of whose labels may be wrong.

    python examples/last_layers.py                       # scikit-learn's digits, two minutes
    python examples/last_layers.py --features FILE.npz   # features of a network of your own
    python examples/last_layers.py --quick               # does it run here?

`Dense`; HET (`MCSoftmaxDenseFA`), whose label noise depends on the input; HET-XL, which makes that
noise in the features; VBLL, whose weights are random; SNGP, a Gaussian process over the features;
and Laplace, which gives the trained `Dense` layer a posterior afterwards. All learn from the same
features of the same noisy labels. The table says how right they are on clean ones, how well their
confidence ranks the errors (AUGRC, less is better) and tells inputs that belong to no class (AUROC
of the largest probability), and what it took.

Of the digits a small network is trained on rows of their own with clean labels, as one that knows
ImageNet knows other images; then its features are frozen. Their label noise is synthetic: two in
five are confused with a look-alike. A file has the arrays `x_train` (features), `y_train`,
`x_test`, `y_test` and, if there are any, `x_far`, features of what belongs to no class. One run is
one run: `benchmarks/README.md` has intervals. It needs the extra `examples`.
"""

import argparse
import os
import pathlib
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers

import tfuq

LOOK_ALIKE = np.array([6, 7, 3, 8, 9, 6, 5, 1, 3, 4])  # of the digits 0 to 9
NOISE = 0.4
EPOCHS, QUICK_EPOCHS, BATCH_SIZE, LEARNING_RATE = 30, 1, 128, 1e-3
FACTORS, SAMPLES = 6, 30
HEADERS = ["head", "accuracy", "NLL (nats)", "ECE", "AUGRC", "AUROC unknown", "seconds"]


class Data(NamedTuple):
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_far: np.ndarray | None


# --- Features ---------------------------------------------------------------------------------


def digits(epochs, seed=0):
    """Features of scikit-learn's digits by a network of others of them; far are inverted ones."""
    from sklearn import datasets

    found = datasets.load_digits()
    images = found.images[..., None].astype("float32") / 16
    rng = np.random.default_rng(seed)
    known, train, test = np.split(rng.permutation(len(images)), [500, 1200])
    trunk = keras.Sequential([keras.Input((8, 8, 1))])
    for width in (32, 64):
        trunk.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        trunk.add(layers.MaxPooling2D())
    trunk.add(layers.Flatten())
    trunk.add(layers.Dense(64, activation="relu"))
    whole = keras.Sequential([trunk, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    whole.compile("adam", loss, jit_compile=False)
    whole.fit(images[known], found.target[known], epochs=epochs, verbose=0)
    wrong = rng.random(len(train)) < NOISE
    noisy = np.where(wrong, LOOK_ALIKE[found.target[train]], found.target[train])
    of = [trunk.predict(x, verbose=0) for x in (images[train], images[test], 1 - images[test])]
    return Data(of[0], noisy, of[1], found.target[test], of[2])


def read_features(path):
    path = pathlib.Path(path)
    if not path.is_file():
        raise SystemExit(f"error: there is no file {str(path)!r}")
    with np.load(path) as file:
        missing = {"x_train", "y_train", "x_test", "y_test"} - set(file.files)
        if missing:
            raise SystemExit(f"error: {str(path)!r} has no {', '.join(sorted(missing))}")
        x = {name: file[name].astype("float32") for name in file.files if name.startswith("x_")}
        return Data(x["x_train"], file["y_train"], x["x_test"], file["y_test"], x.get("x_far"))


# --- Heads ------------------------------------------------------------------------------------


def heads(classes, rows):
    """The one line that differs."""
    noisy = {"num_factors": FACTORS, "logits_only": True}
    return {
        "Dense": lambda: layers.Dense(classes),
        "HET": lambda: tfuq.layers.MCSoftmaxDenseFA(classes, **noisy),
        "HET-XL": lambda: tfuq.layers.MCSoftmaxDenseXL(classes, **noisy),
        "VBLL": lambda: tfuq.layers.VBLLDense(classes, kl_weight=1 / rows),
        "SNGP": lambda: tfuq.layers.SNGPDense(classes),
    }


def train(head, data, epochs, seed):
    """A model of features that ends in `head`."""
    keras.utils.set_random_seed(seed)
    scale = layers.Normalization()
    scale.adapt(data.x_train)
    model = keras.Sequential([keras.Input(data.x_train.shape[1:]), scale, head()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, jit_compile=False)
    model.fit(data.x_train, data.y_train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return model


def compare(data, epochs=EPOCHS, seed=0):
    """`{head: (probabilities of the test rows, of the unknown or None, seconds)}`."""
    classes, found = int(max(data.y_train.max(), data.y_test.max())) + 1, {}
    for name, head in heads(classes, len(data.x_train)).items():
        start = time.perf_counter()
        model = train(head, data, epochs, seed)
        found[name] = (*predicted(model, data), time.perf_counter() - start)
        if name == "Dense":
            start, before = time.perf_counter(), found[name][-1]
            model = tfuq.convert.laplace_head(model, (data.x_train, data.y_train))
            laplace = (*predicted(model, data), before + time.perf_counter() - start)
        print(f"{name} is done", flush=True)
    return {**found, "Laplace": laplace}


def predicted(model, data):
    def of(x):
        return tfuq.predictive.predict_uncertainty(model, x, SAMPLES, from_logits=True).probs

    return of(data.x_test), None if data.x_far is None else of(data.x_far)


def measured(data, found):
    """`{head: [accuracy, NLL, ECE, AUGRC, AUROC of the unknown or NaN, seconds]}`."""
    rows = {}
    for name, (probs, far, seconds) in found.items():
        unknown = np.nan
        if far is not None:
            doubt = 1 - np.concatenate([probs.max(-1), far.max(-1)])
            unknown = tfuq.metrics.auroc(np.repeat([0, 1], [len(probs), len(far)]), doubt)
        rows[name] = [
            float(np.mean(probs.argmax(-1) == data.y_test)),
            float(tfuq.metrics.negative_log_likelihood(data.y_test, probs)),
            float(tfuq.metrics.expected_calibration_error(data.y_test, probs)),
            float(tfuq.selective.augrc(probs, data.y_test)),
            float(unknown),
            seconds,
        ]
    return rows


# --- Table and picture ------------------------------------------------------------------------


def print_table(rows):
    lines = [HEADERS]
    for name, row in rows.items():
        lines.append([name, *(f"{value:.4f}" for value in row[:-1]), f"{row[-1]:.1f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in (lines[0], ["-" * width for width in widths], *lines[1:]):
        print(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def draw(data, found, folder, note=None):
    """The risk of all heads over their coverage, under a note."""
    probs = {name: of_test for name, (of_test, *_) in found.items()}
    figure = tfuq.plots.risk_coverage(probs, data.y_test).figure
    figure.suptitle(note, color="tab:red")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "last_layers.png", dpi=120)
    print(f"\nFigure: {folder / 'last_layers.png'}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", metavar="FILE", help="a .npz file of frozen features")
    parser.add_argument("--quick", action="store_true", help="an epoch, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    arguments = parser.parse_args(argv)
    epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
    if arguments.features:
        data = read_features(arguments.features)
    else:
        print("Scikit-learn's digits with SYNTHETIC label noise: look-alikes confused")
        data = digits(epochs, arguments.seed)
    print(f"{len(data.x_train)} training rows of {data.x_train.shape[1]} features")
    found = compare(data, epochs, arguments.seed)
    print_table(measured(data, found))
    note = "--quick: one epoch. This picture means nothing."
    draw(data, found, arguments.output, note if arguments.quick else None)


if __name__ == "__main__":
    main()
