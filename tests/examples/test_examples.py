"""The examples run as shown, on little data, and what the benchmarks take from them."""

import importlib.util
import io
import json
import pathlib
import re
import statistics
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]


def load_script(path):
    """A script as a module, under a name of its own."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def label_noise():
    return load_script("examples/label_noise.py")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the examples' folder
    yield load_script("benchmarks/label_noise.py")
    sys.modules.pop("label_noise", None)


def jpeg(level):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level, 0, 255 - level)).save(file, "JPEG", quality=95)
    return file.getvalue()


def jpegs(count):
    """The first images of a row whose red grows by 3: the bytes end to end, and the offsets."""
    files = [jpeg(3 * i) for i in range(count)]
    offsets = np.cumsum([0, *map(len, files)], dtype="int32")
    return np.frombuffer(b"".join(files), dtype="uint8"), offsets


def write_cifar(folder, count=64):
    """Both files as `examples/label_noise.py` reads them; "worst" shifts every second label."""
    data, offsets = jpegs(count)
    labels = np.arange(count, dtype="uint8") % 10
    images = {f"{part}_bytes": data for part in ("train", "test")}
    images |= {f"{part}_offsets": offsets for part in ("train", "test")}
    np.savez(folder / "cifar10_jpeg.npz", y_train=labels, y_test=labels[::-1], **images)
    people = {f"cifar10n_{name}": np.roll(labels, i) for i, name in enumerate(KINDS)}
    people["cifar10n_worst"] = np.where(np.arange(count) % 2, (labels + 1) % 10, labels)
    counts = 50 * np.eye(10, dtype="uint8")[labels[::-1]]
    np.savez(folder / "cifar10_human.npz", cifar10h_counts=counts, **people)
    return labels


KINDS = ("worst", "aggre", "random1", "random2", "random3")


def rows(text, name):
    """The cells of the rows of printed tables that begin with `name`, without the name."""
    found = re.findall(rf"^{name} +\| (.*)$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in found]


@pytest.mark.slow
def test_label_noise_quick_on_a_fresh_machine(label_noise, tmp_path, monkeypatch, capsys):
    """No files: digits, which the example says; three heads are trained, judged and drawn."""
    monkeypatch.setenv("TFUQ_DATA", str(tmp_path / "nothing"))
    label_noise.main(["--quick", "--output", str(tmp_path / "new" / "output")])
    said = capsys.readouterr().out
    assert "cifar10_jpeg.npz is missing in" in said
    assert "digits with SYNTHETIC label noise" in said
    assert "512 training images" in said
    for head in ("Dense", "diagonal", "full"):
        accuracy, nll, ece = map(float, rows(said, head)[0])
        assert 0 < accuracy <= 1
        assert 0 <= ece <= 1
        assert 0 < nll < 10
    accepted = rows(said, "0")[0]  # the threshold 0 accepts everything
    assert all(cell.endswith("(1.0000)") for cell in accepted)
    assert [cell.split()[0] for cell in accepted] == [
        rows(said, head)[0][0] for head in ("Dense", "diagonal", "full")
    ]
    with Image.open(tmp_path / "new" / "output" / "label_noise.png") as figure:
        assert min(figure.size) > 300


def test_label_noise_quick_takes_files_where_they_are(label_noise, tmp_path, capsys):
    labels = write_cifar(tmp_path)
    arguments = label_noise.read_arguments(["--quick", "--data", str(tmp_path)])
    data = label_noise.load_asked(arguments)
    assert arguments.epochs == 1
    assert f"'worst' of CIFAR-10N, from {tmp_path}" in capsys.readouterr().out
    np.testing.assert_array_equal(data.true_train, labels)
    np.testing.assert_array_equal(data.y_test, labels[::-1])
    assert np.mean(data.y_train != data.true_train) == 0.5


def test_label_noise_decodes_images_in_order(label_noise, tmp_path):
    write_cifar(tmp_path)
    data = label_noise.load_files(tmp_path, "worst")
    assert data.x_train.shape == (64, 32, 32, 3)
    assert data.x_train.dtype == np.uint8
    # JPEG at this quality moves a plain colour by a few levels.
    expected = np.stack([3 * np.arange(64), np.zeros(64), 255 - 3 * np.arange(64)], axis=-1)
    np.testing.assert_allclose(data.x_test.mean(axis=(1, 2)), expected, atol=3)


@pytest.mark.parametrize("labels", KINDS[1:])
def test_label_noise_reads_the_labels_asked_for(label_noise, tmp_path, labels):
    true = write_cifar(tmp_path)
    data = label_noise.load_files(tmp_path, labels, limit=7)
    assert [len(part) for part in data] == [7] * 5
    np.testing.assert_array_equal(data.y_train, np.roll(true, KINDS.index(labels))[:7])


@pytest.mark.parametrize("missing", ["cifar10_jpeg.npz", "cifar10_human.npz"])
def test_label_noise_names_the_missing_file(label_noise, tmp_path, missing):
    write_cifar(tmp_path)
    (tmp_path / missing).unlink()
    asked = ["--data", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"{missing} is missing in .*TFUQ_DATA"):
        label_noise.main(asked)
    with pytest.raises(FileNotFoundError, match=missing):  # asked for, so nothing stands in
        label_noise.load_asked(label_noise.read_arguments([*asked, "--quick", "--source", "files"]))


def fake_tfds(asked):
    """Stands in for tensorflow-datasets: `cifar10_n` as its catalogue describes it."""

    def part(count, first):
        example = {"image": np.full((count, 32, 32, 3), first, "uint8")}
        example["label"] = np.arange(count) + first
        for i, name in enumerate(["aggre_label", "worse_label", *RANDOM]):
            example[name] = np.full(count, i) if first == 0 else np.full(count, -1)
        return tf.data.Dataset.from_tensor_slices(example)

    def load(name, **options):
        asked.update(name=name, **options)
        parts = {"train": part(6, 0), "test": part(4, 3)}
        return [parts[split] for split in options["split"]]

    return types.SimpleNamespace(load=load)


RANDOM = ("random_label1", "random_label2", "random_label3")


@pytest.mark.parametrize(
    ("labels", "value"),
    [("aggre", 0), ("worst", 1), ("random1", 2), ("random2", 3), ("random3", 4)],
)
def test_label_noise_from_tensorflow_datasets(label_noise, monkeypatch, labels, value):
    asked = {}
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(asked))
    arguments = ["--source", "tfds", "--labels", labels, "--data", "somewhere"]
    data = label_noise.load_asked(label_noise.read_arguments(arguments))
    assert asked == {"name": "cifar10_n", "split": ["train", "test"], "data_dir": "somewhere"}
    assert data.x_train.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(data.y_train, [value] * 6)
    np.testing.assert_array_equal(data.true_train, np.arange(6))
    np.testing.assert_array_equal(data.y_test, np.arange(4) + 3)


def test_label_noise_says_how_to_install_tensorflow_datasets(label_noise, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SystemExit, match=re.escape('pip install "tfuq[datasets]"')):
        label_noise.main(["--source", "tfds"])


def test_label_noise_confuses_digits_with_look_alikes(label_noise):
    data = label_noise.load_digits()
    wrong = data.y_train != data.true_train
    look_alike = label_noise.LOOK_ALIKE[data.true_train]
    np.testing.assert_array_equal(data.y_train[wrong], look_alike[wrong])
    # 6 standard deviations; the seed is fixed, so that this passes always or never.
    assert abs(wrong.mean() - 0.4) < 6 * np.sqrt(0.4 * 0.6 / len(wrong))
    assert data.x_train.max() > 200
    assert len(data.y_train) + len(data.y_test) == 1797


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--temperature", "0"], "--temperature must be above 0, not 0.0"),
        (["--temperature", "nan"], "--temperature must be above 0, not nan"),
        (["--source", "digits", "--labels", "aggre"], "no use for --data and --labels"),
        (["--source", "digits", "--data", "."], "no use for --data and --labels"),
        (["--labels", "best"], "invalid choice: 'best'"),
    ],
)
def test_label_noise_refuses_bad_arguments(label_noise, capsys, arguments, message):
    with pytest.raises(SystemExit):
        label_noise.read_arguments(arguments)
    assert message in capsys.readouterr().err


def test_label_noise_help_teaches(label_noise, capsys):
    with pytest.raises(SystemExit, match="0"):
        label_noise.main(["--help"])
    said = capsys.readouterr().out
    assert "python examples/label_noise.py --source tfds" in said
    assert "(default: worst, 40% wrong)" in " ".join(said.split())


# The benchmark of the same name: its training is the example's.

HELD_OUT = {"diagonal": {0.5: 1.3, 1.0: 1.1, 2.0: 1.2}, "full": {0.5: 1.0, 1.0: 1.1, 2.0: 1.2}}


def pretend(data, counts, epochs, head, temperature, seed):
    """A finished run whose figures follow from its key."""
    held_out = HELD_OUT.get(head, {None: 1.5})[temperature]
    scores = {"accuracy": 0.5 + seed / 10, "nll": 1.0 + seed, "ece": 0.1, "human_nll": 1.4}
    key = {"head": head, "temperature": temperature, "seed": seed}
    return {**key, **scores, "val_nll": held_out + seed, "seconds": 1}


def test_label_noise_benchmark_goes_on_where_it_stopped(benchmark, tmp_path, monkeypatch):
    """Each run is made once, with the temperature of the first seed's best held-out NLL."""
    made = []

    def run(*arguments):
        if len(made) == 9 and "stopped" not in made:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(arguments[-3:])
        return pretend(*arguments)

    monkeypatch.setattr(benchmark, "run_once", run)
    write_cifar(tmp_path)
    command = ["--json", str(tmp_path / "runs.json"), "--data", str(tmp_path), "--epochs", "2"]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(command)
    benchmark.main(command)
    made.remove("stopped")
    expected = [("Dense", None, seed) for seed in (0, 1, 2)]
    for head, best in (("diagonal", 1.0), ("full", 0.5)):
        expected += [(head, temperature, 0) for temperature in (0.5, 1.0, 2.0)]
        expected += [(head, best, seed) for seed in (1, 2)]
    assert made == expected
    with pytest.raises(ValueError, match=r"`--json` must name .* settings=.*Received: .*runs.json"):
        benchmark.main([*command[:-1], "3"])


