"""The example of out-of-distribution detection, and the tables of its benchmark."""

import importlib.util
import json
import pathlib
import re
import sys

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


@pytest.fixture
def script(monkeypatch):
    """`script(path)` loads one that stands beside others, or adds their folder itself."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    yield load_script
    for name in ("rapid_training", "ood_detection"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The range test ended")  # it is short
def test_quick_run(script, tmp_path, capsys):
    """Digits that the model knows, and others; each score gets its row for each set."""
    example = script("examples/ood_detection.py")
    example.main(["--quick", "--output", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert re.search(r"601 training images, test accuracy 0\.\d+", said)
    sections = re.split(r"\n\n(?=[^\n]+, \d+ images\n)", said)[1:]
    assert [section.split(",")[0] for section in sections] == ["digits 5 to 9", "mirrored", "noise"]
    for section in sections:
        rows = re.findall(r"^(\S.*?) {2,}((?:[\d.]+ *){5})$", section, re.MULTILINE)
        assert len(rows) == 10  # 4 scores, brightness, and five rows of what learns
        for _, figures in rows:
            assert all(0 <= float(figure) <= 1 for figure in figures.split())
    noise = dict(re.findall(r"^(\S.*?) {2,}[\d.]+ +([\d.]+)", sections[2], re.MULTILINE))
    assert float(noise["gradients, seen: itself"]) > 0.9
    assert "| clean |" in said and "| gaussian_noise |" in said
    for name in ("gradient_distributions.png", "corruptions.png"):
        with Image.open(tmp_path / "new" / name) as figure:
            assert min(figure.size) > 200


def test_known_and_unknown_digits_do_not_mix(script):
    example = script("examples/ood_detection.py")
    sets = example.load_digits()
    assert set(sets.train[1]) == set(range(5))
    known = {image.tobytes() for part in (sets.train, sets.test) for image in part[0]}
    assert not any(image.tobytes() in known for image in sets.unknown["digits 5 to 9"])
    few = example.limited(sets, 7)
    assert [len(images) for images in few.unknown.values()] == [7, 7, 7]
    assert [len(array) for array in few.test] == [7, 7]


def test_benchmark_tables_are_means_over_seeds(script, tmp_path, monkeypatch, capsys):
    benchmark = script("benchmarks/ood.py")

    def pretend(name, folder, images, seed):
        figures = {column: 0.5 + seed / 10 for column in benchmark.example.COLUMNS}
        run = {"model": name, "seed": seed, "accuracy": 0.9}
        run["rows"] = [{"method": "MSP", "set": "textures", **figures}]
        if name == "cifar10":
            pair = {"Mahalanobis": [0.6] * 5, "gradients": [0.7 + seed / 10] * 5}
            run["corrupted"] = dict.fromkeys(benchmark.CORRUPTIONS, pair)
        return run

    monkeypatch.setattr(benchmark, "run_once", pretend)
    path = tmp_path / "runs.json"
    benchmark.main(["--json", str(path), "--seeds", "0"])
    benchmark.main(["--json", str(path), "--seeds", "0", "1"])
    assert [(run["model"], run["seed"]) for run in json.loads(path.read_text())] == [
        (name, seed) for seed in (0, 1) for name in ("cifar10", "mnist")
    ]
    lines = capsys.readouterr().out.splitlines()
    deviation = 100 * np.std([0.5, 0.6], ddof=1)
    cell = f"55.0 ± {deviation:.1f}"
    assert f"| MSP | {cell} | {cell} | {cell} |" in lines
    level = f"60.0 ± 0.0 / 75.0 ± {deviation:.1f}"
    assert f"| Haze | {' | '.join([level] * 5)} |" in lines
