"""Numbers with intervals: how far diabetes has come a year later, by three heads of one network.

    python examples/regression.py           # scikit-learn's diabetes, 442 people
    python examples/regression.py --quick   # few epochs: does it run?

One small network is trained three times, and only its head differs: a normal distribution
(`NormalDense`), quantiles (`QuantileDense`), and a Bayesian last layer (`VBLLRegression`), which
also knows its own doubt. People that no network has learned from are then shared out. On one part
the intervals are made conformal, so that they hold the true number as often as was promised
whatever the network, and a rule is fitted that answers only where at most the given share of the
answers is further off than a tolerance. The rest says whether both hold. At last the network goes
with its intervals and the rule into one SavedModel. It needs the extra `examples`.
"""

import argparse
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfuq
from tfuq import metrics, selective
from tfuq.predictive import predict_uncertainty

SCALE = 100.0  # of the labels, 25 to 346: heads begin with a scale near 1
TOLERANCE = 90.0  # how far off an answer is called wrong
LEVEL = 0.9
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EPOCHS, QUICK_EPOCHS = 25, 4
WIDTH, RATE = 16, 3e-3
QUANTITY = "progress (hundreds)"
DECIDES = "quantiles"  # the head whose intervals are drawn, ruled by and shipped


class Part(NamedTuple):
    """What is known of some people, `(n, 10)`, and their progress in hundreds, `(n,)`."""

    x: np.ndarray
    y: np.ndarray


# --- Data and networks ------------------------------------------------------------------------


def load_diabetes(seed):
    """People to train on, to fit intervals and the rule on, and to judge by."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x, y = data.data / data.data.std(axis=0), data.target / SCALE
    rows = np.split(np.random.default_rng(seed).permutation(len(y)), [170, 310])
    return [Part(x[part].astype("float32"), y[part].astype("float32")) for part in rows]


METHODS = {"normal": "normalized", "quantiles": "cqr", "Bayesian": "normalized"}  # of conformal


def make_head(name, examples):
    """The last layer and its loss."""
    if name == "quantiles":
        head = tfuq.layers.QuantileDense(1, QUANTILES)
        return head, head.pinball()
    if name == "Bayesian":
        head = tfuq.layers.VBLLRegression(1, kl_weight=1 / examples)
    else:
        head = tfuq.layers.NormalDense(1)
    return head, head.negative_log_likelihood()


def train(name, part, epochs, seed):
    keras.utils.set_random_seed(seed)
    head, loss = make_head(name, len(part.y))
    hidden = keras.layers.Dense(WIDTH, activation="relu")
    model = keras.Sequential([keras.Input(part.x.shape[1:]), hidden, head])
    model.compile(keras.optimizers.Adam(RATE), loss, jit_compile=False)
    model.fit(part.x, part.y, batch_size=16, epochs=epochs, verbose=0)
    return model


# --- From the networks to intervals and a rule ------------------------------------------------


def print_table(header, rows):
    """Rows of a name and figures, as a table that Markdown reads too."""
    print("\n| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for name, *figures in rows:
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")


def compare(found, judge):
    """Figures of the networks as they are, in hundreds."""
    header = ("head", "RMSE", "CRPS", f"in its {LEVEL:.0%} interval", "width", "QCE")
    rows = [
        (
            name,
            np.sqrt(np.mean((each.mean[:, 0] - judge.y) ** 2)),
            metrics.crps(judge.y, each),
            metrics.prediction_interval_coverage(judge.y, each, LEVEL),
            metrics.mean_interval_width(each, LEVEL),
            metrics.quantile_calibration_error(judge.y, each),
        )
        for name, each in found.items()
    ]
    print_table(header, rows)


def make_conformal(found_fit, fit, found, judge):
    """A `ConformalRegressor` of each head."""
    sets = {
        name: selective.ConformalRegressor.fit(
            found_fit[name], fit.y, target_coverage=LEVEL, method=method
        )
        for name, method in METHODS.items()
    }
    rows = []
    for name, each in sets.items():
        said = each.evaluate(found[name], judge.y)
        ends = said.coverage_lower, said.coverage_upper
        rows.append((name, said.coverage, *ends, said.mean_width))
    print(f"\nConformal intervals: {sets['normal'].describe()}")
    print_table(("head", "coverage", "from (95 %)", "to", "width"), rows)
    return sets


def fit_rule(found, y, target):
    """The rule for the lowest risk that can be promised, if the target cannot."""
    options = {"tolerance": TOLERANCE / SCALE, "confidence": 0.9, "score": "interval_width"}
    try:
        return selective.RejectionRule.fit(found, y, target_risk=target, **options)
    except selective.UnattainableRisk as refusal:
        print(f"\n{refusal}")
        target = round(refusal.best_risk + 0.01, 2)
        return selective.RejectionRule.fit(found, y, target_risk=target, **options)


def draw(found, sets, judge, path, note=None):
    """Four pictures: over the body mass index, against the truth, calibration, error and width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    named = {"intervals": sets[DECIDES].interval(found[DECIDES]), "quantity": QUANTITY}
    tfuq.plots.intervals_over(
        judge.x,
        found[DECIDES],
        judge.y,
        feature=2,
        xlabel="body mass index (std)",
        quantity=QUANTITY,
        ax=axes[0],
    )
    tfuq.plots.predicted_against_true(judge.y, found[DECIDES], ax=axes[1], **named)
    tfuq.plots.quantile_calibration(
        judge.y, found, levels=[0.05, 0.25, 0.5, 0.75, 0.95], ax=axes[2]
    )
    tfuq.plots.error_against_width(judge.y, found[DECIDES], n_bins=5, ax=axes[3], **named)
    figure.suptitle(note, color="tab:red")
    figure.savefig(path, dpi=120)


