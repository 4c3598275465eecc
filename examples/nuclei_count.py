"""How many nuclei are on an image, with an interval that holds, and when not to answer.

    python examples/nuclei_count.py           # microscope images, the file in --data or TFUQ_DATA
    python examples/nuclei_count.py --quick   # under a minute; without the file on drawn discs

A small network reads an image and says the logarithm of the number as a normal distribution
(`NormalDense`), so that an interval says "from 20 to 31" and an error counts in percent. It has
learned from one kind of microscope (the Data Science Bowl of 2018). Other images of that kind are
shared out: on one part the intervals are made conformal, and a rule is fitted that answers only
where few answers are more than a quarter off; on the rest both hold as promised. Images of another
kind, stained sections, show what a promise is worth outside of what it was made for. The number is
that of the connected pieces of the mask: nuclei that touch count as one. It needs the extra
`examples`.
"""

import argparse
import io
import os
import pathlib
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from scipy import ndimage

import tfuq
from tfuq import selective
from tfuq.predictive import predict_uncertainty

FILE = "dsb2018_nuclei_128_jpeg.npz"
SIDE = 128
KNOWN, OTHER = 0, 2  # kinds of microscope: fluorescence, stained
TOLERANCE = np.log(1.25)  # an answer is wrong if it is more than a quarter off
LEVEL = 0.9
EPOCHS, QUICK_EPOCHS, QUICK_IMAGES = 48, 4, 120


class Part(NamedTuple):
    """Images `(n, 128, 128, 3)`, uint8, and the logarithms of their numbers, `(n,)`."""

    x: np.ndarray
    y: np.ndarray


# --- Data -------------------------------------------------------------------------------------


def default_folder():
    """Where the file is looked for unless `--data` says otherwise."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    return pathlib.Path(os.environ.get("TFUQ_DATA") or beside)


def counted(masks):
    """Logarithms of the numbers of connected pieces, of which each image has one or more."""
    return np.log([max(ndimage.label(mask)[1], 1) for mask in masks]).astype("float32")


def load_nuclei(folder):
    """Images of the kind that is learned, and of another kind."""
    from PIL import Image

    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{FILE} is missing in {folder}. Name its folder with --data or TFUQ_DATA, "
            "or use --quick, which draws discs where there is no file."
        )
    with np.load(path, allow_pickle=False) as file:
        files = np.split(file["bytes"], file["offsets"][1:-1])
        masks = np.unpackbits(file["mask_packed"], axis=1)[:, : SIDE * SIDE]
        kind = file["modality"]
    x = np.stack([Image.open(io.BytesIO(f.tobytes())).convert("RGB") for f in files])
    y = counted(masks.reshape(-1, SIDE, SIDE))
    return Part(x[kind == KNOWN], y[kind == KNOWN]), Part(x[kind == OTHER], y[kind == OTHER])


def draw_discs(count, seed, *, is_other=False):
    """SYNTHETIC images: grey discs on black, or of the other kind violet ones on rose."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((count, SIDE, SIDE), bool)
    for mask in masks:
        for row, column in rng.uniform(0, SIDE, size=(int(rng.geometric(0.05)), 2)):
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < rng.uniform(3, 7) ** 2
    colours = [(230, 190, 220), (110, 60, 140)] if is_other else [(10, 10, 10), (150, 150, 150)]
    x = np.where(masks[..., None], *(np.array(colour) for colour in colours[::-1]))
    x = x + rng.normal(scale=12, size=(*masks.shape, 1))
    return Part(x.clip(0, 255).astype("uint8"), counted(masks))


def load_asked(arguments):
    try:
        known, other = load_nuclei(arguments.data)
    except FileNotFoundError as error:
        if not arguments.quick:
            raise SystemExit(str(error)) from None
        print(f"{error}\nSo these are SYNTHETIC discs.")
        return draw_discs(3 * QUICK_IMAGES, 0), draw_discs(60, 1, is_other=True)
    if arguments.quick:
        known = Part(*(array[: 3 * QUICK_IMAGES] for array in known))
    return known, other


def share_out(part, seed):
    """Images to learn from, to fit intervals and the rule on, and to judge by."""
    rows = np.random.default_rng(seed).permutation(len(part.y))
    rows = np.split(rows, [int(0.5 * len(rows)), int(0.78 * len(rows))])
    return [Part(part.x[chosen], part.y[chosen]) for chosen in rows]


# --- The network, its intervals and the rule --------------------------------------------------


