"""Which score ranks errors best on real images, and is the one chosen beforehand worth it?

    python benchmarks/scores.py            # runs what is not there yet
    python benchmarks/scores.py --report   # writes the tables of README.md

Twelve sets of labelled images. EfficientNet-Lite0, which knows ImageNet and none of them, gives
1,280 features of images of 96 pixels; a small head is trained on them, the same way for all. Rows
that it has not seen are in three parts. From the first, scores learn: the p of the p-norm,
`ErrorPredictor`, and what is usual of the parts of `CombinedScore`, which are the largest
probability, KNN and `ErrorPredictor`, with equal weights. On the second the score of the least
AUGRC is chosen. The third says what that is worth: AUGRC of every score, and whether the chosen one
differs from the largest probability, by a bootstrap of the same rows for both. Each of three seeds
draws rows and weights anew.

The same network then goes abroad: a rule of HAM10000, fitted on the hospitals it was trained on,
meets the external one in 200 random orders; after how many cases does `rule.monitor()` say so?
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from evidence import marked, pages

from tfuq import ood, selective

DATA = pathlib.Path(os.environ.get("TFUQ_DATA", pathlib.Path(__file__).parents[2] / "shared/data"))
RESULTS = pathlib.Path(__file__).with_name("results") / "scores.json"
SIDE, ROWS = 96, 3500  # pixels, and examples of a set at most
SEEDS, RESAMPLES, ORDERS = (0, 1, 2), 1000, 200
SHARES = (0.4, 0.6, 0.7)  # where rows to train on end, those that scores learn from, that choose
POWERS = (1, 2, 3, 4, 6, 8)
EPOCHS, UNITS = 40, 128
RISK = 0.2  # that the rule promises which goes abroad
BASE = "confidence"
PAIRS = (("x_train", "y_train"), ("x_test", "y_test"), ("x_val", "y_val"))

SETS = {  # file, and arrays of images and labels; all there are by default
    "CIFAR-10": ("cifar10_jpeg.npz", (("x_test", "y_test"),)),
    "Fashion-MNIST": ("fashion_mnist_part.npz", PAIRS),
    "MNIST": ("mnist.npz", (("x_test", "y_test"),)),
    "notMNIST": ("notmnist_test.npz", PAIRS),
    "Omniglot alphabets": ("omniglot_small28.npz", (("x", "y_alphabet"),)),
    "Tiny ImageNet": ("tinyimagenet32_val_jpeg.npz", PAIRS),
    "DTD textures": ("ood32_dev_jpeg.npz", (("x_dtd", "y_dtd"),)),
    "flowers": ("ood32_dev_jpeg.npz", (("x_flowers", "y_flowers"),)),
    "HAM10000": ("ham10000_64_jpeg.npz", PAIRS),
    "IDRiD grades": ("idrid_grading_128_jpeg.npz", PAIRS),
    "PneumoniaMNIST": ("pneumoniamnist_28.npz", PAIRS),
    "brain MRI": ("brain_mri_64.npz", (("x_train", "y_train"),)),
}
EXTERNAL = "external"


# --- Features, once ----------------------------------------------------------------------------


def read(name):
    """Images, labels and, of HAM10000, hospitals, of at most `ROWS` examples."""
    file, pairs = SETS[name]
    arrays = _tool("load").load(DATA / file, keys=[x.removeprefix("x_") for x, _ in pairs])
    pairs = [pair for pair in pairs if pair[0] in arrays]
    x, y = (np.concatenate([arrays[pair[part]] for pair in pairs]) for part in (0, 1))
    groups = np.zeros(len(y), "int64")
    if "source_train" in arrays:
        sources = [str(source) for source in arrays["sources"]]
        groups = np.concatenate([arrays["source_train"], arrays["source_test"]])
        groups = groups == sources.index(EXTERNAL)
    chosen = np.random.default_rng(0).permutation(len(y))
    if len(y) > ROWS:  # all of the external hospital
        chosen = np.concatenate([chosen[groups[chosen] > 0], chosen[groups[chosen] == 0]])[:ROWS]
    return x[chosen], np.asarray(y[chosen], "int64"), groups[chosen]


def _tool(name):
    if str(DATA) not in sys.path:
        sys.path.insert(0, str(DATA))
    return __import__(name)


def features(name, cache):
    """Features `(n, 1280)`, labels and hospitals; kept in the folder `cache`."""
    path = pathlib.Path(cache) / f"{name.replace(' ', '_')}.npz"
    if path.exists():
        return tuple(np.load(path).values())
    x, y, groups = read(name)
    x = x[..., None] if x.ndim == 3 else x
    trunk = _tool("pretrained").efficientnet_lite0()
    found = []
    for start in range(0, len(x), 64):
        part = tf.image.resize(x[start : start + 64].astype("float32"), (SIDE, SIDE))
        part = tf.repeat(part, 3 // part.shape[-1], axis=-1)
        found.append(trunk(part, training=False).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = np.concatenate(found), y, groups
    np.savez(path, *arrays)
    return arrays


# --- Scores ------------------------------------------------------------------------------------


def trained(x, y, classes, seed):
    keras.utils.set_random_seed(seed)
    scale = keras.layers.Normalization()
    scale.adapt(x)
    layers = [keras.layers.Dense(UNITS, "relu"), keras.layers.Dropout(0.5)]
    head = keras.layers.Dense(classes)
    model = keras.Sequential([keras.Input(x.shape[1:]), scale, *layers, head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-3), loss, jit_compile=False)
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return model


def scorers(model, train, learn):
    """`{name: function of (x, logits)}`: scores that grow with doubt; what they need is fitted."""
    logits = model.predict(learn[0], verbose=0)
    found = {name: name for name in (BASE, "margin", "predictive_entropy")}
    if logits.shape[1] > 2:
        p = selective.choose_p(logits, learn[1], POWERS)
        found["pnorm"] = lambda x, z: selective.pnorm_score(z, p)
    distance = ood.KNN()
    reasons = [BASE, distance]  # an unsure answer, an input far away and, below, a likely error
    for name, detector in (
        ("Energy", ood.Energy()),
        ("KNN", distance),
        ("Mahalanobis", ood.Mahalanobis()),
        ("SIRC", ood.SIRC(ood.KNN())),
    ):
        detector.fit(model, train)
        found[name] = lambda x, z, detector=detector: detector.score(x)
    wrong = np.sum(logits.argmax(-1) != learn[1])
    if min(wrong, len(learn[1]) - wrong) >= 10:
        predictor = selective.ErrorPredictor().fit(model, learn)
        found["ErrorPredictor"] = lambda x, z: predictor.score(x)
        reasons.append(predictor)
    joined = selective.CombinedScore(reasons).fit(model, learn[0])
    found["CombinedScore"] = lambda x, z: joined.score(x)
    return found


def scores_of(found, x, logits):
    return {n: made if isinstance(made, str) else made(x, logits) for n, made in found.items()}


def run_once(name, seed, cache):
    x, y, _ = features(name, cache)
    y = np.unique(y, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(y))
    ends = [round(share * len(y)) for share in SHARES]
    train, learn, choose, judge = ((x[rows], y[rows]) for rows in np.split(order, ends))
    model = trained(*train, int(y.max()) + 1, seed)
    found = scorers(model, train, learn)
    logits = [model.predict(part[0], verbose=0) for part in (choose, judge)]
    options = {"from_logits": True, "resamples": RESAMPLES}
    on_choice = scores_of(found, choose[0], logits[0])
    chosen = selective.best_score(logits[0], choose[1], on_choice, **options).best
    values = scores_of(found, judge[0], logits[1])
    rows = selective.best_score(logits[1], judge[1], values, **options).rows
    pair = {"chosen": values[chosen], BASE: BASE}
    against = selective.best_score(logits[1], judge[1], pair, **options)
    behind = against.rows[1]
    sign = 1 if against.best == "chosen" else -1
    return {
        "set": name,
        "seed": seed,
        "rows": [len(part[1]) for part in (train, learn, choose, judge)],
        "accuracy": float(np.mean(logits[1].argmax(-1) == judge[1])),
        "augrc": {row.name: [row.augrc, row.lower, row.upper] for row in rows},
        "chosen": chosen,
        "gain": sign * behind.behind,
        "gain_ends": sorted(sign * end for end in (behind.behind_lower, behind.behind_upper)),
    }


# --- Abroad ------------------------------------------------------------------------------------


def abroad(seed, cache):
    """What becomes of a promise on HAM10000's external hospital, and who says so after how many."""
    x, y, external = features("HAM10000", cache)
    y = np.unique(y, return_inverse=True)[1]
    known = np.random.default_rng(seed).permutation(np.flatnonzero(external == 0))
    train, fit = np.split(known, [len(known) // 2])
    model = trained(x[train], y[train], int(y.max()) + 1, seed)
    there = np.flatnonzero(external)
    logits = {"fit": model.predict(x[fit], verbose=0), "there": model.predict(x[there], verbose=0)}
    options = {"target_risk": RISK, "from_logits": True}
    rule = selective.RejectionRule.fit(logits["fit"], y[fit], **options)
    risk = rule.evaluate(logits["there"], y[there]).risk
    after, labelled = [], []
    for order in range(ORDERS):
        rows = np.random.default_rng(order).permutation(len(there))
        monitor = rule.monitor()
        wealth = monitor.follow(logits["there"][rows], y[there][rows])["risk"]
        reached = np.flatnonzero(wealth >= 2 / monitor.alpha)
        accepted = rule.accept(logits["there"][rows])
        after.append(int(reached[0]) + 1 if reached.size else None)
        labelled.append(int(accepted[: reached[0] + 1].sum()) if reached.size else None)
    report = selective.shift_report(model, (x[fit], y[fit]), (x[there], y[there]))
    found = [number for number in after if number is not None]
    return {
        "seed": seed,
        "coverage": rule.fitted_to["coverage"],
        "risk there": risk,
        "examples there": len(there),
        "alarms": len(found),
        "cases": float(np.median(found)) if found else None,
        "labelled": float(np.median([n for n in labelled if n is not None])) if found else None,
        "features p": report.feature_shift.p_value,
        "accuracy, estimated": report.thresholded_confidence.accuracy,
        "accuracy, true": report.target_accuracy,
    }


# --- Tables ------------------------------------------------------------------------------------


def score_table(found):
    names = list(dict.fromkeys(name for run in found["runs"] for name in run["augrc"]))
    titles = ["set", "accuracy", *names, "chosen", "gain over confidence"]
    rows = []
    for name in SETS:
        runs = [run for run in found["runs"] if run["set"] == name]
        if runs:
            accuracy = np.mean([run["accuracy"] for run in runs])
            means = [hundredths(runs, score) for score in names]
            chosen = ", ".join(run["chosen"] for run in runs)
            rows.append([name, f"{accuracy:.3f}", *means, chosen, "; ".join(map(gain, runs))])
    return marked.markdown(titles, rows)


def hundredths(runs, score):
    values = [run["augrc"][score][0] for run in runs if score in run["augrc"]]
    return f"{100 * np.mean(values):.2f}" if values else "–"


def gain(run):
    low, high = run["gain_ends"]
    return f"{100 * run['gain']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def verdict(found):
    """In which runs the interval of the gain excludes 0."""
    better, worse = (
        [run for run in found["runs"] if excludes(run["gain_ends"])]
        for excludes in (lambda ends: ends[0] > 0, lambda ends: ends[1] < 0)
    )
    count = len(found["runs"])
    most = "on most" if 2 * len(better) > count else "not on most"
    return (
        f"Of {count} runs the chosen score is better in {len(better)} ({told(better)}), worse in "
        f"{len(worse)} ({told(worse)}); in {count - len(better) - len(worse)} no difference is "
        f"shown. It is better {most} of the runs.\n"
    )


def told(runs):
    """The sets of runs and, of each, how many and what was chosen there."""
    sets = dict.fromkeys(run["set"] for run in runs)
    parts = {name: [run["chosen"] for run in runs if run["set"] == name] for name in sets}
    found = [f"{len(names)} of {name}: {', '.join(names)}" for name, names in parts.items()]
    return "; ".join(found) or "none"


def abroad_table(found):
    titles = ["seed", "wrong of accepted", "alarms of orders", "cases until", "labelled until"]
    titles += ["p of features", "accuracy, true", "accuracy, estimated"]
    rows = []
    for run in sorted(found["abroad"], key=lambda run: run["seed"]):
        cells = [str(run["seed"]), f"{run['risk there']:.2f}", f"{run['alarms']} of {ORDERS}"]
        cells += ["–" if run[key] is None else f"{run[key]:.0f}" for key in ("cases", "labelled")]
        cells.append(f"{run['features p']:.4f}")
        rows.append([*cells, *(f"{run[f'accuracy, {key}']:.2f}" for key in ("true", "estimated"))])
    return marked.markdown(titles, rows)


TABLES = {"scores": score_table, "verdict": verdict, "abroad": abroad_table}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--cache", type=pathlib.Path, default="scores_features")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=list(SETS))
    arguments = parser.parse_args(argv)
    found = {"runs": [], "abroad": []}
    if arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    if arguments.report:
        return pages.write_all(found, "scores", TABLES)
    known = {(run["set"], run["seed"]) for run in found["runs"]}
    todo = [(name, seed) for name in arguments.only for seed in SEEDS if (name, seed) not in known]
    for name, seed in todo:
        found["runs"].append(run_once(name, seed, arguments.cache))
        print(name, seed, found["runs"][-1]["chosen"], found["runs"][-1]["gain_ends"], flush=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for seed in set(SEEDS) - {run["seed"] for run in found["abroad"]}:
        found["abroad"].append(abroad(seed, arguments.cache))
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(score_table(found), verdict(found), abroad_table(found), sep="\n")


if __name__ == "__main__":
    main()
