"""Six ways to train a U-Net on medical images: how much of it must be random?

    python examples/sparse_bayes_segmentation.py --dataset nuclei --json nuclei.json
    python examples/sparse_bayes_segmentation.py --dataset vessels --json vessels.json
    python examples/sparse_bayes_segmentation.py --dataset isic --data-dir DIR
    python examples/sparse_bayes_segmentation.py --dataset lidc --data-dir DIR   # four raters
    python examples/sparse_bayes_segmentation.py --json nuclei.json --report
    python examples/sparse_bayes_segmentation.py --quick                        # does it run here?

Deterministic, an ensemble of 5, networks of which 1 %, 5 % and 20 % of the weights are random, and
a fully Bayesian one (Abboud et al. 2024, section 3.3 and table 1). All have the same budget of E
epochs: each member of the ensemble has E; the partly Bayesian ones have E/2 deterministic, are
told their most salient weights, and have E/2 with these random, in one `fit`; the fully Bayesian
one is trained from scratch for E. Predictions are means over 5 draws of the weights. Where raters
drew several masks, each training step has that of one, drawn for each image.

What differs from the paper: smaller images and fewer of them; 8 channels at the start (`--width`)
and two halvings (`--levels`); 8 epochs; 1 draw of the weights per training step instead of 5
(`--train-samples 5`); Adam with the learning rate 0.002 instead of SGD with 0.01, which needs more
epochs (the weight decay is the paper's, 1e-5; what sets the noise does not decay); and no class
weights. beta falls from 0.2 to 0.01 over all epochs as in the paper, on a KL divergence divided by
the number of training pixels: divided by that of the images alone it would be thousands of times
the loss.

DIR, by `--data-dir` or the environment variable TFUQ_DATA, holds

    nuclei     dsb2018_nuclei_128_jpeg.npz: bytes, offsets (JPEG files end to end), mask_packed
               (numpy.packbits of each mask). Halved to 64x64; every fifth image is for testing.
    vessels    drive_vessels_jpeg.npz (DRIVE): train_bytes, train_offsets, test_..., and the packed
               vessel_train, vessel_test_r1, vessel_test_r2, fov_train, fov_test. Trained on random
               patches, tested on whole images within the field of view, against both raters.
    isic       X.jpg and X_segmentation.png, in any folders below DIR; resized to 64x64; every
               fifth image is for testing.
    lidc       lidc.npz, with images (n, height, width) and masks (n, height, width, 4), or many
               .npz files of one image and masks each. Every fourth is for testing, in the order of
               the files: keep the patches of a patient together.

By default, all methods and three seeds of one data set take 15 to 20 minutes on two free cores. It
needs the extra `examples`. The first seed's maps go to `sparse_bayes_DATASET_METHOD.png`.
"""

import functools
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import _sparse_bayes as shared
import keras
import numpy as np

import tfuq

SIZE, PATCH = 64, 64
DEFAULTS = {
    "nuclei": {"epochs": 8, "images": 200, "test_images": 133},
    "vessels": {"epochs": 8, "images": 200, "test_images": 5, "test_batch_size": 1},
    "isic": {"epochs": 8, "images": 200, "test_images": 200},
    "lidc": {"epochs": 8, "images": 200, "test_images": 200},
}
COMMON = {"width": 8, "batch_size": 10, "test_batch_size": 50, "levels": 2}
QUICK = {"width": 4, "epochs": 2, "images": 40, "test_images": 10, "levels": 1}
QUICK_VESSELS = {"test_images": 1}
BETA = (0.2, 0.01)
COLUMNS = {"dice": "Dice", "iou": "IoU", "brier": "Brier", "entropy": "entropy", "ece": "ECE"}
RATERS = {"dice_rater_1": "Dice, rater 1", "dice_rater_2": "Dice, rater 2"}
PAPER_COLUMNS = (
    *("LIDC Dice", "LIDC Brier", "LIDC entropy"),
    *("ISIC IoU", "ISIC Brier", "ISIC entropy"),
)
PAPER = {
    "deterministic": (0.710, 0.075, 0.007, 0.801, 0.110, 0.151),
    "ensemble": (0.687, 0.075, 0.007, 0.808, 0.109, 0.154),
    "partial 1 %": (0.800, 0.004, 0.010, 0.783, 0.068, 0.154),
    "partial 5 %": (0.750, 0.005, 0.016, 0.762, 0.076, 0.197),
    "partial 20 %": (0.750, 0.013, 0.050, 0.677, 0.110, 0.300),
    "Bayesian": (0.670, 0.110, 0.300, 0.675, 0.111, 0.273),
}
SHOWN = 3  # test images in a figure


