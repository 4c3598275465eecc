"""Which inputs does a classifier not know? Gradients and a dozen other scores, side by side.

    python examples/ood_detection.py                   # CIFAR-10, files in --data or TFUQ_DATA
    python examples/ood_detection.py --model mnist     # handwritten digits
    python examples/ood_detection.py --quick           # scikit-learn's digits, under a minute

A small residual network learns its classes; then it meets images of its own test set and of sets
that it has never seen (Lee and AlRegib 2020, section 4). The table says how well each score tells
one from the other: detection accuracy, AUROC, AUPR with in- and with out-of-distribution images as
the positives, and the share of unknown images accepted where 95 % of the known ones are.

Two methods learn from unknown images: the weights of `Mahalanobis (P+FE)` and the gradient
detector. As in the paper they learn from 80 % of the set that they are then judged on; under "seen:
another" they have learned from another set, which is what a user has to hope for. "brightness" is a
check: a score that knows only how bright an image is. Where that is good, the sets are easy to tell
apart, and no other score proves much.

With `--quick` the digits 0 to 4 are known; 5 to 9, mirror images and noise are not, and four scores
are shown. It needs the extra `examples`.
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
from tfuq import ood

FIT = 0.8  # of unknown images and as many known ones: for the methods that learn from them
COLUMNS = ("detection_accuracy", "auroc", "aupr_in", "aupr_out", "fpr_at_tpr")
QUICK_SCORES = ("MSP", "ODIN", "Mahalanobis (V)", "KNN")
SETTINGS = base.Settings(num_cycles=3)  # 7 epochs


class Sets(NamedTuple):
    """Images of a model's own kind with their labels, and images of other sets by name; uint8."""

    train: tuple
    test: tuple
    unknown: dict


# --- Data -------------------------------------------------------------------------------------


def colour(images, size=base.SIZE):
    """Grey images `(n, h, w, 1)` with three channels, resized."""
    images = keras.ops.image.resize(images.astype("float32"), (size, size))
    images = np.clip(np.round(keras.ops.convert_to_numpy(images)), 0, 255).astype("uint8")
    return np.repeat(images, 3, axis=-1)


def load_cifar10(folder, limit):
    train, test = (base.read(folder, "cifar10_jpeg.npz", part) for part in ("train", "test"))
    with np.load(pathlib.Path(folder) / "tinyimagenet32_val_jpeg.npz") as file:
        apart = file["cifar10_overlap"]  # of each class: 0 where CIFAR-10 has nothing like it
    tiny, tiny_class = base.read(folder, "tinyimagenet32_val_jpeg.npz", "test")
    textures, _ = base.read(folder, "ood32_dev_jpeg.npz", "dtd")
    flowers, _ = base.read(folder, "ood32_dev_jpeg.npz", "flowers")
    digits, _ = base.read(folder, "mnist.npz", "test")
    unknown = {
        "Tiny ImageNet": tiny[apart[tiny_class] == 0],
        "textures": textures,
        "flowers": flowers,
        "MNIST": colour(digits[:limit]),
    }
    return limited(Sets(train, test, unknown), limit)


def load_mnist(folder, limit):
    def grey(name, part):
        images, labels = base.read(folder, name, part)
        return colour(images), labels

    with np.load(pathlib.Path(folder) / "omniglot_small28.npz") as file:
        characters = file["x"][..., None]
    unknown = {
        "Fashion-MNIST": grey("fashion_mnist_part.npz", "test")[0],
        "notMNIST": grey("notmnist_test.npz", "test")[0],
        "Omniglot": colour(characters),
    }
    return limited(Sets(grey("mnist.npz", "train"), grey("mnist.npz", "test"), unknown), limit)


def load_digits():
    data = base.load_digits(0)
    strange = np.concatenate([part[0] for part in base.load_digits(5)])
    noise = np.random.default_rng(0).integers(256, size=(300, 8, 8, 1)).repeat(3, axis=-1)
    unknown = {"digits 5 to 9": strange, "mirrored": data.test[0][:, :, ::-1], "noise": noise}
    test = tuple(np.concatenate(arrays) for arrays in zip(data.validation, data.test, strict=True))
    return Sets(data.train, test, {k: v.astype("uint8") for k, v in unknown.items()})


