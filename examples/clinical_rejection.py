"""From a trained model to a written rule: which images it answers, which a doctor sees.

    python examples/clinical_rejection.py           # skin lesions, the file in --data or TFUQ_DATA
    python examples/clinical_rejection.py --quick   # scikit-learn's digits, under a minute

A small residual network learns seven kinds of skin lesions (HAM10000). Images that it has not
learned from are then shared out. On one part its temperature is scaled; on another a rule is fitted
that accepts an answer only if the network is sure enough, so that of the accepted answers at most
the given share is wrong, with the given confidence (Geifman and El-Yaniv 2017). The rest says
whether that holds: over all, and for each hospital that the images come from, one of which the
network has never seen; what model, doctor and both together get right; and which images have more
than one plausible answer (conformal sets). The rule is written to a file that a person can read,
and into the model.

With `--quick` ten digits stand for the lesions, and noisy images for another hospital. It needs the
extra `examples`.
"""

import argparse
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rapid_training as base

import tfuq
from tfuq import selective

FILE = "ham10000_64_jpeg.npz"
SETTINGS = base.Settings(num_cycles=3)  # 7 epochs
DOCTOR = 0.85  # assumed share of right answers of who sees what the model refers
COSTS = {"error": 10.0, "review": 1.0}


class Part(NamedTuple):
    """Images, their labels, and the hospital that each comes from."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray

    def rows(self, rows):
        return Part(*(array[rows] for array in self))


# --- Data -------------------------------------------------------------------------------------


def load_lesions(folder):
    """Images to train on, and all others, of which some come from another hospital; class names."""
    train = base.load_ham10000(folder)
    x, y = base.read(folder, FILE, "test")
    with np.load(pathlib.Path(folder) / FILE, allow_pickle=False) as file:
        groups = file["sources"][file["source_test"]]
        names = list(file["classes"])
    groups[groups == ""] = "unknown"
    return train, Part(x, y, groups), names


def load_digits(seed=0):
    """The same of digits: some of the held out are noisy, which the training images are not."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.repeat((digits.images[..., None] * 15).astype("uint8"), 3, axis=-1)
    train, rest = base.split_off(x, digits.target, 1000, seed)
    train, validation = base.split_off(*train, 150, seed)
    x, y = rest
    rng = np.random.default_rng(seed)
    groups = rng.choice(["own", "other"], size=len(y), p=[0.8, 0.2])
    noise = rng.normal(scale=90, size=x.shape) * (groups == "other")[:, None, None, None]
    x = np.clip(x + noise, 0, 255).astype("uint8")
    return base.Data(train, validation, rest), Part(x, y, groups), [str(i) for i in range(10)]


def share_out(part, external, seed):
    """Rows to scale on, to fit the rule on and to judge by; external ones are all to judge by."""
    own = np.random.default_rng(seed).permutation(np.flatnonzero(part.groups != external))
    scale, fit, judge = np.split(own, [len(own) // 5, len(own) * 3 // 5])
    judge = np.concatenate([judge, np.flatnonzero(part.groups == external)])
    return part.rows(scale), part.rows(fit), part.rows(judge)


# --- From the model to the rule ---------------------------------------------------------------


def train_model(data, settings, seed):
    keras.utils.set_random_seed(seed)
    trunk = base.build_trunk(data.train[0].shape[1:], settings)
    model = base.make_model(trunk, data.classes, base.sgd())
    base.train_rapidly(model, data, settings, {"cycle_mult": 2, "layer_rates": None}, [])
    return model


def scaled(model, part):
    """The model with a temperature that fits `part` as its last layer, and soft-max after it."""
    logits = model.predict(part.x, batch_size=256, verbose=0)
    scaling = selective.TemperatureScaling(from_logits=True).fit(logits, part.y)
    before, after = (
        tfuq.metrics.expected_calibration_error(part.y, values, from_logits=True)
        for values in (logits, scaling.transform(logits))
    )
    print(f"temperature {scaling.temperature:.2f}: calibration error {before:.3f} -> {after:.3f}")
    calibrated = scaling.append_to(model)
    return keras.Model(calibrated.input, keras.layers.Softmax()(calibrated.output))


def fit_rule(probs, labels, target, confidence):
    """The rule for the lowest risk that can be promised, if the target cannot."""
    try:
        return selective.RejectionRule.fit(probs, labels, target_risk=target, confidence=confidence)
    except selective.UnattainableRisk as refusal:
        print(f"{refusal}\n")
        return selective.RejectionRule.fit(
            probs, labels, target_risk=1.05 * refusal.best_risk, confidence=confidence
        )


def follow_up(rule, probs, judge):
    """What becomes of the answers of the images to judge by."""
    groups = selective.subgroup_report(rule, probs, judge.y, judge.groups)
    print(f"\nBy hospital\n\n{groups.to_markdown()}")
    team = selective.simulate_deferral(rule, probs, judge.y, expert=DOCTOR, costs=COSTS)
    print(f"\nModel, doctor ({DOCTOR:.0%} right) and both\n\n{team.to_markdown()}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="DIR", default=base.default_folder(), help="default: %(default)s")
    add("--target-risk", type=float, help="wrong among the accepted (0.15; 0.1 with --quick)")
    add("--confidence", type=float, default=0.95, help="that it is no more (%(default)s)")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for the rule")
    add("--quick", action="store_true", help="digits, a small network: does it run?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        (data, rest, names), settings, external = load_digits(), QUICK, "other"
    else:
        (data, rest, names), settings = load_lesions(arguments.data), SETTINGS
        external = "external"
    target = arguments.target_risk or (0.1 if arguments.quick else 0.15)
    model = train_model(data, settings, arguments.seed)
    scale, fit, judge = share_out(rest, external, arguments.seed)
    calibrated = scaled(model, scale)
    probs_fit, probs = (calibrated.predict(p.x, batch_size=256, verbose=0) for p in (fit, judge))
    rule = fit_rule(probs_fit, fit.y, target, arguments.confidence)
    print(f"\n{rule.describe()}")
    follow_up(rule, probs, judge)
    write(rule, calibrated, judge, probs, names, fit, probs_fit, arguments.output)


def write(rule, model, judge, probs, names, fit, probs_fit, output):
    """The rule as a file and inside the model; a plausible set for each of three refused images."""
    output.mkdir(parents=True, exist_ok=True)
    rule.save(output / "rule.json")
    whole = rule.append_to(model)
    whole.save(output / "with_rule.keras")
    sets = selective.ConformalPredictor.fit(probs_fit, fit.y, alpha=0.1).predict_set(probs)
    refused = np.flatnonzero(~rule.accept(probs))[:3]
    answers = whole.predict(judge.x[refused], verbose=0)
    print("\nRefused, with the answers that remain plausible (90 % of such sets hold the truth):")
    for i, accepted in zip(refused, answers["accept"], strict=True):
        plausible = [name for name, inside in zip(names, sets[i], strict=True) if inside]
        said = ", ".join(plausible) or "none is typical"
        print(f"  image {i}: accepted {bool(accepted)}; {said}")
    print(f"\nThe rule: {output / 'rule.json'}; the model with it: {output / 'with_rule.keras'}")


QUICK = base.Settings(width=8, stages=2, num_cycles=3, range_test=(("num_steps", 20),))


if __name__ == "__main__":
    main()
