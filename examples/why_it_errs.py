"""Where a classifier errs and why: pairs, maps, what is hidden, marks, field of view, light.

    python examples/why_it_errs.py           # skin lesions, the file in --data or TFUQ_DATA
    python examples/why_it_errs.py --quick   # scikit-learn's digits, about a minute

What chapter 4 of Mishra (2020) does with photographs of skin, step by step:

1. A network is trained several times; which classes are taken for each other every time?
2. Of the most confused pair: where does the network see the true class, and where the other one?
3. If the centre of the images is hidden, does the background tell the class?
4. Ink on every training image of one class, as doctors leave it: does the network read the ink,
   do Grad-CAM and occlusion say so, and does it see the images again once the ink is removed?
5. Photographs from too far away: what does cropping to the centre bring back?
6. Photographs that are too dark: what does gamma bring back?

The ink, the distance and the darkness are planted, so that what is right is known. With `--quick`
four digits stand for the lesions. Tables are printed; figures and `results.json` go to `--output`.
It needs the extra `examples`.
"""

import argparse
import json
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow 2.21 ends the process where it trains this network with oneDNN on some processors.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import matplotlib

matplotlib.use("Agg")

import numpy as np
import rapid_training as base
import tensorflow as tf
from matplotlib.figure import Figure

import tfuq
from tfuq import interpret, plots, preprocessing

FILE = "ham10000_64_jpeg.npz"
INK = (0.1, 0.2, 0.9)
MARK_SHARE = 1 / 8  # of the side of an image
FAR, DARK = 0.5, 2.5  # share of the sides that is left of what matters; exponent of the darkness
CONFIDENT = 0.9
DIGITS = (1, 3, 8, 9)
NOISE = 0.3  # of digits, which are too easy without: a network then learns more than the ink
MAPS = 4  # images in a figure


class Images(NamedTuple):
    """Images, float in [0, 1], and labels, to train on and to judge by; names of the classes."""

    train: tuple
    test: tuple
    names: list


class Settings(NamedTuple):
    runs: int = 3
    epochs: int = 12
    width: int = 16
    stages: int = 3
    judged: int = 200  # images of which maps are made to count where they point
    min_accuracy: float = 0.6  # for a note that a network is too poor to be asked why


QUICK = Settings(runs=2, epochs=10, width=8, stages=2, judged=40)


# --- Data and networks ------------------------------------------------------------------------


def load_lesions(folder):
    """HAM10000 at 64 x 64 pixels, and the short names of its seven classes."""
    path = pathlib.Path(folder) / FILE
    parts = []
    for part in ("train", "test"):
        batches = list(tfuq.datasets.from_npz(path, part, batch_size=500))
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        parts.append((as_floats(images), labels))
    with np.load(path, allow_pickle=False) as file:
        return Images(*parts, [str(name) for name in file["classes"]])


