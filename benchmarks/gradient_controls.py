"""Paper 003 beside its controls: is it the gradients that tell what is unknown?

    python benchmarks/gradient_controls.py --cache ~/features     # runs what is not there yet
    python benchmarks/gradient_controls.py --report               # writes the tables into the page
    python benchmarks/gradient_controls.py --quick                # digits: does it run here?

Sets of `benchmarks/methods.py`: all images at 96 pixels and through one codec. Two networks: the
hidden layer and the head of "Dense" on EfficientNet-Lite0 as it is, trained anew for each of five
seeds; and, of CIFAR-10, the same whose last stages have learned the set (`evidence/finetuned.py`).
Five descriptions of an image go to the same detector, a logistic regression that is shown half of
the known and half of the unknown images, and judged on the others:

- "gradients": squared norms of the gradients of all weights, under the label of all classes at
  once (`tfuq.ood.GradientFeatures`, Lee and AlRegib 2020);
- "activations": squared norms of what the same layers give, no backward pass;
- "pixels": 192 DCT band energies of the image, no network at all;
- "features": the 1,280 numbers that the trunk ends in;
- "confidence": the largest probability alone.

Near and far of CIFAR-10 are OpenOOD's, as far as they are at hand: Tiny ImageNet is near; MNIST and
textures are far (without CIFAR-100, SVHN, Places). As many images of each kind in all rows. "taught
by the other" is the detector of near images on far ones, and the other way round: what is unknown
is then unknown to the detector, too. Corruptions are known classes in other images, one kind and
severity a detector. All can be stopped at any time, and goes on where it was.
"""

import argparse
import json
import os
import pathlib
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from evidence import cells, features, finetuned, images, measures, pages, rows, tasks
from scipy.special import softmax

from tfuq.corruptions import corrupt
from tfuq.ood import GradientFeatures

RESULTS = pathlib.Path(__file__).with_name("results") / "gradient_controls.json"
IMAGES, CORRUPTED, RESAMPLES = 300, 150, 400  # of each kind, of each corruption
TUNED_SEEDS = 1  # of fine-tuned networks, which take a quarter of an hour each
FROZEN = ("CIFAR-10 clean", "CIFAR-10N worst", "HAM10000")
TUNED = "CIFAR-10 clean, fine-tuned"
BASE, CONTROLS = "gradients", ("activations", "pixels", "features", "confidence")
TINY = 1e-20  # added to a squared norm before its logarithm, as `GradientDetector` does
KINDS = ("near", "far")
TAUGHT = tuple(f"{kind}, taught by the other" for kind in KINDS)
CORRUPTIONS = tuple(
    f"{name} {severity}"
    for name in ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression")
    for severity in (1, 3)
)


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
    inside, score, found = known[~shown["test"]], {}, {}
    for kind, x in described.items():
        if kind != "test":
            score[kind] = detector(known[shown["test"]], x[shown[kind]])
            found[kind] = score[kind](inside), score[kind](x[~shown[kind]])
    for kind, other in (("near", "far"), ("far", "near")):
        if kind in score and other in score:
            of, x = score[other], described[kind]
            found[f"{kind}, taught by the other"] = of(inside), of(x[~shown[kind]])
    return found


def openood(parts, folder):
    """The parts of CIFAR-10 with MNIST among what is far."""
    digits = images.in_colour(images.read(folder, "mnist")["x_test"][: images.FAR])
    digits = np.pad(digits, ((0, 0), (2, 2), (2, 2), (0, 0)))  # to the size of CIFAR-10
    return {**parts, "far": images.Part(np.concatenate([parts["far"].images, digits]))}


