"""Draws every picture of tfuq, and the page of `tfuq.report`, on scikit-learn's digits.

Pictures of numbers use its diabetes set and a known curve; the examples draw their own pictures.

    python docs/gallery/make.py                  # into the folder of this script, with its README
    python docs/gallery/make.py --output DIR --width print

At screen width a picture of one panel is 560 pixels wide; at print width 85 mm, a column of a
paper, at 300 dots to the inch. The picture of the page needs a Chromium and Playwright; without
them the script says so and keeps the old one. It needs the extra `examples`.
"""

import argparse
import functools
import io
import os
import pathlib
import runpy
import sys
import tempfile
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

import tfuq
from tfuq import interpret, plots

HERE = pathlib.Path(__file__).resolve().parent
WIDTHS = {"screen": (5.6, 100), "print": (85 / 25.4, 300)}  # inches, dots to the inch
TITLE = """# Gallery

`python docs/gallery/make.py` draws every picture: those of classes on scikit-learn's digits, those
of numbers on its diabetes set and on a known curve.
"""
PAGE = "report.png"
NOISE, EPOCHS, SAMPLES = 0.5, 15, 30


class Digits(NamedTuple):
    """Images in [0, 1], `(n, 16, 16, 1)`, labels, and which of the images are noisy."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray


# --- What is drawn ----------------------------------------------------------------------------


def read_digits():
    """Digits for training, for the rule and for the test; half of each are noisy."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    x = tf.image.resize(digits.images[..., None] / 16, (16, 16)).numpy()
    noisy = rng.random(len(x)) < 0.5
    x = (x + noisy[:, None, None, None] * rng.normal(scale=NOISE, size=x.shape)).clip(0, 1)
    group = np.where(noisy, "noisy", "clean")
    rows = np.split(rng.permutation(len(x)), [700, 1200])
    return [Digits(x[part].astype("float32"), digits.target[part], group[part]) for part in rows]


