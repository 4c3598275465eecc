"""Nine UCI regression sets with their standard splits: four ways to a number with an interval.

    python benchmarks/uci_regression.py --data FOLDER            # goes on where it stopped
    python benchmarks/uci_regression.py --only yacht boston      # some sets
    python benchmarks/uci_regression.py --table                  # of what is there

Every method has the same trunk (two layers of 50 units, ReLU), the same optimizer, batches and
number of steps, and the same tuning: three values of its own knob and six numbers of steps, by
the negative log-likelihood on a fifth of the training rows of the first split. A deep ensemble has
five networks of `NormalDense`, so five times the budget, as it always has. Numbers are in the
labels' unit: RMSE, negative log-likelihood (nats), share of the test labels in the
90 % interval; mean and standard error over the splits, and the difference of each method's
likelihood from that of `NormalDense`, split by split, with its 95 % interval (t distribution).
The splits share rows, so these intervals are too narrow by an unknown amount.

The files are `uci_regression.npz` (Hernandez-Lobato and Adams 2015; Gal and Ghahramani 2016), in
--data, TFUQ_DATA or ../shared/data. Results: `uci_regression.json` beside this script.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

import tfuq

SETS = ("yacht", "boston", "energy", "concrete", "wine", "kin8nm", "power", "naval", "protein")
KNOBS = {  # what a method has of its own, and the values tried
    "NormalDense": ("weight_decay", (0.0, 1e-2, 1e-1)),
    "VBLLRegression": ("prior_scale", (0.1, 0.5, 2.0)),
    "MC dropout": ("rate", (0.01, 0.05, 0.2)),
}
ENSEMBLE, MEMBERS = "deep ensemble", 5
METHODS = (*KNOBS, ENSEMBLE)
HIDDEN = (50, 50)
STEPS, CHECKPOINTS = 8000, (250, 500, 1000, 2000, 4000, 8000)  # of which one is chosen
BATCH_SIZE, LEARNING_RATE, AT_ONCE, DRAWS, LEVEL = 32, 2e-3, 250, 100, 0.9
RESULTS = pathlib.Path(__file__).with_suffix(".json")
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def load(folder, name):
    """Features, labels and, for each split, which rows are for testing: `(splits, n)`."""
    path = pathlib.Path(folder) / "uci_regression.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Name its folder with --data or TFUQ_DATA.")
    with np.load(path) as file:
        x, y = file[f"{name}_x"], file[f"{name}_y"].reshape(-1)
        test = np.unpackbits(file[f"{name}_test"], axis=1)[:, : len(y)].astype(bool)
    return x.astype("float64"), y.astype("float64"), test


def epochs(rows, steps, seed):
    """Which rows each step takes: all of them in a new order, again and again; `(steps, batch)`."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(rows) for _ in range(-(-steps * BATCH_SIZE // rows))]
    return np.concatenate(orders)[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)


