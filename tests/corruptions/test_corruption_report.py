"""The report and the three settings: numbers, tables, and who was trained on what."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from sklearn.metrics import accuracy_score, log_loss
from test_corruptions import refused

from tfuq import corruptions, metrics
from tfuq._random.global_state import derived_seed
from tfuq.corruptions import (
    CorruptionReport,
    NoiseSettings,
    corruption_report,
    evaluation,
    noise_settings,
)

RNG = np.random.default_rng(0)
X = RNG.random((24, 6, 6, 1)).astype("float32")
Y = (X.mean((1, 2, 3)) > 0.5).astype(int)
FIGURES = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
NAMES, SEVERITIES = ("gaussian_noise", "brightness"), (1, 5)


def by_brightness(images):
    """Probabilities of dark and bright."""
    bright = 1 / (1 + np.exp(-40 * (np.asarray(images).mean((1, 2, 3)) - 0.5)))
    return np.stack([1 - bright, bright], axis=-1)


def report(model=by_brightness, x=X, y=Y, *, verbose=0, **kwargs):
    arguments = {"corruptions": NAMES, "severities": SEVERITIES, "threshold": 0.8, **kwargs}
    return corruption_report(model, x, y, **arguments, verbose=verbose)


FOUND = report()


def corrupted(name, severity, batch_size=128, seed=0):
    parts = [X[i : i + batch_size] for i in range(0, len(X), batch_size)]
    return np.concatenate(
        [
            corruptions.corrupt(part, name, severity, seed=derived_seed(seed, number, 2))
            for number, part in enumerate(parts)
        ]
    )


# --- Numbers ----------------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn_and_the_metrics():
    for c, name in enumerate(NAMES):
        for s, severity in enumerate(SEVERITIES):
            probs = by_brightness(corrupted(name, severity))
            np.testing.assert_allclose(FOUND.accuracy[c, s], accuracy_score(Y, probs.argmax(-1)))
            np.testing.assert_allclose(FOUND.nll[c, s], log_loss(Y, probs), rtol=1e-5)
            ece = metrics.expected_calibration_error(Y, probs)
            np.testing.assert_allclose(FOUND.ece[c, s], ece)
            sure = probs.max(-1) >= 0.8
            assert FOUND.coverage[c, s] == sure.mean()
            right = probs.argmax(-1) == Y
            np.testing.assert_allclose(FOUND.selective_accuracy[c, s], right[sure].mean())
    assert FOUND.clean["accuracy"] == 1.0
    np.testing.assert_allclose(FOUND.clean["nll"], log_loss(Y, by_brightness(X)), rtol=1e-5)
    assert FOUND.accuracy[1, 1] < 0.8  # of bright images that are all called bright


def test_one_corruption_is_as_among_others():
    alone = report(corruptions=["gaussian_noise"], severities=[5])
    assert alone.nll[0, 0] == FOUND.nll[0, 1]
    assert report(seed=1).nll[0, 1] != FOUND.nll[0, 1]


def test_batches_have_noise_of_their_own():
    copies = np.repeat(X[:1], 4, axis=0)
    seen = []

    def look(images):
        seen.append(np.asarray(images))
        return by_brightness(images)

    report(look, copies, Y[:4], corruptions=["gaussian_noise"], severities=[1], batch_size=2)
    assert [len(images) for images in seen] == 4 * [2]
    assert len({image.tobytes() for image in np.concatenate(seen[2:])}) == 4


@pytest.mark.slow
def test_data_of_all_kinds():
    weight = np.arange(24) % 3
    expected = report(sample_weight=weight, batch_size=10)
    data = tf.data.Dataset.from_tensor_slices((X, Y, weight)).batch(10)
    from_dataset = report(x=data, y=None)
    for name in FIGURES:
        found, wanted = getattr(from_dataset, name), getattr(expected, name)
        np.testing.assert_allclose(found, wanted, err_msg=name)
    assert expected.clean == pytest.approx(from_dataset.clean)
    kept = weight > 0
    assert expected.coverage[0, 0] != FOUND.coverage[0, 0]
    noisy = by_brightness(corrupted("gaussian_noise", 5, 10))[kept]
    wanted = log_loss(Y[kept], noisy, sample_weight=weight[kept])
    np.testing.assert_allclose(expected.nll[0, 1], wanted, rtol=1e-5)


def linear_model(**kwargs):
    """Logits of `by_brightness`, for images in [0, 255]."""
    inputs = keras.Input((6, 6, 1))
    mean = keras.layers.GlobalAveragePooling2D()(inputs)
    dense = keras.layers.Dense(2, **kwargs)
    model = keras.Model(inputs, dense(mean))
    dense.set_weights([np.array([[0.0, 40 / 255]]), np.array([0.0, -20.0])])
    return model


def test_keras_models_their_logits_and_preprocessing():
    sharp = linear_model(activation="softmax")
    for model, flag in ((linear_model(), True), (of_logits(linear_model()), None), (sharp, None)):
        found = report(model, preprocess=lambda x: 255 * x, from_logits=flag, batch_size=10)
        wanted = report(batch_size=10)
        for name in FIGURES:
            np.testing.assert_allclose(
                getattr(found, name), getattr(wanted, name), atol=1e-4, err_msg=name
            )


def test_likelihoods_of_logits_do_not_underflow():
    found = report(linear_model(), preprocess=lambda x: 1e4 * x, severities=[5], from_logits=True)
    assert np.all(found.nll > 200) and np.isfinite(found.nll).all()


@pytest.mark.slow
def test_uint8_images_and_all_corruptions():
    images = np.round(255 * X).astype("uint8")
    found = report(x=images, corruptions=None, severities=[5])
    assert found.corruptions == corruptions.names()
    assert found.accuracy.shape == (len(corruptions.names()), 1)
    assert np.isfinite(found.ece).all()


# --- Mean corruption error --------------------------------------------------------------------


def of_errors(errors, clean):
    arrays = dict.fromkeys(FIGURES, 1 - np.array(errors))
    clean = dict.fromkeys(FIGURES, 1 - clean)
    return CorruptionReport(("fog", "snow"), (1, 5), clean, **arrays, threshold=0.5)


def test_error_beside_published_ones():
    """A model that errs as AlexNet does has an mCE of 1; kinds beyond the 15 do not count."""
    kinds = (*corruptions.names("benchmark"), "decolor")
    errors = [[0.886428] * 5, *([evaluation.ALEXNET[name]] * 5 for name in kinds[1:-1]), [1.0] * 5]
    arrays = dict.fromkeys(FIGURES, 1 - np.array(errors))
    clean = dict.fromkeys(FIGURES, 0.5)
    found = CorruptionReport(kinds, (1, 2, 3, 4, 5), clean, **arrays, threshold=0.5)
    found = found._replace(severity_of="imagenet-c")
    np.testing.assert_allclose(found.mean_corruption_error("alexnet"), 1)
    better = found._replace(accuracy=1 - np.array(errors) / 2)
    np.testing.assert_allclose(better.mean_corruption_error("alexnet"), 0.5)
    for other in (
        found._replace(severity_of="cifar10-c"),
        found._replace(severities=(1, 2, 3, 4, 4)),
        found._replace(corruptions=("fog", *kinds[1:])),
    ):
        refused("baseline", other.mean_corruption_error, "alexnet")
    refused("baseline", found.mean_corruption_error, "alexnet", relative=True)
    refused("baseline", found.mean_corruption_error, "resnet")
    refused("baseline", found.mean_corruption_error, found._replace(severity_of="cifar10-c"))


def test_report_says_whose_severities():
    assert FOUND.severity_of == "cifar10-c"
    large = np.repeat(np.repeat(X[:4], 15, axis=1), 15, axis=2)
    options = {"x": large, "y": Y[:4], "corruptions": ["brightness"], "severities": [1]}
    by_size = report(**options)
    assert by_size.severity_of == "imagenet-c"
    told = report(**options, severity_of="cifar10-c")
    assert told.severity_of == "cifar10-c" and told.nll[0, 0] != by_size.nll[0, 0]
    assert by_size.nll == report(**options, severity_of="imagenet-c").nll
    refused("severity_of", report, severity_of="imagenet")


def test_mean_corruption_error():
    """By hand: fog 0.3 / 0.6, snow 0.8 / 1.0; above clean 0.1 / 0.2 and 0.6 / 0.6."""
    found, baseline = (
        of_errors([[0.1, 0.2], [0.3, 0.5]], 0.1),
        of_errors([[0.2, 0.4], [0.4, 0.6]], 0.2),
    )
    assert found.mean_corruption_error() == pytest.approx(0.275)
    assert found.mean_corruption_error(relative=True) == pytest.approx(0.175)
    assert found.mean_corruption_error(baseline) == pytest.approx((0.5 + 0.8) / 2)
    assert found.mean_corruption_error(baseline, relative=True) == pytest.approx((0.5 + 1.0) / 2)
    assert found.mean_corruption_error(found) == pytest.approx(1)


def test_mean_corruption_error_needs_a_baseline_that_fits():
    found = of_errors([[0.1, 0.2], [0.3, 0.5]], 0.1)
    for baseline in (0.5, found._replace(corruptions=("fog", "frost")), FOUND):
        refused("baseline", found.mean_corruption_error, baseline)
    refused("baseline", found.mean_corruption_error, of_errors([[0.1, 0.2], [0.0, 0.0]], 0.0))


# --- Tables -----------------------------------------------------------------------------------


def cells(markdown):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.split("\n")]
    assert lines[1] == ["---", *["--:"] * (len(lines[0]) - 1)]  # a name, then numbers
    assert len({len(line) for line in lines}) == 1
    return [lines[0], *lines[2:]]


def test_tables_of_a_report(tmp_path):
    header, clean, *rows = cells(FOUND.to_markdown())
    assert header == ["corruption", *FIGURES] and clean[0] == "clean"
    assert [row[0] for row in rows] == list(NAMES)
    assert rows[1][1] == f"{FOUND.accuracy[1].mean():.4f}"
    header, clean, *rows = cells(FOUND.to_markdown("nll"))
    assert header == ["nll", "1", "5", "mean"] and clean[-1] == f"{FOUND.clean['nll']:.4f}"
    assert rows[0][2] == f"{FOUND.nll[0, 1]:.4f}"
    refused("figure", FOUND.to_markdown, "auroc")
    FOUND.to_csv(tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        clean, *rows = csv.DictReader(file)
    assert clean["corruption"] == "clean" and clean["severity"] == "0"
    assert float(clean["nll"]) == FOUND.clean["nll"]
    assert [(row["corruption"], int(row["severity"])) for row in rows] == [
        (name, severity) for name in NAMES for severity in SEVERITIES
    ]
    for name in FIGURES:
        np.testing.assert_array_equal(
            [float(row[name]) for row in rows], getattr(FOUND, name).ravel()
        )


@pytest.mark.parametrize(
    "argument, kwargs",
    [
        ("corruptions", {"corruptions": "fog"}),
        ("corruptions", {"corruptions": []}),
        ("corruptions", {"corruptions": ["fog", "rain"]}),
        ("severities", {"severities": []}),
        ("severities", {"severities": 3}),
        ("severity", {"severities": [0, 1]}),
        ("model", {"model": "resnet"}),
        ("images", {"x": X * 255}),
        ("y", {"y": None}),
        ("y_true", {"y": Y + 5}),
        ("y_pred", {"model": lambda x: 3 * by_brightness(x)}),
        ("threshold", {"threshold": 1.5}),
        ("n_bins", {"n_bins": 0}),
        ("batch_size", {"batch_size": 0}),
        ("seed", {"seed": -1}),
    ],
)
def test_reports_of_nothing(argument, kwargs):
    refused(argument, report, **kwargs)


def test_progress(capsys):
    report(verbose=1)
    assert "5/5" in capsys.readouterr().out


# --- Three settings ---------------------------------------------------------------------------

SPECKS = [{"amount": 0.1, "salt": 0.25}, {"amount": 0.5, "salt": 0.25}]


class Recorder(keras.Model):
    """Remembers what it is fitted to, and calls bright what is brighter than in training."""

    made = []

    def __init__(self):
        super().__init__()
        self.made.append(self)
        self.weight = float(keras.random.uniform(()))

    def fit(self, x, y=None, sample_weight=None, verbose=None, **kwargs):
        if isinstance(x, tf.data.Dataset):
            x = np.concatenate([images for images, *_ in x])
        self.seen, self.labels, self.kwargs = np.asarray(x), y, kwargs
        self.mean = self.seen.mean()

    def call(self, images):
        bright = keras.ops.mean(images, axis=(1, 2, 3)) > self.mean
        return keras.ops.one_hot(keras.ops.cast(bright, "int32"), 2)


def recorded():
    model = Recorder()
    model.compile(loss="sparse_categorical_crossentropy")
    return model


@pytest.fixture
def settings():
    def run(train, test=(X, Y), levels=SPECKS, **kwargs):
        Recorder.made.clear()
        arguments = {"corruption": "impulse_noise", "verbose": 0, **kwargs}
        found = noise_settings(recorded, train, test, levels=levels, **arguments)
        return found, list(Recorder.made)

    return run


@pytest.mark.slow
def test_who_is_trained_and_tested_on_what(settings):
    found, models = settings((X, Y), epochs=3, batch_size=10)
    assert len(models) == 3
    assert len({model.weight for model in models}) == 1  # all start from the same weights
    clean, *noisy = (model.seen for model in models)
    np.testing.assert_array_equal(clean, X)
    for seen, level in zip(noisy, SPECKS, strict=True):
        hit = seen != X
        assert set(np.unique(seen[hit])) <= {0.0, 1.0}
        assert abs(hit.mean() - level["amount"]) < 0.1  # 864 values: six standard deviations
        assert (seen == 0).sum() > (seen == 1).sum()
    assert models[0].kwargs == {"epochs": 3, "batch_size": 10}
    np.testing.assert_array_equal(models[0].labels, Y)

    def accuracy(model, level=None):
        test = X
        if level is not None:
            parts = [X[i : i + 10] for i in range(0, 24, 10)]
            test = np.concatenate(
                [
                    corruptions.impulse_noise(part, **level, seed=derived_seed(0, number, 2))
                    for number, part in enumerate(parts)
                ]
            )
        return accuracy_score(Y, test.mean((1, 2, 3)) > model.mean)

    assert found.clean["accuracy"] == accuracy(models[0])
    for number, level in enumerate(SPECKS):
        assert found.test_corrupted["accuracy"][number] == accuracy(models[0], level)
        assert found.train_corrupted["accuracy"][number] == accuracy(models[number + 1])
        assert found.both_corrupted["accuracy"][number] == accuracy(models[number + 1], level)


@pytest.mark.slow
def test_settings_of_datasets_severities_and_preprocessing(settings):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    found, (clean, noisy) = settings(data, data, [5], preprocess=lambda x: 2 * x)
    assert found.levels == ("severity 5",)
    np.testing.assert_array_equal(clean.seen, 2 * X)
    from_arrays, (_, as_well) = settings((X, Y), (X, Y), [5], batch_size=10)
    np.testing.assert_allclose(noisy.seen, 2 * as_well.seen)
    for name in FIGURES:
        np.testing.assert_allclose(found.both_corrupted[name], from_arrays.both_corrupted[name])


def test_training_and_test_noise_differ(settings):
    seen = []

    def look(images):
        seen.append(np.asarray(images))
        return images

    settings((X, Y), (X, Y), [5], preprocess=look, corruption="gaussian_noise")
    noisy = [images for images in seen if np.any(images != X)]
    assert len({images.tobytes() for images in noisy}) == 2


@pytest.mark.slow
def test_table_of_the_settings(settings, tmp_path):
    found, _ = settings((X, Y))
    assert found.levels == ("amount 0.1, salt 0.25", "amount 0.5, salt 0.25")
    header, *rows = cells(found.to_markdown())
    assert header == ["train", "test", *FIGURES]
    first, second = found.levels
    assert [tuple(row[:2]) for row in rows] == [
        ("clean", "clean"),
        *(("clean", first), ("clean", second)),
        *((first, "clean"), (second, "clean")),
        *((first, first), (second, second)),
    ]
    found.to_csv(tmp_path / "settings.csv")
    with open(tmp_path / "settings.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[4]["nll"]) == found.train_corrupted["nll"][1]
    assert isinstance(found, NoiseSettings)


@pytest.mark.parametrize(
    "argument, kwargs",
    [
        ("corruption", {"corruption": "rain"}),
        ("levels", {"levels": []}),
        ("levels", {"levels": {"amount": 0.1}}),
        ("severity", {"levels": [6]}),
        ("amount", {"levels": [{"amount": 2.0}]}),
        ("seed", {"seed": None}),
        ("build_model", {"build_model": Recorder}),
        ("build_model", {"build_model": "resnet"}),
        ("y", {"test": X}),
        ("images", {"train": (X[0], Y[:6])}),
    ],
)
def test_settings_that_cannot_be(argument, kwargs):
    arguments = {"build_model": recorded, "train": (X, Y), "test": (X, Y), "levels": [3]}
    arguments |= {"corruption": "impulse_noise", "verbose": 0, **kwargs}
    refused(argument, noise_settings, **arguments)
