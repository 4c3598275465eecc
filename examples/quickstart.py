"""Change one line, refuse what is unsure, ship it: handwritten digits from scan to SavedModel.

    python examples/quickstart.py --output demo_output

It trains the same small network twice on scikit-learn's handwritten digits, with the heads `Dense`
and `MCSoftmaxDenseFA`. It shows what each refuses at several thresholds, on clean, noisy and
blurred images, and draws it. It fits a rule that keeps the error of accepted answers under a
target, and exports the second network with that rule. Plain TensorFlow, in a process that cannot
import tfuq, loads the export, answers and decides the same. It also writes the model, data and
images for the command line.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tfuq

TARGET_RISK = 0.03  # at most this share of the accepted answers is wrong
CHECK = """
import sys
sys.modules["tfuq"] = None  # importing it fails from here on
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
data = np.load(sys.argv[2])
for size in (1, 7, len(data["x"])):
    served = model.serve(tf.constant(data["x"][:size]))
    probs = served["probabilities"].numpy()
    print(f"  batch of {size}: largest difference {np.abs(probs - data['probs'][:size]).max():.1e},"
          f" {served['accept'].numpy().sum()} accepted")
    np.testing.assert_allclose(probs, data["probs"][:size], atol=1e-5)
    np.testing.assert_array_equal(served["accept"], data["accept"][:size])
"""


def load_data():
    """Stratified 70/15/15 split: {part: (images (n, 8, 8, 1) in [0, 1], labels (n,))}."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    x, x_rest, y, y_rest = train_test_split(
        images, digits.target, train_size=0.7, stratify=digits.target, random_state=0
    )
    x_val, x_test, y_val, y_test = train_test_split(
        x_rest, y_rest, train_size=0.5, stratify=y_rest, random_state=0
    )
    return {"train": (x, y), "validation": (x_val, y_val), "test": (x_test, y_test)}


def build_model(head):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            head,
        ]
    )


def train(model, data, epochs):
    rejection = tfuq.callbacks.RejectionEvaluator(data["validation"], from_logits=True, verbose=0)
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", tfuq.metrics.ExpectedCalibrationError(from_logits=True, name="ece")],
    )
    options = {"validation_data": data["validation"], "callbacks": [rejection], "verbose": 0}
    history = model.fit(*data["train"], epochs=epochs, **options).history
    print(f"{epochs} epochs: validation accuracy {history['val_accuracy'][-1]:.3f}")
    return rejection


def corrupted(images):
    """The same images as a bad scanner gives them."""
    noise = np.random.default_rng(0).normal(scale=0.35, size=images.shape)
    return {
        "clean": images,
        "noisy": np.clip(images + noise, 0, 1).astype("float32"),
        "blurred": ndimage.gaussian_filter(images, sigma=(0, 1.2, 1.2, 0)),
    }


def probabilities(model, images):
    return tfuq.predictive.predict_uncertainty(model, images).probs


def compared(condition, found, labels):
    """A sentence: which of two models is right more often, and whether that is more than chance.

    Of the images on which one model alone is right, chance gives each model half, with a standard
    deviation of half their root (McNemar 1947): the difference has the root itself.
    """
    right = {name: probs.argmax(axis=-1) == labels for name, probs in found.items()}
    (first, one), (second, other) = right.items()
    more, less = int((other & ~one).sum()), int((one & ~other).sum())
    noise = 2 * np.sqrt(more + less)
    better = second if more > less else first
    verdict = "neither is better" if abs(more - less) <= noise else f"{better} is better"
    return (
        f"Of {len(labels)} {condition} images only {second} gets {more} right, only {first} {less}."
        f" Chance explains a difference of up to {noise:.0f}: {verdict}."
    )


def report(models, images, labels):
    """Prints what each model refuses; returns {(condition, model): probabilities}."""
    print(
        "\nThe tables show, of the images that a threshold accepts: accuracy, coverage (the share "
        "accepted),\nrejected (the rest), risk (share of wrong answers), ECE (calibration error)."
    )
    probs = {}
    for condition, x in corrupted(images).items():
        for name, model in models.items():
            probs[condition, name] = probabilities(model, x)
            evaluator = tfuq.callbacks.RejectionEvaluator((x, labels), from_logits=True)
            evaluator.evaluate(model)
            print(f"\n{name} on {condition} test images\n{evaluator.table()}")
        print(compared(condition, {name: probs[condition, name] for name in models}, labels))
    return probs


def refused(probs, threshold=0.9):
    return float(np.mean(probs.max(axis=-1) < threshold))