class Trainer:
    """A network that is traced once and trained many times, from other weights each time."""

    def __init__(self, method, knob, columns, rows):
        decay = knob if method == "NormalDense" else 0.0
        self.model = keras.Sequential([keras.Input((columns,))])
        for seed, units in enumerate(HIDDEN):
            self.model.add(keras.layers.Dense(units, activation="relu"))
            if method == "MC dropout":
                self.model.add(tfuq.layers.MCDropout(knob, seed=seed))
        head = tfuq.layers.NormalDense(1)
        if method == "VBLLRegression":
            head = tfuq.layers.VBLLRegression(
                1, kl_weight=1 / rows, prior_scale=knob, posterior="dense"
            )
        self.model.add(head)
        self.optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=decay)
        self.model.compile(self.optimizer, head.negative_log_likelihood())
        self.optimizer.build(self.model.trainable_variables)
        self.take_steps = tf.function(self._take_steps, jit_compile=True)

    def _take_steps(self, x, y, batches):
        """A step of training for each row of `batches`, `(steps, BATCH_SIZE)`: rows of x and y.

        The step of Keras' `fit`, with the loop in the compiled graph: `fit` and its pipeline of
        rows take ten times as long as the arithmetic of these networks.
        """
        variables = self.model.trainable_variables
        for step in tf.range(tf.shape(batches)[0]):
            rows, labels = tf.gather(x, batches[step]), tf.gather(y, batches[step])
            with tf.GradientTape() as tape:
                outputs = self.model(rows, training=True)
                loss = self.model.compute_loss(x=rows, y=labels, y_pred=outputs)
            self.optimizer.apply(tape.gradient(loss, variables), variables)

    def parts(self, x, y, parts, steps, seed):
        """Trains for `steps` in `parts` equal parts; a generator that stops after each of them."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(keras.models.clone_model(self.model).get_weights())
        for variable in self.optimizer.variables:
            if variable is not self.optimizer._learning_rate:
                variable.assign(tf.zeros_like(variable))
        x, y = tf.constant(x, "float32"), tf.constant(y[:, None], "float32")
        batches = epochs(len(x), steps, seed)
        for part in np.split(batches, parts):
            for some in np.split(part, len(part) // AT_ONCE):
                self.take_steps(x, y, tf.constant(some))
            yield

    def trained(self, x, y, steps, seed):
        for _ in self.parts(x, y, 1, steps, seed):
            pass
        return self

    def predict(self, x):
        return tfuq.predictive.predict_uncertainty(
            self.model, x.astype("float32"), num_samples=DRAWS, seed=0
        )


class Scale:
    """Mean 0 and standard deviation 1 of the training rows."""

    def __init__(self, values):
        self.mean, self.std = values.mean(axis=0), values.std(axis=0)
        self.std = np.where(self.std > 0, self.std, 1.0)  # columns that are constant

    def __call__(self, values):
        return (values - self.mean) / self.std


def scores(found, y, scale):
    """RMSE, negative log-likelihood and coverage, in the unit of the labels before `scale`."""
    labels = scale(y)
    return {
        "rmse": float(np.sqrt(np.mean((found.mean[:, 0] - labels) ** 2)) * scale.std),
        "nll": float(-found.log_prob(labels).mean() + np.log(scale.std)),
        "coverage": tfuq.metrics.prediction_interval_coverage(labels, found, LEVEL),
    }


def tune(method, x, y, seed=0):
    """The knob and the number of steps with the least NLL on a fifth of the rows, and all tried."""
    held = np.random.default_rng(seed).permutation(len(x)) < len(x) // 5
    x_scale, y_scale = Scale(x[~held]), Scale(y[~held])
    tried = []
    for knob in KNOBS[method][1]:
        trainer = Trainer(method, knob, x.shape[1], (~held).sum())
        count = STEPS // CHECKPOINTS[0]
        parts = trainer.parts(x_scale(x[~held]), y_scale(y[~held]), count, STEPS, seed)
        for part, _ in enumerate(parts, start=1):
            steps = part * CHECKPOINTS[0]
            if steps in CHECKPOINTS:
                nll = scores(trainer.predict(x_scale(x[held])), y[held], y_scale)["nll"]
                tried.append({"knob": knob, "steps": steps, "nll": nll})
    return min(tried, key=lambda one: one["nll"]), tried


def run_set(name, data, results, save):
    """Everything of a set that `results` does not have yet."""
    x, y, tests = data
    found = results.setdefault(name, {"rows": len(x), "columns": x.shape[1]})
    for method in KNOBS:
        if "tuned" not in found.setdefault(method, {}):
            tuned, tried = tune(method, x[~tests[0]], y[~tests[0]])
            found[method] |= {"tuned": tuned, "tried": tried, "splits": []}
            save()
        tuned, rows = found[method]["tuned"], found[method]["splits"]
        together = found.setdefault(ENSEMBLE, {"splits": []})["splits"]
        trainer = Trainer(method, tuned["knob"], x.shape[1], (~tests[0]).sum())
        for split in range(len(rows), len(tests)):
            train, test = ~tests[split], tests[split]
            x_scale, y_scale = Scale(x[train]), Scale(y[train])
            members = []
            for member in range(MEMBERS if method == "NormalDense" else 1):
                arrays = x_scale(x[train]), y_scale(y[train])
                trainer.trained(*arrays, tuned["steps"], seed=100 * split + member)
                members.append(trainer.predict(x_scale(x[test])))
            rows.append(scores(members[0], y[test], y_scale))
            if method == "NormalDense":
                params = np.concatenate([member.params for member in members])
                all_of_them = tfuq.predictive.RegressionUncertainty(params, "normal")
                together.append(scores(all_of_them, y[test], y_scale))
            save()
        print(f"{name}, {method}: {summary(rows)}", flush=True)


def summary(rows):
    cells = []
    for metric in ("rmse", "nll", "coverage"):
        values = np.array([row[metric] for row in rows])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        digits = 5 if values.mean() < 0.01 and metric == "rmse" else 3
        cells.append(f"{metric} {values.mean():.{digits}f} ± {error:.{digits}f}")
    return ", ".join(cells)


def difference(rows, reference):
    """Mean difference of the NLL, split by split, and half of its 95 % interval."""
    pairs = zip(rows, reference, strict=False)
    values = np.array([one["nll"] - other["nll"] for one, other in pairs])
    if len(values) < 2:
        return "-"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.3f} ± {half:.3f}"


def table(results):
    """The results as a table in Markdown."""
    lines = [
        "| set (rows) | method | splits | RMSE | NLL | 90 % interval holds | NLL - NormalDense's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in SETS if name in results):
        reference = results[name].get("NormalDense", {}).get("splits", [])
        for method in METHODS:
            rows = results[name].get(method, {}).get("splits", [])
            if not rows:
                continue
            cells = [cell.split(" ", 1)[1] for cell in summary(rows).split(", ")]
            against = "" if method == "NormalDense" else difference(rows, reference)
            cells = [f"{name} ({results[name]['rows']})", method, str(len(rows)), *cells, against]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TFUQ_DATA") or SHARED)
    parser.add_argument("--only", nargs="+", choices=SETS, default=SETS, metavar="SET")
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    arguments = parser.parse_args(argv)
    results = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}

    def save():
        beside = arguments.json.with_suffix(".part")
        beside.write_text(json.dumps(results, indent=1) + "\n")
        beside.replace(arguments.json)

    if not arguments.table:
        for name in arguments.only:
            run_set(name, load(arguments.data, name), results, save)
    print(table(results))


if __name__ == "__main__":
    main()