# --- Data: images uint8 (n, h, w, channels), masks (n, h, w, raters), fields of view (n, h, w) ---


def whole(x, masks):
    """A part whose images count everywhere."""
    return x, masks, np.ones(x.shape[:3], bool)


def every(step, x, masks):
    """Parts for training and for testing, which is every `step`-th image."""
    test = np.arange(len(x)) % step == 0
    return whole(x[~test], masks[~test]), whole(x[test], masks[test])


def unpack(packed, shape):
    """Rows of `numpy.packbits` as masks `(n, height, width)`."""
    size = int(np.prod(shape))
    return np.unpackbits(packed, axis=1)[:, :size].reshape(len(packed), *shape)


def load_nuclei(folder, settings):
    file = shared.read_file(folder, "dsb2018_nuclei_128_jpeg.npz", "nuclei and their masks")
    x = shared.decode_jpegs(file["bytes"], file["offsets"], SIZE)
    masks = unpack(file["mask_packed"], (128, 128))
    halves = masks.reshape(len(masks), SIZE, 2, SIZE, 2).mean(axis=(2, 4)) >= 0.5
    return every(5, x, halves[..., None].astype("float32"))


def draw_patches(x, mask, fov, count, seed=0):
    """Patches from random places whose centre is within the field of view."""
    rng = np.random.default_rng(seed)
    half, (height, width) = PATCH // 2, fov.shape[1:]
    patches = []
    while len(patches) < count:
        image = rng.integers(len(x))
        row, column = rng.integers((half, half), (height - half, width - half))
        if fov[image, row, column]:
            place = image, slice(row - half, row + half), slice(column - half, column + half)
            patches.append((x[place], mask[place]))
    return [np.stack(column) for column in zip(*patches, strict=True)]


def pad(images, multiple=16):
    """Zeros below and to the right, so that the network can halve them four times."""
    rest = [(0, -size % multiple) for size in images.shape[1:3]]
    return np.pad(images, [(0, 0), *rest, *[(0, 0)] * (images.ndim - 3)])


def load_vessels(folder, settings):
    file = shared.read_file(folder, "drive_vessels_jpeg.npz", "DRIVE, retinal vessels")
    x = {
        p: shared.decode_jpegs(file[f"{p}_bytes"], file[f"{p}_offsets"]) for p in ("train", "test")
    }
    names = ("vessel_train", "fov_train", "vessel_test_r1", "vessel_test_r2", "fov_test")
    shape = tuple(int(size) for size in file["shape"])
    vessel, fov, *test = (unpack(file[name], shape) for name in names)
    patches, masks = draw_patches(x["train"], vessel, fov, settings["images"])
    test = [pad(array) for array in (x["test"], np.stack(test[:2], axis=-1), test[2])]
    masks = masks[..., None].astype("float32")
    return whole(patches, masks), (test[0], test[1].astype("float32"), test[2].astype(bool))


def load_isic(folder, settings):
    from PIL import Image

    masks = sorted(folder.rglob("*_segmentation.png"))
    images = {path.stem: path for path in folder.rglob("*.jpg")}
    pairs = [(images.get(mask.stem.removesuffix("_segmentation")), mask) for mask in masks]
    pairs = [pair for pair in pairs if pair[0] is not None]
    if len(pairs) < 5:
        raise shared.missing(folder / "X.jpg, X_segmentation.png", f"{len(pairs)} pairs found")
    limit = settings["images"] + settings["test_images"]
    read = [[Image.open(path).resize((SIZE, SIZE)) for path in pair] for pair in pairs[:limit]]
    x = np.stack([image.convert("RGB") for image, _ in read])
    drawn = np.stack([mask.convert("L") for _, mask in read]) > 127
    return every(5, x, drawn[..., None].astype("float32"))


