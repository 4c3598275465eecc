"""What the two `sparse_bayes_*` examples share: the methods, how they train, and their table.

Every method gets the same number of epochs, and every network of an ensemble does. The partly
Bayesian ones train the first half of them deterministic, select their most salient weights and
train the second half with these random, all in one `fit`; or, with `--route convert`, a plain Keras
model is trained and converted in between. The fully Bayesian one is random from the first step.

The KL divergence is weighted by `beta / terms`, where `terms` is the number of labels that the
loss is a mean of: images, images times labels (multi-label) or pixels. With beta = 1 that is the
evidence lower bound of all training data; the paper does not say what its beta is relative to.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

import tfuq
from tfuq.ensembles import DeepEnsemble

METHODS = {  # the fraction of the weights that are random
    "deterministic": 0.0,
    "ensemble": 0.0,
    "partial 1 %": 0.01,
    "partial 5 %": 0.05,
    "partial 20 %": 0.2,
    "Bayesian": 1.0,
}
PAPER_FLOPS = dict(zip(METHODS, (1, 5, 3.36, 3.45, 3.8, 15), strict=True))
WEIGHT_DECAY, POSTERIOR_SCALE = 1e-5, 0.05
ESTIMATORS = ("reparameterization", "local_reparameterization", "flipout")


class Kit(NamedTuple):
    """The classes of layers that a network is made of."""

    conv: Callable = keras.layers.Conv2D
    up: Callable = keras.layers.Conv2DTranspose
    dense: Callable = keras.layers.Dense


class Problem(NamedTuple):
    """A data set, the network for it, and what is good."""

    build: Callable  # from a Kit to a model that returns logits, not compiled
    make_loss: Callable
    x: np.ndarray
    y: np.ndarray  # with several raters on the last axis, if `raters`
    x_test: np.ndarray
    judge: Callable  # from mean probabilities (n, ..., classes) to {name: figure}
    terms: int  # that the loss is a mean of, over all training data
    beta: tuple  # of the first epoch and of the last
    multi_label: bool = False
    raters: bool = False


class Batches(keras.utils.PyDataset):
    """Shuffled batches; of several raters, each image has that of one, drawn for each step."""

    def __init__(self, x, y, batch_size, seed, raters=False):
        super().__init__()
        self.x, self.y, self.batch_size, self.raters = x, y, batch_size, raters
        self.rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self.x) / self.batch_size)

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        if not self.raters:
            return self.x[rows], self.y[rows]
        chosen = self.rng.integers(self.y.shape[-1], size=len(rows))
        pairs = zip(rows, chosen, strict=True)
        return self.x[rows], np.stack([self.y[row, ..., rater] for row, rater in pairs])

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.x))


# --- Training ---------------------------------------------------------------------------------


def compiled(model, problem, settings):
    """The model with loss and optimizer; what weighs the noise is no weight that may decay.

    With `--quick` there are so few steps that to compile them takes longer than to run them.
    """
    optimizer = keras.optimizers.Adam(settings["rate"], weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["rho"])
    model.compile(optimizer, problem.make_loss(), run_eagerly=settings["quick"], jit_compile=False)
    return model


def batches_of(problem, settings, seed):
    return Batches(problem.x, problem.y, settings["batch_size"], seed, problem.raters)


def annealing(problem, epochs):
    """beta, from its first value in epoch 0 to its last in the last epoch."""
    first, last = problem.beta
    return tfuq.callbacks.KLAnnealing(first, last, duration=max(1, epochs - 1))


def sampling(settings):
    """Several draws of the random weights per step, if there are to be several."""
    count = settings["train_samples"]
    return [tfuq.callbacks.PosteriorSampling(count)] if count > 1 else []


def options_of(problem, settings):
    """Of random layers."""
    return {
        "kl_weight": 1 / problem.terms,
        "estimator": settings["estimator"],
        "posterior_scale": POSTERIOR_SCALE,
    }


def train_deterministic(problem, settings, seed, epochs=None):
    model = compiled(problem.build(Kit()), problem, settings)
    data = batches_of(problem, settings, seed)
    model.fit(data, epochs=epochs or settings["epochs"], verbose=settings["verbose"])
    return model


def train_ensemble(problem, settings, seed):
    def build():
        return compiled(problem.build(Kit()), problem, settings)

    def data(member):
        return batches_of(problem, settings, [seed, member])

    ensemble = DeepEnsemble(build, settings["members"], seed=seed)
    ensemble.fit(data, epochs=settings["epochs"], verbose=settings["verbose"])
    return ensemble


def train_bayesian(problem, settings, seed):
    """All kernels are Gaussian, from the first step on."""
    model = problem.build(Kit())
    model = tfuq.convert.variational(model, **options_of(problem, settings))
    callbacks = [annealing(problem, settings["epochs"]), *sampling(settings)]
    data = batches_of(problem, settings, seed)
    compiled(model, problem, settings).fit(
        data, epochs=settings["epochs"], callbacks=callbacks, verbose=settings["verbose"]
    )
    return model


def train_partial(problem, settings, seed, r_bayes):
    """Deterministic for half of the epochs, which end with the selection; then partly Bayesian.

    One `fit`, but for several draws per step: they would all be the same before the selection.
    """
    options = {"r_bayes": r_bayes, **options_of(problem, settings)}
    layers = tfuq.layers
    classes = layers.SparseBayesConv2D, layers.SparseBayesConv2DTranspose, layers.SparseBayesDense
    kit = Kit(*(functools.partial(made, **options) for made in classes))
    model = compiled(problem.build(kit), problem, settings)
    data, epochs = batches_of(problem, settings, seed), settings["epochs"]
    half = epochs // 2
    callbacks = [tfuq.callbacks.SaliencySelection(after_epoch=half), annealing(problem, epochs)]
    if sampling(settings):
        model.fit(data, epochs=half, callbacks=callbacks, verbose=settings["verbose"])
    model.fit(
        data,
        initial_epoch=half if sampling(settings) else 0,
        epochs=epochs,
        callbacks=[*callbacks, *sampling(settings)],
        verbose=settings["verbose"],
    )
    return model


def convert_partial(problem, settings, seed, r_bayes):
    """The same by `tfuq.convert.sparse_bayesian` from a plain model, with a new optimizer."""
    half = settings["epochs"] // 2
    model = train_deterministic(problem, settings, seed, half)
    data, options = batches_of(problem, settings, seed), options_of(problem, settings)
    model = tfuq.convert.sparse_bayesian(model, data, r_bayes=r_bayes, **options)
    compiled(model, problem, settings).fit(
        data,
        initial_epoch=half,
        epochs=settings["epochs"],
        callbacks=[annealing(problem, settings["epochs"]), *sampling(settings)],
        verbose=settings["verbose"],
    )
    return model


def train(method, problem, settings, seed):
    """A trained model, or ensemble."""
    keras.utils.set_random_seed(seed)
    whole = {
        "deterministic": train_deterministic,
        "ensemble": train_ensemble,
        "Bayesian": train_bayesian,
    }
    if method in whole:
        return whole[method](problem, settings, seed)
    partial = {"fit": train_partial, "convert": convert_partial}[settings["route"]]
    return partial(problem, settings, seed, METHODS[method])


def predict(method, trained, problem, settings, seed, x=None):
    """Probabilities of the samples or members, `(samples, n, ..., classes)`."""
    options = {
        "batch_size": settings["test_batch_size"],
        "from_logits": True,
        "multi_label": problem.multi_label,
    }
    x = problem.x_test if x is None else x
    if METHODS[method]:
        count = settings["samples"]
        return tfuq.predictive.sample_predictions(trained, x, count, seed=seed, **options)
    if method == "deterministic":
        trained = DeepEnsemble.from_models([trained])
    return trained.predict(x, **options)


def passes(method, settings):
    """Forward and backward passes over the training data, relative to the deterministic ones."""
    if method == "ensemble":
        return float(settings["members"])
    random = {"deterministic": 0.0, "Bayesian": 1.0}.get(method)
    if random is None:
        epochs = settings["epochs"]
        random = (epochs - epochs // 2) / epochs
    return 1 - random + random * settings["train_samples"]


# --- Runs -------------------------------------------------------------------------------------


def run_once(method, problem, settings, seed):
    """Trains and judges; returns the figures, and the stack of predictions for who draws them."""
    keras.utils.clear_session()
    start = time.perf_counter()
    trained = train(method, problem, settings, seed)
    trained_at = time.perf_counter()
    stack = predict(method, trained, problem, settings, seed)
    run = {
        "method": method,
        "seed": seed,
        **problem.judge(stack.mean(axis=0)),
        "passes": passes(method, settings),
        "seconds": trained_at - start,
        "test_seconds": time.perf_counter() - trained_at,
    }
    return run, stack


def read_runs(path, settings):
    """The finished runs in the file, which must have been made with the same settings."""
    if path is None or not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        differ = {k: v for k, v in stored["settings"].items() if settings.get(k) != v}
        raise ValueError(
            "Argument `--json` must name a new file, or one made with the same settings. "
            f"Received: {path}, made with {differ}, for { ({k: settings.get(k) for k in differ}) }"
        )
    return stored["runs"]


def write_runs(path, settings, runs):
    """Writes the whole file or nothing, so that an interrupted series can go on."""
    if path is not None:
        partial = path.with_suffix(".partial")
        text = json.dumps({"settings": settings, "runs": runs}, indent=1)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def run_all(problem, settings, arguments, after_run):
    """The runs that the arguments ask for; those that the file has are not made again.

    `after_run(method, seed, stack)` sees the predictions of each run that is made.
    """
    kept = {key: value for key, value in settings.items() if key != "verbose"}
    runs = read_runs(arguments.json, kept)
    done = {(run["method"], run["seed"]) for run in runs}
    for seed in arguments.seeds:
        for method in arguments.methods:
            if (method, seed) not in done:
                print(f"{method}, seed {seed}", flush=True)
                run, stack = run_once(method, problem, settings, seed)
                runs.append(run)
                write_runs(arguments.json, kept, runs)
                print(json.dumps({k: shorter(v) for k, v in run.items()}), flush=True)
                after_run(method, seed, stack)
    return kept, runs


def shorter(value):
    return round(value, 4) if isinstance(value, float) else value


# --- The table --------------------------------------------------------------------------------


def spread(values, digits):
    """Mean and, from two values on, standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def relative_flops(method, runs, step_flops):
    """Training relative to the deterministic one: passes, times what a step of each costs."""
    cost = runs[0]["passes"] * step_flops.get(method, 1.0)
    return f"{cost:.2f}"


