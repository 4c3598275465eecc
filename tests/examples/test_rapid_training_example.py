"""The example of rapid training, and what its benchmark counts."""

import importlib.util
import json
import math
import pathlib
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]


def load_script(path):
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return load_script("examples/rapid_training.py")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the examples' folder
    yield load_script("benchmarks/rapid_training.py")
    sys.modules.pop("rapid_training", None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The range test ended")  # it is short
def test_quick_run_on_a_fresh_machine(example, tmp_path, monkeypatch, capsys):
    """No files: digits. All schemes train a new head on a trunk that knows other digits."""
    monkeypatch.setenv("TFUQ_DATA", str(tmp_path / "nothing"))
    example.main(["--quick", "--output", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert "digits_instead_of_brain_mri: 596 training images, 5 classes" in said
    assert "the figures mean nothing" in said
    for scheme in example.SCHEMES:
        best, accuracy, nll, ece, steps, _, eta = re.search(
            rf"^{re.escape(scheme)} +" + r"([\d.]+) +" * 6 + r"([\d.]+)$", said, re.MULTILINE
        ).groups()
        assert 0 < float(best) <= 1 and 0 < float(accuracy) <= 1
        assert float(nll) > 0 and 0 <= float(ece) <= 1
        rapid = example.SCHEMES[scheme] is not None  # 25 steps of the range test, 3 epochs of 10
        assert int(steps) == (55 if rapid else 20)
        assert float(eta) >= 0 and (scheme != "SGD" or float(eta) == 1)
    assert re.search(r"^  last +[\d. ]+$", said, re.MULTILINE)
    assert re.search(r"^  ensemble +[\d. ]+$", said, re.MULTILINE)
    with Image.open(tmp_path / "new" / "rapid_training_digits_instead_of_brain_mri.png") as figure:
        assert min(figure.size) > 300


@pytest.mark.slow
def test_trunk_is_copied_and_its_weights_stay(example):
    trunk = example.build_trunk((8, 8, 3), example.QUICK)
    before = trunk.get_weights()
    model = example.make_model(trunk, 3, example.sgd())
    x = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3)).astype("uint8")
    copy = model.get_layer("trunk")
    np.testing.assert_array_equal(copy.predict(x, verbose=0), trunk.predict(x, verbose=0))
    model.fit(x, np.arange(4) % 3, verbose=0)
    for old, new in zip(before, trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_digits_are_split_without_overlap(example):
    source, target = example.load_digits(0), example.load_digits(5)
    for data in (source, target):
        assert data.classes == 5
        assert [len(part[0]) for part in data[1:]] == [150, 150]
        images = [image.tobytes() for part in data for image in part[0]]
        assert len(set(images)) == len(images)
    assert len(source.train[0]) + len(target.train[0]) + 600 == 1797


def test_files_are_read_halved_and_held_out(example, tmp_path):
    y = np.arange(40) % 2
    x = np.broadcast_to(y[:, None, None, None] * 200, (40, 64, 64, 3)).astype("uint8")
    np.savez(tmp_path / "some.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    data = example.load_local(tmp_path, "some.npz", 20, 10, 4)
    assert [len(part[0]) for part in data] == [20, 10, 4]
    for images, labels in data:
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        np.testing.assert_array_equal(images[:, 16, 16, 0], 200 * labels)
    with pytest.raises(ValueError, match=r"cifar10_jpeg\.npz"):
        example.load_cifar10(tmp_path)


BASELINE = {
    "scheme": "SGD",
    "seed": 0,
    "val_accuracy": [0.2, 0.6, 0.5],
    "steps": [10, 20, 30],
    "seconds": [1.0, 2.0, 3.0],
}


@pytest.mark.parametrize(
    ("val_accuracy", "expected"),
    [([0.6, 0.7, 0.1], [2.0, 4.0]), ([0.1, 0.2, 0.6], [20 / 30, 2 / 1.5]), ([0.5] * 3, [0.0, 0.0])],
)
def test_eta_is_the_ratio_of_costs(example, val_accuracy, expected):
    """To 0.6, the best of the baseline, which took 20 steps and 2 seconds."""
    run = {"val_accuracy": val_accuracy, "steps": [10, 20, 30], "seconds": [0.5, 1.0, 1.5]}
    assert example.speed_ups(run, BASELINE) == pytest.approx(expected)


def test_benchmark_goes_on_where_it_stopped_and_reports(benchmark, tmp_path, monkeypatch, capsys):
    """Each run is made once; the tables are means over seeds, with what was never reached said."""
    made = []

    def pretend(scheme, trunk, data, settings, seed, snapshots=None):
        if len(made) == 8 and "stopped" not in made:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append((scheme, seed))
        run = {**BASELINE, "seed": seed, "scheme": scheme}
        run |= {"accuracy": 0.5 + seed / 10, "nll": 1.0, "ece": 0.1}
        if scheme == "Adam":
            run["val_accuracy"] = [0.1, 0.1, 0.6 if seed else 0.5]
        if snapshots is not None:
            judged = {"accuracy": 0.7, "nll": 0.9, "ece": 0.05}
            run |= {"last": judged, "ensemble": judged}
        return run, None

    monkeypatch.setattr(benchmark.example, "run_scheme", pretend)
    monkeypatch.setitem(benchmark.example.LOADERS, "scratch", lambda folder, images: None)
    monkeypatch.setattr(benchmark, "trunk_for", lambda *_: None)
    monkeypatch.setattr(benchmark.keras.utils, "clear_session", lambda: None)  # takes a second
    command = ["--json", str(tmp_path / "runs.json"), "--tasks", "scratch"]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(command)
    benchmark.main(command)
    monkeypatch.setattr(benchmark.tfuq, "__version__", "another")
    with pytest.raises(ValueError, match=r"`--json` must be a new file.*runs\.json"):
        benchmark.main(command)
    made.remove("stopped")
    assert made == [(scheme, seed) for seed in (0, 1, 2) for scheme in benchmark.example.SCHEMES]
    lines = capsys.readouterr().out.splitlines()
    row = "| SGDR | 3 | 0.6000 ± 0.1000 | 1.0000 ± 0.0000 | 0.1000 ± 0.0000 | 20 ± 0 | 2 ± 0 |"
    assert f"{row} 1.00 ± 0.00 | 1.00 ± 0.00 |" in lines
    adam = next(line for line in lines if line.startswith("| Adam |"))
    assert adam.endswith(4 * " reached by 2 of 3 |")
    assert "| ensemble | 0.7000 ± 0.0000 | 0.9000 ± 0.0000 | 0.0500 ± 0.0000 |" in lines
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 18


def test_spread_says_what_was_not_reached(benchmark):
    assert benchmark.spread([1.0, 2.0], 1) == "1.5 ± 0.7"
    assert benchmark.spread([1.0], 1) == "1.0"
    assert benchmark.spread([1.0, math.inf]) == "reached by 1 of 2"


def test_schemes_differ_as_they_say(example, monkeypatch):
    """The recipe's cycles: as many epochs with and without longer cycles."""
    asked = []
    monkeypatch.setattr(example.tfuq.training, "rapid_fit", lambda *_, **kw: asked.append(kw))
    settings = example.Settings()
    for options in filter(None, example.SCHEMES.values()):
        example.train_rapidly(None, example.Data(None, None, None), settings, options, [])
    assert [(kw["num_cycles"], kw["cycle_mult"], kw["layer_rates"]) for kw in asked] == [
        (15, 1, None),
        (4, 2, None),
        (15, 1, "log"),
        (4, 2, "log"),
    ]
    epochs_of = example.tfuq.training.epochs_of
    assert {epochs_of(kw["num_cycles"], 1, kw["cycle_mult"]) for kw in asked} == {15}


def test_transfer_begins_with_the_lower_end_of_the_bracket(example, monkeypatch):
    """After a test of its own, which is counted; lesions alone are flipped."""
    asked, found = [], types.SimpleNamespace(bracket=(0.1, 1.0))
    history = types.SimpleNamespace(range_test=None)
    monkeypatch.setattr(
        example.tfuq.training, "rapid_fit", lambda *_, **kw: asked.append(kw) or history
    )
    monkeypatch.setattr(example.tfuq, "lr_range_test", lambda *_, **kw: asked.append(kw) or found)
    assert example.settings_for("scratch", example.QUICK) == example.QUICK
    assert example.settings_for("ham10000", example.QUICK).is_flipped
    settings = example.settings_for("brain_mri", example.QUICK)
    assert not settings.is_flipped
    options = example.SCHEMES["SGDR+DLR"]
    data = example.Data(None, None, None)
    assert example.train_rapidly(None, data, settings, options, [], seed=3) is history
    assert history.range_test is found
    test, fit = asked
    assert test == {**dict(example.TRANSFER["range_test"]), "batch_size": 64, "seed": 3}
    assert (fit["max_learning_rate"], fit["min_factor"], fit["seed"]) == (0.1, 0.3, 3)


def test_flips_are_of_training_alone(example):
    trunk = example.build_trunk((8, 8, 3), example.QUICK)
    x = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3)).astype("uint8")
    model = example.make_model(trunk, 3, example.sgd(), is_flipped=True)
    plain = example.make_model(trunk, 3, example.sgd())
    plain.set_weights(model.get_weights()[: len(plain.get_weights())])
    np.testing.assert_array_equal(model(x, training=False), plain(x, training=False))
    flip = next(n for n in model.layers if isinstance(n, example.keras.layers.RandomFlip))
    flipped = np.asarray(flip(x, training=True))
    ways = [x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]]
    for i, image in enumerate(flipped):
        assert any(np.array_equal(image, way[i]) for way in ways)