def load_lidc(folder, settings):
    if (folder / "lidc.npz").is_file():
        file = shared.read_file(folder, "lidc.npz", "LIDC-IDRI patches")
        x, masks = file["images"], file["masks"]
    else:
        files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
        files = [file for file in files if {"image", "masks"} <= set(file.files)]
        if len(files) < 4:
            raise shared.missing(folder / "lidc.npz", f"and {len(files)} files of one patch found")
        x, masks = (np.stack([file[name] for file in files]) for name in ("image", "masks"))
    low, high = float(x.min()), float(x.max())
    x = (255 * (x - low) / max(high - low, 1e-6)).round().astype("uint8")
    return every(4, x[..., None], masks.astype("float32"))


def make_shapes(count, settings, seed=0):
    """SYNTHETIC: noise with a bright disc; where there are raters, theirs is a little larger."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    raters = {"vessels": 2, "lidc": 4}.get(settings["dataset"], 1)
    parts = []
    for number in range(2):
        centres, radii = rng.uniform(8, 24, (2, count)), rng.uniform(4, 8, count)
        distances = [
            np.hypot(rows - row, columns - column) for row, column in zip(*centres, strict=True)
        ]
        distances = np.stack(distances) - radii[:, None, None]
        x = rng.integers(0, 128, (count, 32, 32, 1)) + 100 * (distances < 0)[..., None]
        seen = raters if number or settings["dataset"] == "lidc" else 1
        masks = np.stack([distances < rater for rater in range(seen)], axis=-1)
        parts.append(whole(x.astype("uint8"), masks.astype("float32")))
    return parts


LOADERS = {"nuclei": load_nuclei, "vessels": load_vessels, "isic": load_isic, "lidc": load_lidc}


def load(arguments, settings):
    """The two parts; with `--quick`, synthetic ones where the files are not."""
    folder = arguments.data_dir or shared.default_folder()
    try:
        return LOADERS[arguments.dataset](folder, settings)
    except FileNotFoundError as error:
        if not arguments.quick:
            raise
        print(f"{error}\nSYNTHETIC images instead.")
        return make_shapes(QUICK["images"], settings)


# --- The network ------------------------------------------------------------------------------


def two_convolutions(kit, x, width):
    for _ in range(2):
        x = kit.conv(width, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return x


def build_unet(kit, channels, width, levels):
    """U-Net (Ronneberger et al. 2015) with batch normalization, from images of any size."""
    inputs = keras.Input((None, None, channels), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    skipped = []
    for level in range(levels):
        skipped.append(two_convolutions(kit, x, width * 2**level))
        x = keras.layers.MaxPooling2D()(skipped[-1])
    x = two_convolutions(kit, x, width * 2**levels)
    for level in reversed(range(levels)):
        x = kit.up(width * 2**level, 2, strides=2)(x)
        x = keras.layers.Concatenate()([skipped[level], x])
        x = two_convolutions(kit, x, width * 2**level)
    return keras.Model(inputs, kit.conv(1, 1)(x))


# --- Judgement --------------------------------------------------------------------------------


def intersection_over_union(mask, probs, inside):
    """TP / (TP + FP + FN) of the pixels of all images."""
    metric = keras.metrics.BinaryIoU(target_class_ids=[1], threshold=0.5)
    metric.update_state(mask, probs, sample_weight=inside.astype("int32"))
    return float(metric.result())


def pooled_dice(masks, probs, inside):
    """Mean over raters of the Dice of the pixels of all images."""
    return tfuq.metrics.dice_score(
        masks, probs, aggregate="pool", raters_axis=-1, sample_weight=inside
    )


def judge(masks, fov, probs):
    """Against each rater, then the means; entropies do not ask them."""
    inside = fov.astype("float32")
    raters = [masks[..., i] for i in range(masks.shape[-1])]
    weigh = {"sample_weight": inside}
    found = {
        "dice": pooled_dice(masks, probs, inside),
        "iou": np.mean([intersection_over_union(m[..., None], probs, inside) for m in raters]),
        "brier": np.mean([tfuq.metrics.brier_score(m, probs, **weigh) for m in raters]),
        "entropy": tfuq.metrics.entropy_of_expectation(probs, **weigh),
        "ece": np.mean(
            [tfuq.metrics.expected_calibration_error(m, probs, **weigh) for m in raters]
        ),
    }
    if len(raters) > 1:
        for number in range(len(raters)):
            one = masks[..., number : number + 1]
            found[f"dice_rater_{number + 1}"] = pooled_dice(one, probs, inside)
    return {name: float(value) for name, value in found.items()}


def human_dice(masks, fov):
    """Dice between the first two raters of the test images."""
    first, second = masks[..., :1], masks[..., 1:2]
    return pooled_dice(first, second, fov.astype("float32"))


def draw(settings, folder, x, masks, method, stack, note=None):
    """The maps of the first test images, under a note."""
    try:
        from tfuq import plots
    except ImportError as error:
        print(f"No figure. {error}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    few = slice(min(SHOWN, len(x)))
    several = -1 if masks.shape[-1] > 1 else None
    figure = plots.uncertainty_maps(
        x[few], masks[few].astype(int), stack[:, few], raters_axis=several, palette="paper"
    )
    name = method.replace(" %", "").replace(" ", "_").lower()
    path = folder / f"sparse_bayes_{settings['dataset']}_{name}.png"
    figure.suptitle(note, color="tab:red")
    figure.savefig(path, dpi=120)
    print(f"Figure: {path}")


def make_problem(parts, settings):
    """The same images for every method and seed."""
    (x, masks, _), test = parts
    rows = np.random.default_rng(0).permutation(len(x))[: settings["images"]]
    x, masks = x[rows], masks[rows]
    x_test, *judged = (array[: settings["test_images"]] for array in test)
    sizes = (x.shape[-1], settings["width"], settings["levels"])
    several = masks.shape[-1] > 1
    return shared.Problem(
        build=lambda kit: build_unet(kit, *sizes),
        make_loss=functools.partial(keras.losses.BinaryCrossentropy, from_logits=True),
        x=x,
        y=masks[..., None, :] if several else masks,
        x_test=x_test,
        judge=functools.partial(judge, *judged),
        terms=int(np.prod(x.shape[:3])),
        beta=BETA,
        raters=several,
    ), judged


def read_arguments(argv):
    parser = shared.make_parser(__doc__)
    parser.add_argument("--dataset", choices=LOADERS, default="nuclei", help="(%(default)s)")
    help_text = "how often the U-Net halves the images (2; the paper's network: 4)"
    parser.add_argument("--levels", type=int, choices=range(1, 5), help=help_text)
    return shared.read_arguments(parser, argv)


def settings_of(arguments):
    defaults = {**COMMON, **DEFAULTS[arguments.dataset]}
    if arguments.quick:
        defaults |= QUICK | (QUICK_VESSELS if arguments.dataset == "vessels" else {})
    return shared.settings_of(arguments, defaults, ("levels",))


def columns_of(dataset):
    return {**COLUMNS, **RATERS} if dataset == "vessels" else COLUMNS


def print_table(settings, runs, step_flops):
    table = columns_of(settings["dataset"]), PAPER, PAPER_COLUMNS, step_flops
    shared.print_report(settings, runs, *table)
    if "human_dice" in runs[0]:
        print(f"Dice between the raters, on the test images: {runs[0]['human_dice']:.3f}.")


def main(argv=None):
    arguments = read_arguments(argv)
    step_flops = shared.read_step_flops(arguments.flops)
    if arguments.report:
        print_table(*shared.stored_runs(arguments.json), step_flops)
        return
    settings = settings_of(arguments)
    try:
        problem, (masks, fov) = make_problem(load(arguments, settings), settings)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    print(f"{settings['dataset']}: {len(problem.x)} training, {len(problem.x_test)} test images")
    if masks.shape[-1] > 1:
        problem = with_human(problem, human_dice(masks, fov))

    note = "--quick: two epochs. This picture means nothing." if arguments.quick else None

    def after_run(method, seed, stack):
        if seed == arguments.seeds[0]:
            draw(settings, arguments.output, problem.x_test, masks, method, stack, note)

    print_table(*shared.run_all(problem, settings, arguments, after_run), step_flops)


def with_human(problem, dice):
    """Keeps the raters' own agreement beside the figures."""
    judge_model = problem.judge
    return problem._replace(judge=lambda probs: {**judge_model(probs), "human_dice": dice})


if __name__ == "__main__":
    main()