def table_row(method, runs, columns, paper, step_flops):
    runs = [run for run in runs if run["method"] == method]
    ours = [spread([run[name] for run in runs], 4) for name in columns]
    cost = relative_flops(method, runs, step_flops)
    seconds = spread([run["seconds"] for run in runs], 0)
    theirs = [f"{value:.3f}" for value in paper[method]]
    return [method, str(len(runs)), *ours, cost, seconds, *theirs, f"{PAPER_FLOPS[method]:g}"]


def print_report(settings, runs, columns, paper, paper_columns, step_flops):
    """The table in markdown: ours, mean ± standard deviation over seeds, and the paper's beside."""
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    print(f"\n{shown}\n")
    titles = ["method", "seeds", *columns.values(), "training FLOPs", "seconds"]
    titles += [f"paper: {name}" for name in (*paper_columns, "FLOPs")]
    done = {run["method"] for run in runs}
    rows = [table_row(m, runs, columns, paper, step_flops) for m in METHODS if m in done]
    for row in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(row)} |")
    counted = "as `--flops` says" if step_flops else "counted alike, as one pass"
    print(f"\nTraining FLOPs: relative to deterministic, a step with random weights {counted}.")
    print("Paper: table 1 of Abboud et al. 2024, other data, size and epochs.")
    if settings.get("quick"):
        print("--quick: few images and epochs, so these figures mean nothing.")