def draw(probs, labels, models, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    head = list(models)[-1]
    for axis, condition in zip(axes[0], ("clean", "noisy", "blurred"), strict=True):
        curves = {name: probs[condition, name] for name in models}
        tfuq.plots.rejection_curve(labels, curves, ax=axis)
        axis.set_title(f"{condition} images")
    tfuq.plots.confidence_histogram(
        probs["clean", head], y_true=labels, threshold=0.9, ax=axes[1, 0]
    )
    tfuq.plots.confidence_histogram(
        probs["noisy", head], y_true=labels, threshold=0.9, ax=axes[1, 1]
    )
    tfuq.plots.reliability_diagram(labels, probs["noisy", head], n_bins=10, ax=axes[1, 2])
    for axis, condition in zip(axes[1], ("clean", "noisy", "noisy"), strict=True):
        axis.set_title(f"{head}, {condition} images")
    figure.savefig(output / "rejection.png", dpi=90)
    print(f"\nPictures of these tables: {output / 'rejection.png'}")


def fit_rule(model, data, probs):
    """The rule that accepts as much as the target of the risk allows, from validation images."""
    x_val, y_val = data["validation"]
    fit, probs_val = tfuq.selective.RejectionRule.fit, probabilities(model, x_val)
    target = TARGET_RISK
    try:
        rule = fit(probs_val, y_val, target_risk=target)
    except tfuq.selective.UnattainableRisk as refusal:  # after a training that is too short
        print(f"\n{refusal}")
        target = np.nextafter(refusal.best_risk, 1)
        rule = fit(probs_val, y_val, target_risk=target)
    print(f"\nThe rule, fitted to {len(y_val)} validation images. {rule.describe()}")
    print("On the test images:")
    broken = []
    for condition in ("clean", "noisy", "blurred"):
        found = rule.evaluate(probs[condition, "MCSoftmaxDenseFA"], data["test"][1])
        wrong = f", of which {found.risk:.1%} are wrong" if found.accepted else ""
        print(f"  {condition}: accepts {found.coverage:.0%}{wrong}")
        if found.risk_lower > target:  # of its 95 % interval: more than chance
            broken.append(condition)
    if broken:
        print(
            f"On {' and '.join(broken)} images the promise is broken: it holds only for images "
            "like those of the validation,\nand these differ (a shift). `rule.monitor()` raises an "
            "alarm in such a case."
        )
    return rule


def export(model, rule, images, probs, output):
    """Writes the SavedModel, and has plain TensorFlow answer and decide the same."""
    names = [str(digit) for digit in range(10)]
    tfuq.predictive.declare(model, class_names=names, value_range=(0, 1))
    path = output / "saved_model"
    rule.save(output / "rule.json")
    tfuq.export.export(model, path, rule=rule, overwrite=True)
    np.savez(output / "expected.npz", x=images, probs=probs, accept=rule.accept(probs))
    print(f"\nSavedModel: {path}")
    print("Plain TensorFlow, without tfuq, returns the same probabilities and decisions:")
    command = [sys.executable, "-c", CHECK, str(path), str(output / "expected.npz")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def save_for_command_line(model, data, output, per_class=5):
    """The model, labelled data, and some test images in a folder for each class."""
    model.save(output / "model.keras")
    for part in ("validation", "test"):
        np.savez(output / f"{part}.npz", x=data[part][0], y=data[part][1])
    shutil.rmtree(output / "images", ignore_errors=True)
    images, labels = data["test"]
    for digit in range(10):
        folder = output / "images" / str(digit)
        folder.mkdir(parents=True)
        for number in np.flatnonzero(labels == digit)[:per_class]:
            pixels = np.round(255 * images[number])  # a PNG holds 0 to 255
            keras.utils.save_img(folder / f"{number}.png", pixels, scale=False)
    print(f"\nFor the command line: model.keras, validation.npz, test.npz and images/ in {output}.")
    print("The commands: docs/how-to/production.md, or `tfuq --help`.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    data = load_data()
    heads = {
        "Dense": keras.layers.Dense(10),
        "MCSoftmaxDenseFA": tfuq.layers.MCSoftmaxDenseFA(10, num_factors=3, logits_only=True),
    }
    models = {}
    for name, head in heads.items():
        print(f"\nTraining with {name}")
        models[name] = build_model(head)
        train(models[name], data, arguments.epochs).to_csv(arguments.output / f"{name}.csv")
    images, labels = data["test"]
    probs = report(models, images, labels)
    for name in models:
        shares = [refused(probs[condition, name]) for condition in ("clean", "noisy", "blurred")]
        line = "refused at threshold 0.9: clean {:.0%}, noisy {:.0%}, blurred {:.0%}"
        print(f"\n{name}, " + line.format(*shares))
    draw(probs, labels, models, arguments.output)
    model = models["MCSoftmaxDenseFA"]
    rule = fit_rule(model, data, probs)
    export(model, rule, images, probs["clean", "MCSoftmaxDenseFA"], arguments.output)
    save_for_command_line(model, data, arguments.output)


if __name__ == "__main__":
    main()
