"""Do networks still know what they do not know after `model.quantize`?

    python benchmarks/quantization.py --json quantization.json            # runs what is missing
    python benchmarks/quantization.py --json quantization.json --report   # the table, in markdown

Features of real images by EfficientNet-Lite0, as in `scores.py`; on them two hidden layers and a
head are trained. Keras then quantizes the weights of the `Dense` layers to eight or four bits or
to float8; random layers keep theirs. Of the same held-out rows, with the same draws, the table
compares with the float network: AUGRC of the confidence, how the mutual information ranks the rows
(Spearman), and the accuracy. Modes that need a layer's calibration data ("gptq", "awq") are asked
for as Keras asks, and what it answers is recorded.
"""

import argparse
import json
import os
import pathlib
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras.layers import Dense
from scipy import stats
from scores import features

import tfuq

SETS, SEEDS = ("HAM10000", "CIFAR-10", "IDRiD grades"), (0, 1, 2)
UNITS, EPOCHS, SAMPLES = (256, 128), 20, 100
TRAIN_SHARE = 0.6
MODES = ("int8", "int4", "float8")
CALIBRATED = ("gptq", "awq")
HEADS = {  # what follows the hidden layers, of the number of classes and the KL weight
    "Dense behind MCDropout": lambda k, kl: [tfuq.layers.MCDropout(0.3), Dense(k)],
    "VBLLDense": lambda k, kl: [tfuq.layers.VBLLDense(k, kl_weight=kl)],
    "DenseVariational": lambda k, kl: [tfuq.layers.DenseVariational(k, kl_weight=kl)],
    "MCSoftmaxDenseFA": lambda k, kl: [
        tfuq.layers.MCSoftmaxDenseFA(k, num_factors=4, logits_only=True)
    ],
    "VBLLDense behind MCDropout": lambda k, kl: [
        tfuq.layers.MCDropout(0.3),
        tfuq.layers.VBLLDense(k, kl_weight=kl),
    ],
}
FLOAT = "float32"


def build(x, classes, head, rows):
    scale = keras.layers.Normalization()
    scale.adapt(x)
    hidden = [Dense(units, "relu") for units in UNITS]
    return keras.Sequential(
        [keras.Input(x.shape[1:]), scale, *hidden, *HEADS[head](classes, 1 / rows)]
    )


def measured(model, head, x, y):
    """Accuracy and AUGRC of rows, and their mutual information; None where nothing is drawn."""
    has_draws = head != "MCSoftmaxDenseFA"  # which returns the mean of its draws
    if has_draws:
        said = tfuq.predictive.predict_uncertainty(model, x, SAMPLES, from_logits=True, seed=0)
        probs, information = said.probs, said.mutual_information
    else:
        logits = model.predict(x, verbose=0)
        probs, information = keras.ops.convert_to_numpy(keras.ops.softmax(logits)), None
    area = tfuq.selective.augrc(probs, y)
    return float(np.mean(probs.argmax(-1) == y)), float(area), information


def asked(model, mode):
    """What Keras answers to a mode that needs calibration data, in one line."""
    try:
        model.quantize(mode)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "runs"


def run_once(name, head, seed, cache):
    x, y, _ = features(name, cache)
    y = np.unique(y, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = np.split(order, [int(TRAIN_SHARE * len(y))])
    keras.utils.set_random_seed(seed)
    model = build(x[train], int(y.max()) + 1, head, len(train))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-3), loss, jit_compile=False)
    model.fit(x[train], y[train], batch_size=64, epochs=EPOCHS, verbose=0)
    weights = model.get_weights()
    accuracy, area, information = measured(model, head, x[test], y[test])
    found = {"set": name, "head": head, "seed": seed, "test_rows": len(test)}
    found[FLOAT] = {"accuracy": accuracy, "augrc": area}
    for mode in MODES:
        model = build(x[train], int(y.max()) + 1, head, len(train))
        model.set_weights(weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras names the layers that it leaves as they are
            model.quantize(mode)
        accuracy, area, other = measured(model, head, x[test], y[test])
        found[mode] = {"accuracy": accuracy, "augrc": area}
        if information is not None:
            found[mode]["rank_correlation"] = float(stats.spearmanr(information, other).statistic)
    for mode in CALIBRATED:
        model = build(x[train], int(y.max()) + 1, head, len(train))
        found[mode] = asked(model, mode)
    return found


def report(runs):
    head = [
        "head",
        "mode",
        "AUGRC / float's (worst)",
        "accuracy - float's",
        "rank correlation of MI",
    ]
    print("| " + " | ".join(head) + " |\n| --- | --- | --: | --: | --: |")
    for name in HEADS:
        of_head = [run for run in runs if run["head"] == name]
        for mode in MODES if of_head else ():
            ratio = [run[mode]["augrc"] / run[FLOAT]["augrc"] for run in of_head]
            gain = [run[mode]["accuracy"] - run[FLOAT]["accuracy"] for run in of_head]
            ranks = [run[mode].get("rank_correlation", np.nan) for run in of_head]
            last = "" if np.isnan(ranks[0]) else f"{np.mean(ranks):.4f} ({np.min(ranks):.4f})"
            print(
                f"| {name} | {mode} | {np.mean(ratio):.4f} ({np.max(ratio):.4f}) | "
                f"{np.mean(gain):+.4f} | {last} |"
            )
    print()
    for mode in CALIBRATED:
        print(f"{mode}: {sorted({run[mode] for run in runs})}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, default="quantization.json")
    parser.add_argument("--cache", type=pathlib.Path, default="scores_features")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args(argv)
    runs = []
    if arguments.json.exists():
        runs = json.loads(arguments.json.read_text(encoding="utf-8"))
    if not arguments.report:
        known = {(run["set"], run["head"], run["seed"]) for run in runs}
        todo = [(s, h, seed) for s in SETS for h in HEADS for seed in SEEDS]
        for key in todo:
            if key not in known:
                runs.append(run_once(*key, arguments.cache))
                print(*key, {mode: runs[-1][mode] for mode in MODES}, flush=True)
                text = json.dumps(runs, indent=1) + "\n"
                arguments.json.write_text(text, encoding="utf-8")
    report(runs)


if __name__ == "__main__":
    main()