# --- Arguments --------------------------------------------------------------------------------


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def default_folder():
    """Where the data are looked for unless `--data-dir` says otherwise."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    return pathlib.Path(os.environ.get("TFUQ_DATA") or beside)


def make_parser(description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", type=pathlib.Path, help="default: TFUQ_DATA, ../shared/data")
    add("--images", type=positive, help="how many to train on, at most; default: by data set")
    add("--test-images", type=positive, help="how many to test on, at most; default: by data set")
    add("--width", type=positive, help="channels of the first layers (8; the paper's network: 64)")
    add("--epochs", type=positive, help="default: by data set; an even number, at least 2")
    add("--rate", type=float, default=2e-3, help="learning rate of Adam (0.002)")
    add("--samples", type=positive, default=5, help="of the weights, for each prediction (5)")
    help_text = "of the weights, for each training step (1; the paper's is 5)"
    add("--train-samples", type=positive, default=1, help=help_text)
    add("--estimator", choices=ESTIMATORS, default=ESTIMATORS[0], help="(%(default)s)")
    add("--route", choices=("fit", "convert"), default="fit", help="to partial ones (fit)")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    add("--seeds", nargs="+", type=int, help="default: 0 1 2")
    add("--json", type=pathlib.Path, help="file that keeps the runs; those in it are not repeated")
    add("--report", action="store_true", help="print the table of the file and run nothing")
    add("--flops", type=pathlib.Path, help="JSON file: {method: FLOPs of a step / deterministic}")
    add("--quick", action="store_true", help="few images, 2 epochs, a small network: does it run?")
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for figures")
    add("--verbose", type=int, choices=(0, 1, 2), default=0, help="as in Keras' fit (0)")
    return parser


def read_arguments(parser, argv):
    arguments = parser.parse_args(argv)
    if arguments.epochs is not None and arguments.epochs % 2:
        parser.error(f"--epochs must be even, for two halves, not {arguments.epochs}")
    if not 0 < arguments.rate < math.inf:
        parser.error(f"--rate must be above 0, not {arguments.rate}")
    if arguments.report and (arguments.json is None or not arguments.json.is_file()):
        parser.error(f"--report needs --json with the file of a series, not {arguments.json}")
    if arguments.seeds is None:
        arguments.seeds = [0] if arguments.quick else [0, 1, 2]
    return arguments


def settings_of(arguments, defaults, more=()):
    """All that the figures depend on, but for the method and the seed.

    `more` names options, besides the usual, whose default is in `defaults`.
    """
    names = ("rate", "samples", "train_samples", "estimator", "route", "verbose")
    given = {name: getattr(arguments, name) for name in names}
    given["members"] = 2 if arguments.quick else 5
    for name in ("width", "epochs", "images", "test_images", *more):
        given[name] = getattr(arguments, name) or defaults[name]
    return {"dataset": arguments.dataset, "quick": arguments.quick, **defaults, **given}


def read_step_flops(path):
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def stored_runs(path):
    """The settings and the runs of a file."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["settings"], stored["runs"]


def missing(path, what):
    """The error for a file that is not there."""
    return FileNotFoundError(
        f"{path.name} is missing in {path.parent}: {what}. Name its folder with --data-dir or "
        "TFUQ_DATA; --quick alone needs no data."
    )


def read_file(folder, name, what):
    """The arrays of an `.npz` file, each read when asked for."""
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise missing(path, what)
    return np.load(path, allow_pickle=False)


def decode_jpegs(data, offsets, size=None):
    """The JPEG files of `data`, which stand end to end, as uint8 `(n, height, width, 3)`."""
    import io

    from PIL import Image

    images = []
    for file in np.split(data, offsets[1:-1]):
        image = Image.open(io.BytesIO(file.tobytes())).convert("RGB")
        images.append(image if size is None else image.resize((size, size), Image.Resampling.BOX))
    return np.stack(images)
