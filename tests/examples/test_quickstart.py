"""The demo, and the commands of docs/how-to/production.md in a clean shell in its folder."""

import csv
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import processes
import pytest

from tfuq import cli
from tfuq.selective import RejectionRule

ROOT = pathlib.Path(__file__).parents[2]
CONDITIONS = ("clean", "noisy", "blurred")


class Demo:
    """What the demo said and wrote, on few epochs, in `demo_output` as `make demo` has it."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "demo_output"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        arguments = ("--output", self.output, "--epochs", "5")
        done = processes.run(ROOT / "examples/quickstart.py", *arguments, env=environment)
        assert done.returncode == 0, done.stderr
        self.said = done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Demo(tmp_path_factory.mktemp("demo"))


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.xdist_group("demo")
def test_the_demo_refuses_more_of_bad_images(demo):
    line = "refused at threshold 0.9: clean (.+)%, noisy (.+)%, blurred (.+)%"
    shares = [tuple(map(int, found)) for found in re.findall(line, demo.said)]
    assert len(shares) == 2
    for clean, noisy, blurred in shares:
        assert noisy > clean
        assert blurred > clean
    assert demo.said.count("threshold | accuracy | coverage") == 6
    told = r"Of \d+ (\w+) images only MCSoftmaxDenseFA gets \d+ right, only Dense \d+\."
    assert tuple(re.findall(told, demo.said)) == CONDITIONS
    assert "━" not in demo.said and "\b" not in demo.said  # no progress bars
    accepted = [int(re.search(rf"  {name}: accepts (\d+)%", demo.said)[1]) for name in CONDITIONS]
    assert accepted[0] > max(accepted[1:])
    assert (demo.output / "rejection.png").stat().st_size > 10_000


@pytest.mark.xdist_group("demo")
def test_the_demo_exports_its_decision(demo):
    """Its own check in plain TensorFlow has passed, else it would not have ended well."""
    about = json.loads((demo.output / "saved_model" / "metadata.json").read_text())
    rule = RejectionRule.load(demo.output / "rule.json")
    assert about["rule"]["says"] == rule.describe() and "accept" in about["outputs"]
    assert re.search(r"batch of 270: largest difference .+, \d+ accepted", demo.said)


def in_production():
    """The page's block of commands as it stands."""
    page = (ROOT / "docs" / "how-to" / "production.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1]
    commands = set(re.findall(r"^tfuq (\w+)", block, re.MULTILINE))
    assert commands == {"calibrate", "evaluate", "report", "predict", "export"}
    return block


def clear(folder):
    """Takes away what the commands write."""
    for name in ("rule.json", "report.html", "predictions.csv", "served.csv"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "served", ignore_errors=True)


def assert_served(demo, said):
    """What the commands said and wrote is what Python said in the demo."""
    rule = RejectionRule.load(demo.output / "rule.json")
    assert rule.describe() in said
    assert "<html" in (demo.output / "report.html").read_text(encoding="utf-8")
    assert len(rows(demo.output / "predictions.csv")) == 50
    expected = np.load(demo.output / "expected.npz")
    served = rows(demo.output / "served.csv")
    probs = [[float(row[f"probabilities_{k}"]) for k in range(10)] for row in served]
    np.testing.assert_allclose(probs, expected["probs"], atol=1e-5)
    accepted = [row["accept"] == "True" for row in served]
    np.testing.assert_array_equal(accepted, rule.accept(expected["probs"]))
    # Rounding to what a PNG holds changes next to nothing.
    images = rows(demo.output / "predictions.csv")
    numbers = [int(pathlib.Path(row["file"]).stem) for row in images]
    probs = [[float(row[f"probabilities_{k}"]) for k in range(10)] for row in images]
    np.testing.assert_allclose(probs, expected["probs"][numbers], atol=0.05)


@pytest.mark.xdist_group("demo")
def test_in_production_line_by_line(demo, monkeypatch, capsys):
    """The commands of the block, one after the other, in this process."""
    clear(demo.output)
    monkeypatch.chdir(demo.output)
    for line in re.findall(r"^tfuq (.*)$", in_production(), re.MULTILINE):
        assert cli.main(shlex.split(line, comments=True)) == 0, line
    assert_served(demo, capsys.readouterr().out)


@pytest.mark.slow  # six processes that import TensorFlow
@pytest.mark.xdist_group("demo")
def test_in_production_by_copy_and_paste(demo):
    """The block as it stands, in a shell that knows nothing but PATH and HOME."""
    command = pathlib.Path(sys.prefix) / "bin/tfuq"
    assert command.exists(), f"pip install . has not been run: no {command}"
    (demo.folder / ".venv").symlink_to(sys.prefix)
    clear(demo.output)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", in_production()],
        cwd=demo.folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(demo.folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert_served(demo, done.stdout)
