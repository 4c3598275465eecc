"""Paper 003 beside its controls: is it the gradients that tell what is unknown?

    python benchmarks/gradient_controls.py --cache ~/features     # runs what is not there yet
    python benchmarks/gradient_controls.py --report               # writes the tables into the page
    python benchmarks/gradient_controls.py --quick                # digits: does it run here?

The sets of `benchmarks/methods.py`: all images at 96 pixels and through one codec, the network
EfficientNet-Lite0 with the hidden layer and the head of "Dense", trained anew for each of five
seeds. Four descriptions of an image go to the same detector, a logistic regression that is shown
half of the known and half of the unknown images, and judged on the others:

- "gradients": squared norms of the gradients of all weights, under the label of all classes at
  once (`tfuq.ood.GradientFeatures`, Lee and AlRegib 2020);
- "activations": squared norms of what the same layers give, no backward pass;
- "pixels": 192 DCT band energies of the image, no network at all;
- "features": the 1,280 numbers that the head reads.

"taught by the other" is the detector of near images on far ones, and the other way round: what is
unknown is then unknown to the detector, too. "shift" are the known classes, corrupted. All can be
stopped at any time, and goes on where it was.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from evidence import cells, features, measures, pages, rows, tasks

from tfuq.ood import GradientFeatures

RESULTS = pathlib.Path(__file__).with_name("results") / "gradient_controls.json"
IMAGES, RESAMPLES = 300, 400  # of each kind
TASKS = ("CIFAR-10 clean", "HAM10000", "Brain MRI")
BASE, CONTROLS = "gradients", ("activations", "pixels", "features")
TINY = 1e-20  # added to a squared norm before its logarithm, as `GradientDetector` does
KINDS = ("near", "far", "shift")


def whole(trunk, projection, network):
    """Images to logits: the trunk, the projection of its features, the network on these."""
    kernel, bias = projection
    project = keras.layers.Dense(len(bias), name="projection")
    x = project(trunk.outputs[0])
    for layer in network.layers:
        again = type(layer).from_config(layer.get_config())  # of one model, so of one output
        x = again(x)
        again.set_weights(layer.get_weights())
    project.set_weights([kernel, bias])
    return keras.Model(trunk.inputs, x)


def pixels_as_features(shape):
    """The network that does what `features.pixels` does."""
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image)))


def weighted(model):
    """The layers that have weights, in order."""
    return [layer for layer in model.layers if layer.weights]


def activation_norms(model):
    """A model of images to the squared norms of what its layers with weights give."""
    outputs = [layer.output for layer in weighted(model)]
    probe = keras.Model(model.inputs, outputs)

    @tf.function(autograph=False, reduce_retracing=True)
    def norms(batch):
        found = probe(batch, training=False)
        return tf.stack([tf.reduce_sum(o**2, axis=range(1, len(o.shape))) for o in found], axis=1)

    return norms


def in_batches(function, x, size=50):
    parts = [np.asarray(function(x[i : i + size])) for i in range(0, len(x), size)]
    return np.concatenate(parts)


def halves(count, seed):
    """Which rows the detector is shown; `count` rows, the same for all descriptions."""
    return np.random.default_rng(seed).permutation(count) < count // 2


def detector(inside, outside):
    """A logistic regression of known and unknown rows; a function of rows to scores."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    y = np.repeat([0, 1], [len(inside), len(outside)])
    weights = 1 / np.bincount(y)[y]
    weights *= len(y) / weights.sum()
    model.fit(np.concatenate([inside, outside]), y, logisticregression__sample_weight=weights)
    return model.decision_function


def judged(described, seed):
    """{column: (scores of known, scores of unknown)} of one description, on rows not shown."""
    shown = {kind: halves(len(x), seed) for kind, x in described.items()}
    known = described["test"]
    score = {
        kind: detector(known[shown["test"]], described[kind][shown[kind]])
        for kind in KINDS
        if kind in described
    }
    found, inside = {}, known[~shown["test"]]
    for kind, of in score.items():
        found[kind] = of(inside), of(described[kind][~shown[kind]])
    for kind, other in (("near", "far"), ("far", "near")):
        if kind in score and other in score:
            of = score[other]
            found[f"{kind}, taught by the other"] = of(inside), of(described[kind][~shown[kind]])
    return found