def train(part, epochs, seed):
    """A network of the eight symmetries of each image."""
    keras.utils.set_random_seed(seed)
    layers, head = keras.layers, tfuq.layers.NormalDense(1)
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3))])
    model.add(layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False))  # the light
    for width in (16, 32, 48):
        model.add(layers.Conv2D(width, 3, strides=2, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    for layer in (layers.GlobalAveragePooling2D(), layers.Dense(32, activation="relu"), head):
        model.add(layer)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(part.y) // 16))
    model.compile(keras.optimizers.Adam(rate), head.negative_log_likelihood(), jit_compile=False)
    for epoch in range(epochs):
        x = np.rot90(part.x, epoch % 4, axes=(1, 2))
        x = x[:, :, ::-1] if epoch // 4 % 2 else x
        model.fit(x, part.y, batch_size=16, verbose=0)
    return model


def fit_rule(found, y, target):
    """The rule for the lowest risk that can be promised, if the target cannot."""
    options = {"tolerance": float(TOLERANCE), "confidence": 0.9}
    try:
        return selective.RejectionRule.fit(found, y, target_risk=target, **options)
    except selective.UnattainableRisk as refusal:
        print(f"\n{refusal}")
        target = round(refusal.best_risk + 0.01, 2)
        return selective.RejectionRule.fit(found, y, target_risk=target, **options)


def tell(name, found, y, sets, rule):
    """A row of what holds of some images."""
    said, answered = sets.evaluate(found, y), rule.evaluate(found, y)
    off = np.median(np.abs(np.expm1(found.mean[:, 0] - y)))
    wrong = "none" if np.isnan(answered.risk) else f"{answered.risk:.1%}"
    raw = tfuq.metrics.prediction_interval_coverage(y, found, LEVEL)
    print(
        f"| {name} | {len(y)} | {off:.1%} | {raw:.1%} | {said.coverage:.1%} | "
        f"{answered.coverage:.1%} | {1 - answered.accuracy:.1%} | {wrong} |"
    )


def draw(found, sets, judge, path, note=None):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    options = {"intervals": sets.interval(found), "quantity": "ln(number of nuclei)"}
    tfuq.plots.predicted_against_true(judge.y, found, ax=left, **options)
    tfuq.plots.error_against_width(judge.y, found, n_bins=5, ax=right, **options)
    figure.suptitle(note, color="tab:red")
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="DIR", default=default_folder(), help="default: %(default)s")
    add("--target-risk", type=float, default=0.1, help="wrong among the accepted (%(default)s)")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for files")
    add("--quick", action="store_true", help="few images and epochs: does it run?")
    arguments = parser.parse_args(argv)
    known, other = load_asked(arguments)
    learn, fit, judge = share_out(known, arguments.seed)
    print(
        f"{len(learn.y)} images to learn from, {len(fit.y)} to fit on, {len(judge.y)} to judge by"
    )
    model = train(learn, QUICK_EPOCHS if arguments.quick else EPOCHS, arguments.seed)
    found_fit, found, found_other = (
        predict_uncertainty(model, part.x) for part in (fit, judge, other)
    )
    sets = selective.ConformalRegressor.fit(
        found_fit, fit.y, target_coverage=LEVEL, method="normalized"
    )
    rule = fit_rule(found_fit, fit.y, arguments.target_risk)
    print(f"\n{sets.describe()}\n\n{rule.describe()}\n")
    print("| images | n | median error | in interval | conformal | answered | wrong | of answers |")
    print("|" + " --- |" * 8)
    tell("the same kind", found, judge.y, sets, rule)
    tell("another kind", found_other, other.y, sets, rule)
    ends = np.exp(np.stack(sets.interval(found[:5]), -1)[:, 0])
    print("\nThe first images:")
    for truth, answer, (low, high), accepted in zip(
        np.exp(judge.y[:5]), np.exp(found.mean[:5, 0]), ends, rule.accept(found[:5]), strict=True
    ):
        verdict = "answered" if accepted else "referred to a person"
        print(f"  {truth:.0f} nuclei: {answer:.0f}, from {low:.0f} to {high:.0f}; {verdict}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    note = (
        "--quick: few images and epochs. This picture means nothing." if arguments.quick else None
    )
    draw(found, sets, judge, arguments.output / "nuclei_count.png", note)
    print(f"\nThe pictures: {arguments.output / 'nuclei_count.png'}")


if __name__ == "__main__":
    main()