def kinds_of(parts, count, corrupted):
    """{kind: images}: as many of each kind, by chance, and corruptions of other test images.

    The first half of the test images is corrupted, the second is known; where there are too few
    for that, known images are corrupted.
    """
    known = [kind for kind in KINDS if kind in parts]
    count = min(count, *(len(parts[kind]) for kind in ("test", *known)))
    found = {kind: parts[kind][chosen(len(parts[kind]), kind == "test", count)] for kind in parts}
    found = {kind: found[kind] for kind in ("test", *known)}
    begin = len(parts["test"]) - count if len(parts["test"]) >= count + corrupted else None
    few = parts["test"][:begin][:corrupted]
    for name in CORRUPTIONS:
        kind, severity = name.rsplit(" ", 1)
        made = np.asarray(corrupt(few, kind, int(severity), seed=0))
        found[name] = np.clip(np.round(made), 0, 255).astype("uint8")
    return found


def chosen(count, is_test, wanted):
    """`wanted` rows by chance; of the test, of its last rows, for the first are corrupted."""
    begin = max(0, count - max(wanted, count // 2)) if is_test else 0
    return begin + np.random.default_rng(0).permutation(count - begin)[:wanted]


class Runs:
    """The runs of one set with one network."""

    def __init__(self, store, task, folder, cache, seeds, is_tuned=False):
        self.store, self.task, self.folder, self.cache = store, task, folder, cache
        self.seeds, self.is_tuned = seeds, is_tuned
        self.name = TUNED if is_tuned else task.name
        named = types.SimpleNamespace(
            name=self.name, identity=task.identity, target_risk=task.target_risk
        )
        self.entry = store.task(named)
        few = kinds_of(task.images, IMAGES, CORRUPTED)
        self.entry |= {
            "rows": {kind: len(x) for kind, x in few.items() if kind in ("test", *KINDS)}
        }
        self.entry["corrupted"] = len(few[CORRUPTIONS[0]])
        self.images = few if folder is None else {k: features.one_codec(x) for k, x in few.items()}
        self.energies = {kind: features.dct_energies(x) for kind, x in self.images.items()}

    def network(self, seed):
        """The whole network, images to logits, and its accuracy on all test rows."""
        x, y = self.task.images["test"], self.task.y["test"]
        if self.is_tuned:
            train = self.task.images["train"], self.task.y["train"]
            model = finetuned.tuned(self.folder, self.cache, *train, seed)
            logits = model.predict(features.one_codec(x), batch_size=features.BATCH, verbose=0)
            return model, float(np.mean(logits.argmax(-1) == y))
        plan = self.plan()._replace(seed=seed)
        network = rows.fitted("Dense", self.task.x["train"], self.task.y["train"], plan)
        logits = network.predict(self.task.x["test"], batch_size=rows.ASKED, verbose=0)
        if self.folder is None:
            trunk = pixels_as_features(self.task.images["test"].shape[1:])
        else:
            trunk = features.trunk(self.folder)
        model = whole(trunk, self.task.projection, network)
        return model, float(np.mean(logits.argmax(-1) == y))

    def described_by(self, model):
        """{description: {kind: (rows, numbers)}}."""
        gradients, norms = GradientFeatures(model, from_logits=True), activation_norms(model)
        read = features_and_logits(model, "classes" if self.is_tuned else "projection")
        small = {kind: x.astype("float32") for kind, x in self.images.items()}
        both = {kind: [in_batches(part, x) for part in read] for kind, x in small.items()}
        return {
            "gradients": {k: log_of(gradients(x)) for k, x in small.items()},
            "activations": {k: log_of(in_batches(norms, x)) for k, x in small.items()},
            "pixels": self.energies,
            "features": {kind: each[0] for kind, each in both.items()},
            "confidence": {kind: log_odds(each[1]) for kind, each in both.items()},
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
        return self.store.predictions(f"gradients-{self.name}", "kinds", seed)

    def run(self):
        for seed in range(self.seeds):
            if not self.path(seed).is_file():
                self.run_seed(seed)
                keras.utils.clear_session()
        self.compare()

    def run_seed(self, seed):
        model, accuracy = self.network(seed)
        self.entry.setdefault("accuracies", {})[str(seed)] = round(accuracy, 5)
        scores = {}
        for name, described in self.described_by(model).items():
            for column, (inside, outside) in judged(described, seed).items():
                scores[f"{name}|{column}|in"] = inside
                scores[f"{name}|{column}|out"] = outside
        path = self.path(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **scores)
        self.store.write()
        print(self.name, seed, accuracy, flush=True)

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


def features_and_logits(model, name):
    """Functions of images to what the layer of that name reads, and to the logits."""
    probe = keras.Model(model.input, [model.get_layer(name).input, model.output])
    call = tf.function(lambda x: probe(x, training=False), reduce_retracing=True)
    return (lambda x: call(x)[0]), (lambda x: call(x)[1])


def log_odds(logits):
    """Of the largest probability: (rows, 1)."""
    best = np.clip(
        softmax(logits.astype("float64"), axis=1).max(axis=1, keepdims=True), 0, 1 - 1e-12
    )
    return np.log(best) - np.log1p(-best)


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


def set_table(name, task, columns, sizes):
    """AUROC of each description; + where gradients are better, − where they are worse."""
    body = []
    for row in (BASE, *CONTROLS):
        shown = []
        for column in columns:
            value = cells.mean_of(task["runs"][row], column)
            known = task["differences"].get(row, {}).get(column)
            shown.append(f"{value:.3f}" + ("" if known is None else told(known)))
        body.append([row, *shown])
    accuracy = np.mean(list(task["accuracies"].values()))
    seeds = len(task["accuracies"])
    head = f"**{name}** (accuracy {accuracy:.3f}; {sizes}; seeds: {seeds})\n\n"
    return head + pages.markdown(["description", *columns], body)


def told(difference):
    """Of gradients less a control: which of the two is better with certainty."""
    _, low, high = difference
    return "" if low <= 0 <= high else " (gradients better)" if low > 0 else " (gradients worse)"


def unknown_of(task):
    return [c for c in (*KINDS, *TAUGHT) if c in task["runs"][BASE]["0"]]


def unknown_table(name, task):
    sizes = ", ".join(f"{kind} {count}" for kind, count in task["rows"].items())
    return set_table(name, task, unknown_of(task), f"images: {sizes}")


def corruption_table(name, task):
    sizes = f"images: {task['rows']['test']}, {task['corrupted']} of each corruption"
    return set_table(name, task, CORRUPTIONS, sizes)


def difference_table(found, columns_of):
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
    for kind, columns_of in (("Unknown images", unknown_of), ("Corruptions", corruptions_of)):
        for control in CONTROLS:
            each = [
                told(task["differences"][control][column])
                for task in found["tasks"].values()
                for column in columns_of(task)
            ]
            better, worse = (sum(word in one for one in each) for word in ("better", "worse"))
            lines.append(
                f"- {kind}: gradients against {control} are better in {better}, worse in {worse} "
                f"of {len(each)} comparisons.\n"
            )
    return "".join(lines)


def corruptions_of(_):
    return CORRUPTIONS


def each_set(table):
    return lambda found: "\n".join(table(name, task) for name, task in found["tasks"].items())


TABLES = {
    "sets": each_set(unknown_table),
    "corruptions": each_set(corruption_table),
    "differences": lambda found: difference_table(found, unknown_of),
    "differences of corruptions": lambda found: difference_table(found, corruptions_of),
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
        path = cache / "gradient_controls.json" if given.quick else given.json
        settings = {"steps": rows.STEPS, "hidden": rows.HIDDEN, "images": IMAGES}
        settings |= {"corrupted": CORRUPTED, "epochs of fine-tuning": finetuned.EPOCHS}
        store = tasks.Store(path, cache, settings)
        if given.quick:
            each, folder = tasks.asked_for(given, cache)
            for task in each:
                Runs(store, task, folder, cache, given.seeds).run()
            return store.found
        folder = images.default_folder()
        for name in given.tasks or (*FROZEN, TUNED):
            of = name.removesuffix(", fine-tuned")
            parts = images.TASKS[of](folder)
            parts = openood(parts, folder) if of.startswith("CIFAR-10") else parts
            task = tasks.Task(of, parts, features.Features(folder, cache), None)
            seeds = min(given.seeds, TUNED_SEEDS) if name == TUNED else given.seeds
            Runs(store, task, folder, cache, seeds, name == TUNED).run()
        return store.found


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