def test_label_noise_benchmark_reports_means_and_deviations(benchmark, tmp_path, capsys):
    keys = [("Dense", None, 0), *(("full", t, 0) for t in (0.5, 1.0, 2.0)), ("full", 0.5, 1)]
    runs = [pretend(None, None, None, *key) for key in keys]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"settings": {"epochs": 2, "images": 7}, "runs": runs}))
    benchmark.main(["--json", str(path), "--report"])
    lines = capsys.readouterr().out.splitlines()
    assert "2 epochs, ONLY 7 images" in lines[0]
    deviation = statistics.stdev([1.0, 2.0])
    assert "| Dense | - | 1 | 0.5000 | 1.0000 | 0.1000 | 1.4000 | 1.5000 |" in lines
    full = next(line for line in lines if line.startswith("| full | 0.5 | 2 |"))
    assert f"| 0.5500 ± {deviation / 10:.4f} | 1.5000 ± {deviation:.4f} | 0.1000 ± 0.0000 |" in full
    assert "| full | 1.0000 | 1.1000 | 1.2000 |" in lines


@pytest.mark.slow
def test_label_noise_benchmark_trains_and_judges(benchmark, tmp_path):
    write_cifar(tmp_path)
    data = benchmark.example.load_files(tmp_path, "worst")
    counts = benchmark.example.read_file(tmp_path, "cifar10_human.npz")["cifar10h_counts"]
    run = benchmark.run_once(data, counts, 1, "full", 0.5, 3)
    assert [run[name] for name in benchmark.KEY] == ["full", 0.5, 3]
    # People all give the true answer here, so that both yardsticks agree.
    assert run["human_nll"] == pytest.approx(run["nll"], rel=1e-5)
    assert 0 < run["val_nll"] < 10


def test_label_noise_benchmark_scores_against_people(benchmark):
    """Two people of four said 0: -(log 0.5) / 2 - (log 0.25) / 2."""
    counts = np.array([[2, 1, 1]], "uint8")
    logits = np.log([[0.5, 0.25, 0.25]]) + 7  # any constant
    expected = -(np.log(0.5) + np.log(0.25)) / 2
    assert benchmark.human_nll(counts, logits) == pytest.approx(expected)


def test_demo_compares_models_by_the_images_that_one_alone_reads():
    """9 against none is more than chance; 5 against 4 is not."""
    compared = load_script("examples/quickstart.py").compared
    labels, sure = np.zeros(20, int), np.eye(2)
    clear = sure[(np.arange(20) < 9) * 1], sure[np.zeros(20, int)]  # the first is wrong on nine
    said = compared("clean", dict(zip("AB", clear, strict=True)), labels)
    assert "Of 20 clean images only B gets 9 right, only A 0." in said
    assert said.endswith("up to 6: B is better.")
    close = sure[(np.arange(20) < 5) * 1], sure[(np.arange(20) > 15) * 1]
    said = compared("clean", dict(zip("AB", close, strict=True)), labels)
    assert "only B gets 5 right, only A 4." in said and "neither is better" in said
