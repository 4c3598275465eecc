"""The example that ships a model: each step of it, to an answer over HTTP."""

import csv
import json
import os
import pathlib

import pytest
from test_examples import load_script


def lesions():
    """The folder of HAM10000, or None."""
    folder = pathlib.Path(os.environ.get("TFUQ_DATA", "../shared/data"))
    return folder if (folder / "ham10000_64_jpeg.npz").is_file() else None


@pytest.mark.slow  # a training of minutes
@pytest.mark.skipif(lesions() is None, reason="needs HAM10000 in the folder TFUQ_DATA")
def test_lesions_from_a_jpeg_to_a_reason(tmp_path, capfd):
    pytest.importorskip("fastapi")
    script = load_script("examples/ship_it.py")
    given = ["--data", str(lesions()), "--output", str(tmp_path / "out"), "--epochs", "2"]
    answer, metrics = script.main([*given, "--target-risk", "0.4"])
    assert answer["class"] in script.read_lesions(lesions() / script.FILE)[1]
    assert any("confidence" in reason for reason in answer["reasons"])
    accepted = 'tfuq_answers_total{decision="accepted"} ' + str(float(answer["accept"]))
    assert accepted in metrics.splitlines() and "HAM10000" in (
        (tmp_path / "out" / "served" / "MODEL_CARD.md").read_text()
    )
    assert "is whole" in capfd.readouterr().out


@pytest.mark.slow  # a training, and a server in a process of its own
def test_from_images_to_an_answer_over_http(tmp_path, capfd):
    pytest.importorskip("fastapi")
    pytest.importorskip("sklearn")
    script = load_script("examples/ship_it.py")
    answer, metrics = script.main(["--quick", "--output", str(tmp_path / "out")])
    said = capfd.readouterr().out
    for step in ("calibrate", "evaluate", "export", "verify", "predict", "serve"):
        assert f"$ tfuq {step}" in said
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    assert answer["class"] == first["class"] and answer["reasons"]
    assert answer["accept"] == (first["accept"] == "True")
    assert answer["confidence"] == pytest.approx(float(first["confidence"]), abs=1e-5)
    assert any(line.startswith("tfuq_") and line.endswith(" 1.0") for line in metrics.splitlines())
    about = json.loads((tmp_path / "out" / "served" / "metadata.json").read_text())
    assert about["class_names"][3] == "digit 3" and about["rule"]["says"] in said
    assert "A demonstration" in (tmp_path / "out" / "served" / "MODEL_CARD.md").read_text()


def test_the_parts_share_no_images():
    pytest.importorskip("sklearn")
    parts, names = load_script("examples/ship_it.py").read_digits()
    sizes = [len(parts[name][0]) for name in ("train", "validation", "test")]
    assert sum(sizes) == 1797 and min(sizes) > 500 and len(names) == 10
    x, _ = parts["train"]
    assert x.max() > 200 and x.min() == 0  # as it is declared