def compiled(layers, data, callbacks=()):
    keras.utils.set_random_seed(0)
    conv = keras.layers.Conv2D(24, 3, activation="relu", padding="same", strides=2)
    first = keras.layers.Conv2D(16, 3, activation="relu", padding="same")
    pool = [keras.layers.MaxPooling2D(), keras.layers.Flatten()]
    body = [keras.Input((16, 16, 1)), first, conv, *pool]
    model = keras.Sequential([*body, keras.layers.Dense(48, activation="relu"), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    if data is not None:
        model.fit(data.x, data.y, epochs=EPOCHS, verbose=0, callbacks=list(callbacks))
    return model


class Shown:
    """The networks and predictions that the pictures share."""

    def __init__(self):
        self.train, self.fit, self.test = read_digits()
        train = self.train
        self.rates = tfuq.callbacks.SGDR(0.01, cycle_length=1, cycle_mult=2)
        head = tfuq.layers.VBLLDense(10, kl_weight=1 / len(train.x))
        self.model = compiled([head], train, [self.rates])
        self.noisy_head = compiled(
            [tfuq.layers.MCSoftmaxDenseFA(10, num_factors=4, logits_only=True)], train
        )
        stack = tfuq.predictive.sample_predictions(self.model, self.test.x, SAMPLES)
        self.stack, self.found = stack, tfuq.predictive.decompose(stack)
        self.probs = self.found.probs
        self.wrong = self.found.label != self.test.y
        self.other = tf.nn.softmax(self.noisy_head.predict(self.test.x, verbose=0)).numpy()
        fit = tfuq.predictive.sample_predictions(self.model, self.fit.x, SAMPLES).mean(axis=0)
        self.rule = tfuq.selective.RejectionRule.fit(fit, self.fit.y, target_risk=0.06)
        self.strange = np.random.default_rng(1).random((300, 16, 16, 1)).astype("float32")
        self.upside_down = self.test.x[:, ::-1]

    @functools.cached_property
    def numbers(self):
        return ShownNumbers()


class ShownNumbers:
    """Predicted numbers that pictures share: of a curve, and of the progress of diabetes."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = np.concatenate([rng.uniform(-3, -0.5, 80), rng.uniform(1, 3, 60)])[:, None]
        self.y = np.sin(2 * self.x) + (0.1 + 0.08 * (self.x + 3)) * rng.normal(size=(140, 1))
        self.grid = np.linspace(-3.5, 3.5, 300)[:, None]
        data = load_diabetes()
        rows = np.split(rng.permutation(len(data.target)), [220])
        x = data.data / data.data.std(axis=0)
        (train, y), (test, self.progress) = ((x[part], data.target[part]) for part in rows)
        centre, size = y.mean(), y.std()
        self.found = {}
        for name, epochs in (("stopped early", 8), ("trained for long", 80)):
            params = fitted_numbers(train, (y - centre) / size, epochs, 0).predict(test, verbose=0)
            params = params.astype("float64") * size + [centre, 0.0]
            self.found[name] = tfuq.predictive.RegressionUncertainty(params[None], "normal")

    @functools.cached_property
    def curve(self):
        """What five networks say of the curve: `RegressionUncertainty`."""
        models = [fitted_numbers(self.x, self.y, 130, seed) for seed in range(5)]
        stack = np.stack([model.predict(self.grid, verbose=0) for model in models])
        return tfuq.predictive.RegressionUncertainty(stack, "normal")


def fitted_numbers(x, y, epochs, seed):
    keras.utils.set_random_seed(seed)
    head = tfuq.layers.NormalDense(1)
    hidden = [keras.layers.Dense(32, activation="tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input(x.shape[1:]), *hidden, head])
    loss = head.negative_log_likelihood()
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x, y, epochs=epochs, batch_size=15, verbose=0)
    return model


# --- Pictures ---------------------------------------------------------------------------------


def rejection_curve(shown, ax):
    """Accuracy and share of the accepted answers as the threshold rises."""
    models = {"VBLLDense": shown.probs, "MCSoftmaxDenseFA": shown.other}
    plots.rejection_curve(shown.test.y, models, ax=ax)


def risk_coverage(shown, ax):
    """The risk that a rule promises, and the risk on images that it was not fitted to."""
    plots.risk_coverage(shown.probs, shown.test.y, rule=shown.rule, ax=ax)


def confidence_histogram(shown, ax):
    """Confidence of right and of wrong answers."""
    plots.confidence_histogram(shown.probs, y_true=shown.test.y, threshold=0.7, ax=ax)


def reliability_diagram(shown, ax):
    """Accuracy at each confidence, with counts."""
    plots.reliability_diagram(shown.test.y, shown.probs, n_bins=10, ax=ax)


def confusion_matrix(shown, ax):
    """True classes against predicted classes."""
    plots.confusion_matrix(shown.test.y, shown.probs, ax=ax)


def confusion_difference(shown, ax):
    """The confusion matrix of one model minus that of another (Mishra 2020, figure 3-13)."""
    plots.confusion_difference(
        shown.test.y, shown.probs, shown.other, models=("VBLLDense", "MCSoftmaxDenseFA"), ax=ax
    )


def roc_curves(shown, ax):
    """ROC of chosen classes against all others."""
    plots.roc_curves(shown.test.y, shown.probs, classes=[1, 3, 8, 9], ax=ax)


def confused_pairs(shown, ax):
    """The most confused pairs of two models (Mishra 2020, figure 4-5)."""
    runs = [shown.probs, shown.other]
    plots.confused_pairs(interpret.confused_pairs(shown.test.y, runs, top=8), ax=ax)


def label_noise_pairs(shown, ax):
    """Pairs of labels whose noise a heteroscedastic head finds correlated (Collier et al. 2021)."""
    plots.label_noise_pairs(interpret.label_noise_pairs(shown.noisy_head, shown.test.x), ax=ax)


def uncertainty_against_error(shown, ax):
    """Share of wrong answers at each level of an uncertainty."""
    score = shown.found.predictive_entropy
    plots.uncertainty_against_error(score, shown.wrong, xlabel="entropy (nats)", ax=ax)


def intervals_over(shown, ax):
    """Predicted numbers over one input; the darker part of the interval is epistemic."""
    numbers = shown.numbers
    plots.intervals_over(numbers.grid, numbers.curve, xlabel="input", ax=ax)
    ax.plot(numbers.x, numbers.y, ".", color="black", markersize=3, label="training examples")
    ax.set_ylim(-3, 4)
    ax.legend(fontsize="small", loc="upper left")


def predicted_against_true(shown, ax):
    """Predicted numbers with their intervals against the true numbers."""
    numbers = shown.numbers
    found = numbers.found["stopped early"]
    plots.predicted_against_true(numbers.progress, found, quantity="progress", ax=ax)


def quantile_calibration(shown, ax):
    """Share of the labels below each predicted quantile, beside the range that chance allows."""
    plots.quantile_calibration(shown.numbers.progress, shown.numbers.found, ax=ax)


def error_against_width(shown, ax):
    """Error against the width of the interval: do wider intervals have larger errors?"""
    numbers = shown.numbers
    found = numbers.found["stopped early"]
    plots.error_against_width(numbers.progress, found, n_bins=6, quantity="progress", ax=ax)


def monitor_process(shown, ax):
    """Evidence against a rule's promise as digits arrive, upside down from the 300th on."""
    logits = [
        shown.noisy_head.predict(x, verbose=0)
        for x in (shown.fit.x, shown.test.x, shown.upside_down)
    ]
    fit = tfuq.selective.RejectionRule.fit
    rule = fit(logits[0], shown.fit.y, target_risk=0.1, from_logits=True)
    order = np.random.default_rng(0).permutation(len(shown.test.y))[:500]
    stream = np.concatenate([logits[1][order[:300]], logits[2][order[300:]]])
    plots.monitor_process(rule.monitor(), stream, shown.test.y[order], ax=ax)


def detection_histograms(shown, ax):
    """Scores of known and of unknown inputs, and the share that a threshold detects."""
    detector = tfuq.ood.Mahalanobis().fit(shown.noisy_head, (shown.train.x, shown.train.y))
    sets = {"digits": shown.test.x, "upside down": shown.upside_down, "noise": shown.strange}
    scores = {name: np.log10(detector.score(x)) for name, x in sets.items()}
    threshold = np.log10(detector.threshold_at(tpr=0.95).value)
    plots.detection_histograms(scores, threshold=threshold, xlabel="log10 Mahalanobis", ax=ax)


def lr_range_test(shown, ax):
    """Loss as the learning rate grows, and the rate that the range test suggests."""
    model = compiled([keras.layers.Dense(10)], None)
    model.compile(keras.optimizers.SGD(momentum=0.9), model.loss, jit_compile=False)
    plots.lr_range_test(
        tfuq.lr_range_test(model, (shown.train.x, shown.train.y), num_steps=100), ax
    )


def learning_rate_curve(shown, ax):
    """Learning rate of a training with warm restarts."""
    plots.learning_rate_curve(shown.rates, ax)


def corruption_heat_map(shown, ax):
    """Accuracy under corruptions of growing severity."""
    report = tfuq.corruptions.corruption_report(
        shown.noisy_head,
        (shown.test.x[:200], shown.test.y[:200]),
        corruptions=["gaussian_noise", "defocus_blur", "fog", "contrast"],
        severities=[1, 3, 5],
    )
    plots.corruption_heat_map(report, ax=ax)


def accept_reject_grid(shown, figure):
    """Examples just above the threshold, and just below."""
    plots.accept_reject_grid(
        shown.test.x, shown.test.y, shown.probs, threshold=0.7, count=5, figure=figure
    )


def explanation_maps(shown, figure):
    """Where a network sees its class, and what makes it unsure."""
    rows = np.flatnonzero(shown.wrong)[:3]
    x, model = shown.test.x[rows], shown.model
    sampled = {"num_samples": SAMPLES, "layer": model.layers[1]}
    maps = {
        "Grad-CAM": interpret.grad_cam(model, x, layer=model.layers[1]),
        "guided": interpret.guided_grad_cam(model, x, layer=model.layers[1]),
        "unsure": interpret.grad_cam(model, x, target="predictive_entropy", relu=False, **sampled),
        "occlusion": interpret.occlusion(model, x, 4, 1),
    }
    titles = [f"{shown.test.y[i]}, taken for {shown.found.label[i]}" for i in rows]
    plots.explanation_maps(x, maps, titles=titles, figure=figure)


def uncertainty_maps(shown, figure):
    """A segmentation, its errors and its uncertainty."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 1))])
    for width in (16, 16):
        model.add(layers.Conv2D(width, 3, activation="relu", padding="same"))
    model.add(tfuq.layers.MCDropout(0.3))
    model.add(layers.Conv2D(1, 1, activation="sigmoid"))
    clean = shown.train.x[shown.train.group == "clean"]
    masks = (clean > 0.4).astype("float32")
    rng = np.random.default_rng(0)
    noisy = (clean + rng.normal(scale=NOISE, size=clean.shape)).astype("float32")
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    model.fit(noisy[3:], masks[3:], epochs=EPOCHS, verbose=0)
    stack = tfuq.predictive.sample_predictions(model, noisy[:3], SAMPLES)
    plots.uncertainty_maps(noisy[:3], masks[:3].astype(int), stack, figure=figure)


def gradient_distributions(shown, figure):
    """Squared norms of gradients of known and of unknown inputs (Lee and AlRegib, figure 3)."""
    features = tfuq.ood.GradientFeatures(shown.noisy_head, confounding_label="all")
    sets = {"digits": shown.test.x, "upside down": shown.upside_down, "noise": shown.strange}
    norms = {name: features(x) for name, x in sets.items()}
    plots.gradient_distributions(norms, columns=[0, 2, 4, 6], figure=figure)


SINGLE = (
    rejection_curve,
    risk_coverage,
    confidence_histogram,
    reliability_diagram,
    confusion_matrix,
    confusion_difference,
    roc_curves,
    confused_pairs,
    label_noise_pairs,
    uncertainty_against_error,
    intervals_over,
    predicted_against_true,
    quantile_calibration,
    error_against_width,
    monitor_process,
    detection_histograms,
    lr_range_test,
    learning_rate_curve,
    corruption_heat_map,
)
SEVERAL = {  # height of the figure as a share of its width
    accept_reject_grid: 0.5,
    explanation_maps: 0.65,
    uncertainty_maps: 0.85,
    gradient_distributions: 0.7,
}


EXAMPLES = {  # by the picture that the script writes: the script, and what is shown
    "regression": (
        "examples/regression.py",
        "Progress of diabetes, predicted with intervals: three heads of one network, conformal "
        "intervals, and the error against the width.",
    ),
    "nuclei_count": (
        "examples/nuclei_count.py",
        "The number of nuclei on microscope images, predicted by a network with `NormalDense`: "
        "conformal intervals on images that nothing was fitted to, and the error against the "
        "width.",
    ),
    "last_layers": (
        "examples/last_layers.py",
        "Six last layers on the same frozen features of digits, with two in five labels confused: "
        "the share of wrong answers among the accepted ones.",
    ),
    "five_cases": (
        "examples/tutorials/regression_five_cases.py",
        "TFP's tutorial: a line, and its uncertainty in five steps.",
    ),
    "two_moons": (
        "examples/tutorials/sngp_two_moons.py",
        "tensorflow.org's tutorial: where a residual network is certain, with a plain last layer "
        "and with a Gaussian process (`SNGPDense`).",
    ),
    "bayesian_neural_networks": (
        "examples/tutorials/bayesian_neural_networks.py",
        "Keras' tutorial: predicted and true quality of red wines (`uci_regression.npz`).",
    ),
}


# --- Files ------------------------------------------------------------------------------------


def draw(function, shown, width):
    """The figure as an image without transparency."""
    inches, dots = WIDTHS[width]
    is_single = function in SINGLE
    inches = inches if is_single else 1.5 * inches if width == "screen" else 2 * inches
    height = inches * (0.75 if is_single else SEVERAL[function])
    figure = Figure(figsize=(inches, height), layout="constrained")
    size = 10 if width == "screen" else 7
    with matplotlib.rc_context({"font.size": size, "lines.linewidth": size / 7}):
        function(shown, figure.subplots() if is_single else figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dots, bbox_inches="tight")
    return Image.open(buffer).convert("RGB")


def photograph(shown, path):
    """The page of `tfuq.report` in a browser; says why if there is none."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "report"))
    try:
        from browser import executable, launched

        if executable() is None:
            raise ImportError("no Chromium")
    except ImportError as error:
        print(f"{path.name} stays as it is: {error}")
        return
    test = shown.test
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        page = pathlib.Path(folder) / "report.html"
        options = {"images": test.x, "groups": test.group, "rule": shown.rule}
        tfuq.report.html((shown.probs, test.y), page, title="Digits", **options)
        view = browser.new_page(viewport={"width": 1000, "height": 1500})
        view.goto(page.as_uri())
        view.screenshot(path=path)
    Image.open(path).convert("RGB").save(path, optimize=True)


def draw_example(name, path, width):
    """The picture that an example writes, no wider than others of several panels."""
    inches, dots = WIDTHS[width]
    with tempfile.TemporaryDirectory() as folder:
        script = HERE.parents[1] / EXAMPLES[name][0]
        runpy.run_path(str(script))["main"](["--output", folder])
        with Image.open(pathlib.Path(folder) / f"{name}.png") as picture:
            widest = int(1.5 * inches * dots)
            height = round(picture.height * widest / picture.width)
            picture.convert("RGB").resize((widest, height), Image.LANCZOS).save(path, optimize=True)


def write_list(output):
    """README.md: each picture under its name, with what it shows."""
    parts = [TITLE]
    for function in (*SINGLE, *SEVERAL):
        name = function.__name__
        parts.append(f"## `plots.{name}`\n\n{function.__doc__}\n\n![{name}]({name}.png)\n")
    for name, (script, text) in EXAMPLES.items():
        parts.append(f"## `{script}`\n\n{text}\n\n![{name}]({name}.png)\n")
    text = "A page with a slider for the threshold: one file that needs no network."
    parts.append(f"## `report.html`\n\n{text}\n\n![The page]({PAGE})\n")
    (output / "README.md").write_text("\n".join(parts), encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=HERE, type=pathlib.Path, help="folder")
    parser.add_argument("--width", default="screen", choices=tuple(WIDTHS))
    parser.add_argument("--only", nargs="*", help="names of pictures; by default all")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    shown = Shown()
    print(f"accuracy {1 - shown.wrong.mean():.3f}")
    for function in (*SINGLE, *SEVERAL):
        if options.only is None or function.__name__ in options.only:
            picture = draw(function, shown, options.width)
            picture.save(options.output / f"{function.__name__}.png", optimize=True)
    for name in EXAMPLES:
        if options.only is None or name in options.only:
            draw_example(name, options.output / f"{name}.png", options.width)
    if options.only is None or "report" in options.only:
        photograph(shown, options.output / PAGE)
    write_list(options.output)


if __name__ == "__main__":
    main()