def load_digits(seed=0):
    """Four of scikit-learn's handwritten digits that look alike, four times as large, noisy."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.isin(digits.target, DIGITS)
    images = np.repeat(digits.images[chosen, :, :, None] / 16, 3, axis=-1).astype("float32")
    images = tf.image.resize(images, (32, 32)).numpy()
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=(*images.shape[:3], 1))
    images = (images + noise).clip(0, 1).astype("float32")
    labels = np.searchsorted(DIGITS, digits.target[chosen])
    train, test = base.split_off(images, labels, 400, seed)
    return Images(train, test, [str(digit) for digit in DIGITS])


def as_floats(images):
    return np.asarray(images, "float32") / 255


def train_network(x, y, settings, seed):
    """A small residual network, trained with one cosine cycle of the learning rate."""
    keras.utils.set_random_seed(seed)
    shape = base.Settings(width=settings.width, stages=settings.stages)
    trunk = base.build_trunk(x.shape[1:], shape)
    inputs = keras.Input(x.shape[1:])
    features = trunk(keras.layers.Rescaling(255.0)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(int(y.max()) + 1, name="head")(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(base.sgd(), loss, metrics=["accuracy"], jit_compile=False)
    rates = tfuq.callbacks.SGDR(0.05, cycle_length=settings.epochs)
    model.fit(x, y, batch_size=32, epochs=settings.epochs, callbacks=[rates], verbose=0)
    return model


def predict(model, x):
    return tf.nn.softmax(model.predict(x, batch_size=256, verbose=0)).numpy()


def accuracy(model, x, y):
    return float(np.mean(predict(model, x).argmax(axis=-1) == y))


def show(title, text):
    print(f"\n## {title}\n\n{text}")


def save(figure, output, name, **size):
    if size:
        figure.set_size_inches(size["width"], size["height"])
    figure.savefig(output / name, dpi=100, bbox_inches="tight")


# --- 1. Pairs ---------------------------------------------------------------------------------


def confused_pairs(data, settings, output):
    """One of the networks, and the classes of the pair that all of them confuse most."""
    models = [train_network(*data.train, settings, seed) for seed in range(settings.runs)]
    probs = np.stack([predict(model, data.test[0]) for model in models])
    found = interpret.confused_pairs(data.test[1], probs, names=data.names, top=5)
    accuracies = [float(np.mean(run.argmax(axis=-1) == data.test[1])) for run in probs]
    show(f"Confused pairs of {settings.runs} networks", found.to_markdown())
    print(f"\nTest accuracy {np.mean(accuracies):.3f}.")
    if min(accuracies) < settings.min_accuracy:
        print("A network this poor has not learned enough to be asked why it errs.")
    figure = Figure(layout="constrained")
    plots.confused_pairs(found, ax=figure.subplots())
    save(figure, output, "pairs.png", width=6, height=3)
    pair = [data.names.index(name) for name in found.pairs[0][:2]]
    rows = [[p.first, p.second, p.mean, p.std, p.runs] for p in found.pairs]
    return models[0], pair, {"accuracy": accuracies, "pairs": rows}


# --- 2. Maps ----------------------------------------------------------------------------------


def maps_of_errors(model, pair, data, output):
    """Where errors of this pair come from; how alike the maps of both classes are."""
    x, y = data.test
    predicted = predict(model, x).argmax(axis=-1)
    wrong = np.flatnonzero(np.isin(y, pair) & np.isin(predicted, pair) & (predicted != y))
    if not len(wrong):
        print("\nThe first network makes no error of this pair.")
        return {"errors": 0}
    classes = np.stack([y, predicted], axis=-1)[wrong]
    maps = interpret.grad_cam(model, x[wrong], classes)
    likeness = [np.corrcoef(true.ravel(), other.ravel())[0, 1] for true, other in maps]
    shown = wrong[:MAPS]
    fine = interpret.guided_grad_cam(model, x[shown], predicted[shown][:, None])[:, 0]
    titles = [f"{data.names[y[i]]}\ntaken for {data.names[predicted[i]]}" for i in shown]
    columns = {"true class": maps[:MAPS, 0], "predicted class": maps[:MAPS, 1]}
    columns["guided, predicted"] = fine
    figure = plots.explanation_maps(x[shown], columns, titles=titles, figure=Figure())
    save(figure, output, "maps.png", width=8, height=2 * len(shown))
    alike = float(np.nanmean(likeness))
    names = " and ".join(data.names[k] for k in pair)
    text = f"{len(wrong)} errors of {names}; the maps of both classes correlate with {alike:.2f}."
    show("Where the network sees both classes", text)
    return {"errors": len(wrong), "correlation": alike}


# --- 3. The centre ----------------------------------------------------------------------------


def hidden_centre(model, data):
    """What is left of answers that were right and confident when the centre is hidden."""
    x, y = data.test
    probs = predict(model, x)
    sure = (probs.argmax(axis=-1) == y) & (probs.max(axis=-1) > CONFIDENT)
    found = interpret.center_occlusion(model, (x[sure], y[sure]), sizes=(0, 1 / 3, 1 / 2, 3 / 4))
    title = f"The centre of {sure.sum()} images whose answer is right and confident"
    show(title, found.to_markdown())
    columns = ("size", "hidden_accuracy", "kept_accuracy")
    return {name: list(map(float, getattr(found, name))) for name in columns}


# --- 4. Ink -----------------------------------------------------------------------------------


def with_ink(images, rows, seed):
    """A copy with a square of ink near a corner of the images in `rows`, and where it is."""
    rng = np.random.default_rng(seed)
    images, where = images.copy(), np.zeros(images.shape[:3], bool)
    side = images.shape[1]
    mark = max(round(side * MARK_SHARE), 2)
    for i in np.flatnonzero(rows):
        top, left = np.where(rng.random(2) < 0.5, rng.integers(1, mark, 2), side - mark - 1)
        where[i, top : top + mark, left : left + mark] = True
    images[where] = INK
    return images, where


def inked(data, marked):
    """The images with ink on class `marked` in training; in the test, on all the others."""
    (x, y), (test_x, test_y) = data.train, data.test
    train = with_ink(x, y == marked, seed=0)[0]
    test, where = with_ink(test_x, test_y != marked, seed=1)
    return (train, y), (test, test_y), where


def share_pointing_at(maps, where):
    """Share of maps whose largest value is in the ink, or as near as the map is coarse."""
    side = maps.shape[1]
    wide = keras.ops.max_pool(where[..., None].astype("float32"), side // 8 + 1, 1, "same")
    wide = np.asarray(wide)[..., 0] > 0
    peaks = maps.reshape(len(maps), -1).argmax(axis=1)
    return float(np.mean(wide.reshape(len(maps), -1)[np.arange(len(maps)), peaks]))


def behind_removal(model):
    """The network behind a layer that removes the ink, as it would be shipped."""
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(
        inputs, model(preprocessing.ConfounderRemoval([INK], value_range=(0, 1))(inputs))
    )


def without_ink(images):
    batches = np.array_split(images, -(-len(images) // 100))
    return np.concatenate([preprocessing.remove_confounders(x, [INK]) for x in batches])


def confounder(clean, data, settings, output, marked=None):
    """Accuracies with ink, and without it again; where maps of the network with ink point."""
    marked = int(np.bincount(data.train[1]).argmax()) if marked is None else marked
    train, test, where = inked(data, marked)
    removed = train_network(without_ink(train[0]), train[1], settings, seed=0)
    networks = {
        "clean": clean,
        "ink": train_network(*train, settings, seed=0),
        "ink, removed": behind_removal(removed),
    }
    judged = {"clean images": data.test, "ink on other classes": test}
    table = {
        name: {images: accuracy(model, *part) for images, part in judged.items()}
        for name, model in networks.items()
    }
    rows = [[name, *(f"{value:.3f}" for value in row.values())] for name, row in table.items()]
    lines = [["trained with", *judged], ["---"] + ["--:"] * len(judged), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    show(f"Ink on every training image of {data.names[marked]}: accuracy", text)
    found = pointing(networks["ink"], test[0], where, marked, settings, output)
    print("\nMaps of the network with ink, for the class of the ink, whose largest value is there:")
    print(", ".join(f"{name} {share:.2f}" for name, share in found.items()))
    return {"accuracy": table, "points_at_ink": found}


def pointing(model, x, where, marked, settings, output):
    """Shares of inked images in which each kind of map points at the ink."""
    chosen = np.flatnonzero(where.any(axis=(1, 2)))[: settings.judged]
    x, where = x[chosen], where[chosen]
    patch = max(round(x.shape[1] * MARK_SHARE), 2)
    maps = {
        "Grad-CAM": interpret.grad_cam(model, x, marked),
        "occlusion": interpret.occlusion(
            model, x, patch, max(patch // 2, 1), x.mean(axis=(0, 1, 2)), class_index=marked
        ),
    }
    removed = preprocessing.remove_confounders(x[:MAPS], [INK]).numpy()
    shown = {name: values[:MAPS] for name, values in maps.items()}
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1))
    plots.explanation_maps(x[:MAPS], shown, figure=left)
    for ax, image in zip(right.subplots(MAPS, 1, squeeze=False)[:, 0], removed, strict=False):
        ax.imshow(image)
        ax.set(xticks=[], yticks=[], title="ink removed" if image is removed[0] else "")
    save(figure, output, "confounder.png", width=9, height=2 * MAPS)
    return {name: share_pointing_at(values, where) for name, values in maps.items()}


# --- 5. and 6. Field of view, light -----------------------------------------------------------


def from_afar(images):
    """The images in the middle of a wider view, of the colour of their border, as large as before.

    What matters takes `FAR` of the sides.
    """
    side = images.shape[1]
    margin = round(side * (1 / FAR - 1) / 2)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    wide = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    inside = np.zeros(wide.shape[1:3], bool)
    inside[margin : margin + side, margin : margin + side] = True
    wide = np.where(inside[..., None], wide, np.median(border, axis=1)[:, None, None])
    return tf.image.resize(wide, (side, side), antialias=True).numpy().clip(0, 1)


def darkened(images):
    """As a camera with too little light: darker, in the 256 levels that a file keeps."""
    return np.round(images**DARK * 255).astype("float32") / 255


def gamma_to(images, brightness):
    """The exponent with which the mean brightness of the images becomes `brightness`.

    Found by bisection: the brightness falls as the exponent grows.
    """
    low, high = 0.1, 10.0
    for _ in range(30):
        middle = np.sqrt(low * high)
        if np.mean(images**middle) > brightness:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))


def corrections(model, data, output):
    """Accuracy from afar and in the dark, and with what is done against each."""
    x, y = data.test
    far, dark = from_afar(x), darkened(x)
    cropped = preprocessing.center_field_of_view(far, FAR, "original").numpy()
    gamma = gamma_to(dark, data.train[0].mean())
    lightened = preprocessing.adjust_gamma(dark, gamma).numpy()
    versions = {
        "as they are": x,
        "from afar": far,
        "from afar, cropped": cropped,
        "dark": dark,
        f"dark, gamma {gamma:.2f}": lightened,
    }
    found = {name: accuracy(model, images, y) for name, images in versions.items()}
    lines = ["| test images | accuracy |", "| --- | --: |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in found.items()]
    show("Field of view and light", "\n".join(lines))
    figure = Figure(layout="constrained")
    for column, (name, images) in zip(figure.subplots(3, 5).T, versions.items(), strict=True):
        column[0].set_title(f"{name}\n{found[name]:.3f}", fontsize="small")
        for ax, image in zip(column, images, strict=False):
            ax.imshow(image, vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    save(figure, output, "corrections.png", width=9, height=5.5)
    return found


# --- All --------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits, few epochs")
    parser.add_argument("--data", default=base.default_folder(), help=f"folder of {FILE}")
    parser.add_argument("--output", default="why_it_errs", help="folder for figures and results")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else Settings()
    data = load_digits() if options.quick else load_lesions(options.data)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    model, pair, results = confused_pairs(data, settings, output)
    results["maps"] = maps_of_errors(model, pair, data, output)
    results["centre"] = hidden_centre(model, data)
    results["confounder"] = confounder(model, data, settings, output, 3 if options.quick else None)
    results["corrections"] = corrections(model, data, output)
    (output / "results.json").write_text(json.dumps(results, indent=1))
    print(f"\nFigures and results.json in {output}")


if __name__ == "__main__":
    main()