def ship(model, sets, rule, judge, folder):
    """Number, interval and decision in one SavedModel, asked as a program without Keras would."""
    tfuq.export.export(model, folder, conformal=sets, rule=rule, overwrite=True)
    served = tf.saved_model.load(str(folder))
    answers = {name: array.numpy() for name, array in served.serve(judge.x[:3]).items()}
    print(f"\nThe first people, by {folder}:")
    for i, true in enumerate(judge.y[:3]):
        mean, low, high = (SCALE * answers[name][i, 0] for name in ("mean", "lower", "upper"))
        verdict = "answered" if answers["accept"][i, 0] else "referred to a person"
        print(f"  {SCALE * true:.0f}: {mean:.0f}, from {low:.0f} to {high:.0f}; {verdict}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--target-risk", type=float, default=0.2, help="wrong among the accepted (%(default)s)")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for files")
    add("--quick", action="store_true", help="few epochs: does it run?")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    learn, fit, judge = load_diabetes(arguments.seed)
    print(
        f"{len(learn.y)} people to learn from, {len(fit.y)} to fit on, {len(judge.y)} to judge by"
    )
    epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
    models = {name: train(name, learn, epochs, arguments.seed) for name in METHODS}
    found_fit, found = (
        {name: predict_uncertainty(model, part.x) for name, model in models.items()}
        for part in (fit, judge)
    )
    compare(found, judge)
    sets = make_conformal(found_fit, fit, found, judge)
    rule = fit_rule(found_fit[DECIDES], fit.y, arguments.target_risk)
    print(f"\nThe rule: {rule.describe()}")
    said = rule.evaluate(found[DECIDES], judge.y)
    print(
        f"Of {said.examples} new people it answers for {said.accepted}; of the answers "
        f"{said.risk:.1%} are more than {TOLERANCE:g} off (95 % interval {said.risk_lower:.1%} to "
        f"{said.risk_upper:.1%}), of all {1 - said.accuracy:.1%}."
    )
    rule.save(arguments.output / "regression_rule.json")
    note = "--quick: few epochs. This picture means nothing." if arguments.quick else None
    draw(found, sets, judge, arguments.output / "regression.png", note)
    ship(models[DECIDES], sets[DECIDES], rule, judge, arguments.output / "regression_model")
    print(f"\nRule, pictures and model are in {arguments.output}.")


if __name__ == "__main__":
    main()
