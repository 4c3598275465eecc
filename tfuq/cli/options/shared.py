"""Arguments that several commands share, and the texts about them."""

import argparse
import math

CALIBRATIONS = ("temperature", "vector", "isotonic", "beta", "dirichlet", "venn-abers")
MODEL_HELP = """\
MODEL is a file saved by Keras (model.keras, loaded in safe mode), a folder that
tfuq.ensembles.DeepEnsemble.save wrote, the folder of a SavedModel, such as of `tfuq export`, or
an .onnx or .tflite file of `tfuq export`. The hashes beside an export are checked. A SavedModel
is code, which may read and write files: it takes --trust, or --key and a signature."""
DATA_HELP = """\
DATA is an .npz file with inputs `x` and labels `y` (or x_test, y_test; images, labels;
test_images, test_labels; JPEG files in bytes, offsets), or a folder of images (png, jpg, bmp,
gif; tif and webp with Pillow), in which sub-folders are classes and have their names, whatever
folders they hold. All count, empty ones too. Images that cannot be read are left out and named.

What is declared of the model (`tfuq.predictive.declare`, saved with it) is applied: names of
classes, by which sub-folders and labels that are texts are known, and the range, size and
channels of images. Otherwise `--class-names` says the names, in the order of the model's
output; without them there has to be a folder for each class, in that order. Images are then
resized to what the model takes, and `--scale` has to be given: 1 for pixels from 0 to 255,
0.00392156862745098 for 0 to 1."""


def number(text):
    """A finite number of a command line: NaN is neither above nor below what is asked for."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a finite number, not {text}")
    return value


def share(text):
    """A fraction of a command line, which is no percentage."""
    value = number(text)
    if not 0 <= value <= 1:
        per_cent = f": {value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
        raise argparse.ArgumentTypeError(f"a fraction in [0, 1], not {text}{per_cent}")
    return value


def add_model(parser):
    parser.add_argument("model", metavar="MODEL", help="model.keras, a folder, .onnx or .tflite")
    group = parser.add_argument_group("a SavedModel, which is code")
    group.add_argument("--trust", action="store_true", help="loads and runs it")
    group.add_argument(
        "--key", metavar="FILE", help="public key (PEM) of who must have signed the export"
    )


def add_data(parser):
    """DATA and how it is read."""
    parser.add_argument("data", metavar="DATA", help="an .npz file, or a folder of images")
    group = parser.add_argument_group("how data are read")
    group.add_argument("--split", help="part of an .npz file: test reads x_test, y_test")
    group.add_argument("--scale", type=number, help="inputs are multiplied by this (1)")
    group.add_argument(
        "--class-names",
        "--names",
        metavar="A,B",
        help="of the model's classes, in the order of its output",
    )
    group.add_argument("--batch-size", type=int, default=32, help="examples at a time (32)")


def add_prediction(parser):
    """How a model predicts."""
    group = parser.add_argument_group("how the model predicts")
    group.add_argument(
        "--num-samples", type=int, help="networks that are drawn, if it has random layers (30)"
    )
    group.add_argument("--seed", type=int, default=0, help="from which they are drawn (0)")
    group.add_argument(
        "--from-logits",
        choices=("yes", "no"),
        help="whether it gives logits; by default what its last layer or its loss says",
    )
    group.add_argument("--family", help="of a regression that does not say it: normal, point, ...")
    group.add_argument("--output-name", help="which output, if it has several: an index or name")


def add_intervals(parser):
    """Which intervals a regression tells."""
    group = parser.add_argument_group("intervals of a regression")
    group.add_argument("--level", type=share, help="probability of the central one (0.9)")
    group.add_argument(
        "--conformal", metavar="FILE", help="a ConformalRegressor, as `calibrate` writes it"
    )


def add_ood(parser):
    parser.add_argument("--ood", metavar="FILE", help="a detector, as its `save` writes it")


def add_rule(parser):
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