class Runs:
    """The runs of one set."""

    def __init__(self, store, task, folder, seeds):
        self.store, self.task, self.folder, self.seeds = store, task, folder, seeds
        self.entry = store.task(task)
        known = [kind for kind in ("test", *KINDS) if kind in task.images]
        self.rows = {kind: chosen(len(task.images[kind]), kind == "test") for kind in known}
        self.entry |= {"rows": {kind: len(rows) for kind, rows in self.rows.items()}}

    def described_by(self, network):
        """{description: {kind: (rows, numbers)}} by the whole network."""
        few = {kind: self.task.images[kind][rows] for kind, rows in self.rows.items()}
        if self.folder is None:
            trunk, small = pixels_as_features(few["test"].shape[1:]), few
        else:
            trunk = features.trunk(self.folder)
            small = {kind: features.one_codec(x) for kind, x in few.items()}
        small = {kind: x.astype("float32") for kind, x in small.items()}
        model = whole(trunk, self.task.projection, network)
        gradients = GradientFeatures(model, from_logits=True)
        norms = activation_norms(model)
        return {
            "gradients": {k: log_of(gradients(x)) for k, x in small.items()},
            "activations": {k: log_of(in_batches(norms, x)) for k, x in small.items()},
            "pixels": {k: self.task.energies[k][r] for k, r in self.rows.items()},
            "features": {k: self.task.raw[k][r] for k, r in self.rows.items()},
        }

    def plan(self):
        """That of the penalty with the lowest NLL on the validation rows, with seed 0."""
        start, graphs, found = self.task.plan(0), {}, {}
        if "l2" not in self.entry:
            data = self.task.x["train"], self.task.y["train"]
            for l2 in rows.L2:
                model = rows.fitted("Dense", *data, start._replace(l2=l2), graphs=graphs)
                probs, _ = rows.asked(model, self.task.x["validation"])
                found[l2] = measures.nll_of(probs, self.task.y["validation"])
            self.entry["l2"] = min(found, key=found.get)
        return start._replace(l2=self.entry["l2"])

    def path(self, seed):
        return self.store.predictions(f"gradients-{self.task.key}", "all", seed)

    def run(self):
        for seed in range(self.seeds):
            if not self.path(seed).is_file():
                self.run_seed(seed)
        self.compare()

    def run_seed(self, seed):
        plan = self.plan()._replace(seed=seed)
        network = rows.fitted("Dense", self.task.x["train"], self.task.y["train"], plan)
        answers = network.predict(self.task.x["test"], batch_size=rows.ASKED, verbose=0)
        accuracy = float(np.mean(answers.argmax(-1) == self.task.y["test"]))
        self.entry.setdefault("accuracies", {})[str(seed)] = round(accuracy, 5)
        scores = {}
        for name, described in self.described_by(network).items():
            for column, (inside, outside) in judged(described, seed).items():
                scores[f"{name}|{column}|in"] = inside
                scores[f"{name}|{column}|out"] = outside
        path = self.path(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **scores)
        self.store.write()
        print(self.task.name, seed, accuracy, flush=True)

    def compare(self):
        """AUROC of each seed, and gradients less each control with an interval."""
        each = [dict(np.load(self.path(seed))) for seed in range(self.seeds)]
        columns = list(dict.fromkeys(key.split("|")[1] for key in each[0]))
        self.entry["runs"] = {
            name: {
                str(seed): {c: round(float(auroc(found, name, c)[0]), 5) for c in columns}
                for seed, found in enumerate(each)
            }
            for name in (BASE, *CONTROLS)
        }
        self.entry["differences"] = differences(each, columns)
        self.store.write()


def chosen(count, is_test):
    """At most `IMAGES` rows, by chance: corruptions stand one after another, and are mixed so.

    Of the test the last half, for its first rows are those that are corrupted.
    """
    begin = count // 2 if is_test and count > IMAGES else 0
    return begin + np.random.default_rng(0).permutation(count - begin)[:IMAGES]


def log_of(squares):
    return np.log(np.asarray(squares, "float64") + TINY)