LOADERS = {"cifar10": load_cifar10, "mnist": load_mnist}


def limited(sets, limit):
    """At most `limit` test images, and of each unknown set, drawn at random."""
    rng = np.random.default_rng(0)

    def draw(*arrays):
        rows = rng.permutation(len(arrays[0]))[:limit]
        return tuple(array[rows] for array in arrays)

    unknown = {name: draw(images)[0] for name, images in sets.unknown.items()}
    return sets._replace(test=draw(*sets.test), unknown=unknown)


# --- The classifier, and what scores its inputs -----------------------------------------------


def train_model(sets, settings, seed):
    keras.utils.set_random_seed(seed)
    trunk = base.build_trunk(sets.train[0].shape[1:], settings)
    model = base.make_model(trunk, int(sets.train[1].max()) + 1, base.sgd())
    train, held_out = base.split_off(*sets.train, len(sets.train[0]) // 10)
    data = base.Data(train, held_out, sets.test)
    base.train_rapidly(model, data, settings, {"cycle_mult": 2, "layer_rates": None}, [])
    return model


def stage_names(model):
    """The outputs of the residual stages, and None for the features of the last layer."""
    return [*(x.name for x in model.get_layer("trunk").layers if x.name.startswith("stage")), None]


def detectors(model):
    """What needs no unknown images to learn from."""
    return {
        "MSP": ood.MaxSoftmax(),
        "ODIN": ood.ODIN(epsilon=0.36),  # of 255: the paper's 0.0014 of 1
        "Mahalanobis (V)": ood.Mahalanobis(),
        "relative Mahalanobis": ood.RelativeMahalanobis(),
        "MaxLogit": ood.MaxLogit(),
        "Energy": ood.Energy(),
        "Entropy": ood.Entropy(),
        "KNN": ood.KNN(),
        "ViM": ood.ViM(dim=model.get_layer("head").input.shape[-1] // 2),
        "ReAct": ood.ReAct(),
        "GradNorm": ood.GradNorm(),
    }


def brightness(images, known):
    """How far the mean brightness is from that of known images."""
    return np.abs(images.mean(axis=(1, 2, 3)) - known.mean())


def judged(known, unknown):
    """The columns of the table, from scores of known and of unknown images."""
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    return tfuq.metrics.ood_metrics(labels, np.concatenate([known, unknown]))


def unsupervised_rows(model, sets, names=None):
    """`{(method, set): columns}` of the scores that learn from known images alone."""
    x, y = (array[:5000] for array in sets.train)
    found = {}
    for name, detector in detectors(model).items():
        if names is not None and name not in names:
            continue
        detector.fit(model, x, y, batch_size=256)
        scores = {
            key: detector.score(images, batch_size=256)
            for key, images in {"known": sets.test[0], **sets.unknown}.items()
        }
        for key in sets.unknown:
            found[name, key] = judged(scores["known"], scores[key])
    for key, images in sets.unknown.items():
        known = sets.test[0]
        found["brightness", key] = judged(brightness(known, known), brightness(images, known))
    return found


def split(count):
    """Rows to learn from, and rows to be judged on."""
    end = int(FIT * count)
    return slice(end), slice(end, None)


def supervised_rows(model, sets, seed):
    """Those that learn from unknown images, of the set they are judged on and of another one."""
    features = ood.GradientFeatures(model, batch_size=64)
    known = features(sets.test[0])
    norms = {name: features(images) for name, images in sets.unknown.items()}
    ensemble = ood.Mahalanobis(layers=stage_names(model), epsilon=0.36)
    ensemble.fit(model, *(array[:5000] for array in sets.train), batch_size=256)
    fit_known, judge_known = split(len(known))
    names, found = list(sets.unknown), {}
    density = ood.GradientDensity().fit_features(known[fit_known])
    for i, name in enumerate(names):
        fit_own, judge_own = split(len(norms[name]))
        detector = ood.GradientDetector(seed=seed).fit_features(
            known[fit_known], norms[name][fit_own]
        )
        ensemble.fit_weights(sets.test[0][fit_known], sets.unknown[name][fit_own], batch_size=256)
        other = names[(i + 1) % len(names)]
        for key, seen in ((name, "itself"), (other, "another")):
            rows = split(len(norms[key]))[1]
            own = detector.score_features(known[judge_known])
            found[f"gradients, seen: {seen}", key] = judged(
                own, detector.score_features(norms[key][rows])
            )
            found[f"Mahalanobis (P+FE), seen: {seen}", key] = judged(
                ensemble.score(sets.test[0][judge_known], batch_size=256),
                ensemble.score(sets.unknown[key][rows], batch_size=256),
            )
        found["gradients, seen: nothing", name] = judged(
            density.score_features(known[judge_known]),
            density.score_features(norms[name][judge_own]),
        )
    return found, {"known": known, **norms}, features.names


# --- The script -------------------------------------------------------------------------------


def print_table(rows, sets):
    width = max(len(method) for method, _ in rows) + 2
    for name in sets.unknown:
        print(f"\n{name}, {len(sets.unknown[name])} images")
        print(" " * width + "".join(f"{column:>20}" for column in COLUMNS))
        for (method, key), found in rows.items():
            if key == name:
                print(f"{method:{width}}" + "".join(f"{found[c]:20.4f}" for c in COLUMNS))


def draw(model, sets, norms, names, corruptions, output, note=None):
    """Distributions of gradients (figure 3), and what corruptions do to the accuracy."""
    from matplotlib import pyplot

    output.mkdir(parents=True, exist_ok=True)
    kernels = [i for i, name in enumerate(names) if name.endswith("kernel")]
    chosen = [kernels[0], kernels[len(kernels) // 2], kernels[-1]]
    figure = tfuq.plots.gradient_distributions(norms, names, columns=chosen)
    figure.text(0.5, 0.5, note or "", color="tab:red", ha="center", size="x-large")
    figure.savefig(output / "gradient_distributions.png", dpi=90, bbox_inches="tight")
    x, y = sets.test
    report = tfuq.corruptions.corruption_report(
        model, x[:500], y[:500], corruptions, severities=(1, 3, 5), from_logits=True
    )
    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    tfuq.plots.corruption_heat_map(report, ax=axes)
    figure.suptitle(note, color="tab:red")
    figure.savefig(output / "corruptions.png", dpi=90)
    pyplot.close("all")
    print(f"\n{report.to_markdown()}\n\nfigures: {output}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="DIR", default=base.default_folder(), help="default: %(default)s")
    add("--model", choices=LOADERS, default="cifar10", help="what is known (%(default)s)")
    add("--images", type=int, default=1000, help="of each test set, at most (%(default)s)")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=pathlib.Path, default="demo_output", help="for figures")
    add("--quick", action="store_true", help="small digits, a small network: does it run?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        sets, settings = load_digits(), base.QUICK
    else:
        sets, settings = LOADERS[arguments.model](arguments.data, arguments.images), SETTINGS
    model = train_model(sets, settings, arguments.seed)
    accuracy = model.evaluate(*sets.test, verbose=0)[1]
    print(f"{len(sets.train[0])} training images, test accuracy {accuracy:.3f}")
    rows = unsupervised_rows(model, sets, QUICK_SCORES if arguments.quick else None)
    supervised, norms, names = supervised_rows(model, sets, arguments.seed)
    print_table({**rows, **supervised}, sets)
    kinds = ("gaussian_noise", "contrast") if arguments.quick else None
    note = "--quick: small digits. This picture means nothing." if arguments.quick else None
    draw(model, sets, norms, names, kinds, arguments.output, note)


if __name__ == "__main__":
    main()