def auroc(found, name, column, weights=None):
    """AUROC of a description, of all rows or of resamples of both kinds."""
    inside, outside = (found[f"{name}|{column}|{end}"] for end in ("in", "out"))
    weights = weights or [np.ones((1, len(part)), "float32") for part in (inside, outside)]
    return measures.auroc_of(*weights, inside, outside)


def differences(each, columns, seed=0):
    """{control: {column: gradients less it, low, high}}; rows and seeds are drawn anew."""
    rng, found = np.random.default_rng(seed), {name: {} for name in CONTROLS}
    width = scipy.stats.norm.isf(0.025 / (len(CONTROLS) * len(columns)))
    chosen_seeds = measures.drawn(len(each), RESAMPLES, rng) / len(each)
    for column in columns:
        ends = [each[0][f"{BASE}|{column}|{end}"] for end in ("in", "out")]
        weights = [measures.drawn(len(end), RESAMPLES, rng) for end in ends]
        areas = {
            name: (
                np.stack([auroc(one, name, column, weights) for one in each], axis=1) * chosen_seeds
            ).sum(axis=1)
            for name in (BASE, *CONTROLS)
        }
        for name in CONTROLS:
            values = measures.interval(areas[BASE] - areas[name], width)
            found[name][column] = [round(float(v), 5) for v in values]
    return found


# --- Tables -------------------------------------------------------------------------------------


def columns_of(task):
    return list(next(iter(task["runs"][BASE].values())))


def set_table(name, task):
    """AUROC of each description; + where gradients are better, − where they are worse."""
    titles, body = ["description", *columns_of(task)], []
    for row in (BASE, *CONTROLS):
        shown = []
        for column in columns_of(task):
            value = cells.mean_of(task["runs"][row], column)
            known = task["differences"].get(row, {}).get(column)
            shown.append(f"{value:.3f}" + ("" if known is None else told(known)))
        body.append([row, *shown])
    sizes = ", ".join(f"{kind} {count}" for kind, count in task["rows"].items())
    accuracy = np.mean(list(task["accuracies"].values()))
    seeds = len(task["accuracies"])
    head = f"**{name}** (accuracy {accuracy:.3f}; rows: {sizes}; seeds: {seeds})\n\n"
    return head + pages.markdown(titles, body)


def told(difference):
    """Of gradients less a control: which of the two is better with certainty."""
    _, low, high = difference
    return "" if low <= 0 <= high else " (gradients better)" if low > 0 else " (gradients worse)"


def difference_table(found):
    """Gradients less each control, with intervals."""
    body = []
    for name, task in found["tasks"].items():
        for column in columns_of(task):
            each = (task["differences"][control][column] for control in CONTROLS)
            shown = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in each]
            body.append([f"{name}: {column}", *shown])
    return pages.markdown(["AUROC of gradients", *(f"less {c}" for c in CONTROLS)], body)


def verdict(found):
    """How often gradients are better or worse than each control."""
    lines = []
    for control in CONTROLS:
        each = [
            told(difference)
            for task in found["tasks"].values()
            for difference in task["differences"][control].values()
        ]
        better, worse = (sum(word in one for one in each) for word in ("better", "worse"))
        lines.append(
            f"- Gradients against {control}: better in {better}, worse in {worse} of {len(each)} "
            "comparisons.\n"
        )
    return "".join(lines)


TABLES = {
    "sets": lambda found: "\n".join(set_table(n, t) for n, t in found["tasks"].items()),
    "differences": difference_table,
    "verdict": verdict,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = tasks.add_options(parser, RESULTS)
    add("--quick", action="store_true", help="digits, one seed, pixels as the trunk")
    given = parser.parse_args(argv)
    if given.report:
        found = json.loads(given.json.read_text("utf-8"))
        return pages.write_all(found, "gradient_controls", TABLES)
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or pathlib.Path(temporary)
        path = tasks.results_of(given, RESULTS, cache)
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "images": IMAGES}
        store = tasks.Store(path, cache, settings)
        if not (given.tasks or given.quick or given.data):
            given.tasks = TASKS
        each, folder = tasks.asked_for(given, cache)
        for task in each:
            Runs(store, task, folder, given.seeds).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
