"""The examples of numbers with intervals run as shown, and find their data or say so."""

import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_ood_example import load_script

from tfuq.selective import RegressionRule


@pytest.fixture(scope="module")
def nuclei():
    return load_script("examples/nuclei_count.py")


def table(text, first):
    """Rows of the printed table whose first cell is `first`, by their own first cell."""
    part = text[text.index(f"| {first} |") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in part.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_heads_beside_each_other_intervals_and_a_rule(tmp_path, capsys):
    example = load_script("examples/regression.py")
    example.main(["--quick", "--output", str(tmp_path / "new")])
    said = capsys.readouterr().out
    figures = table(said, "head")
    conformal = table(said[said.index("Conformal") :], "head")
    assert list(figures) == list(conformal) == ["normal", "quantiles", "Bayesian"]
    for cells in figures.values():
        rmse, crps, inside, width, error = map(float, cells)
        assert 0 < crps < rmse < 2.5 and 0 <= inside <= 1 and width > 0 and 0 <= error < 1
    for cells in conformal.values():  # 132 people: 5 standard deviations below 0.9
        coverage, low, high, _ = map(float, cells)
        assert low <= coverage <= high and coverage > 0.9 - 5 * np.sqrt(0.09 * (1 / 132 + 1 / 140))
    assert re.search(r"Of 100 cases like these the model answers about \d+ and refers \d+", said)
    rule = RegressionRule.load(tmp_path / "new" / "regression_rule.json")
    assert rule.tolerance == example.TOLERANCE / example.SCALE
    with Image.open(tmp_path / "new" / "regression.png") as figure:
        assert min(figure.size) > 800
    served = tf.saved_model.load(str(tmp_path / "new" / "regression_model"))
    answers = served.serve(example.load_diabetes(0)[2].x[:3])
    assert {"mean", "lower", "upper", "accept"} <= set(answers)
    shown = re.findall(r"^  \d+: (-?\d+), from (-?\d+) to (-?\d+); (answered|referred)", said, re.M)
    means = [float(mean) for mean, *_ in shown]
    np.testing.assert_allclose(means, 100 * answers["mean"][:, 0].numpy(), atol=0.51)
    accepted = [verdict == "answered" for *_, verdict in shown]
    np.testing.assert_array_equal(accepted, answers["accept"][:, 0].numpy())


def test_people_are_shared_out():
    parts = load_script("examples/regression.py").load_diabetes(3)
    rows = {row.tobytes() for part in parts for row in part.x}
    assert sum(len(part.y) for part in parts) == len(rows) == 442


def test_nuclei_quick_without_the_file_draws_discs(nuclei, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nuclei, "QUICK_IMAGES", 40)
    monkeypatch.setattr(nuclei, "QUICK_EPOCHS", 1)
    arguments = ["--quick", "--data", str(tmp_path / "nothing"), "--output", str(tmp_path)]
    nuclei.main(arguments)
    said = capsys.readouterr().out
    assert f"{nuclei.FILE} is missing in {tmp_path / 'nothing'}" in said and "SYNTHETIC" in said
    assert list(table(said, "images")) == ["the same kind", "another kind"]
    assert len(re.findall(r"nuclei: \d+, from \d+ to \d+; (?:answered|referred)", said)) == 5
    with Image.open(tmp_path / "nuclei_count.png") as figure:
        assert min(figure.size) > 300


def test_nuclei_name_the_missing_file(nuclei, tmp_path):
    with pytest.raises(SystemExit, match=f"{nuclei.FILE} is missing in .*TFUQ_DATA"):
        nuclei.main(["--data", str(tmp_path)])


def test_discs_are_counted(nuclei):
    masks = np.zeros((2, 9, 9), bool)
    masks[0, ::4, ::4] = True
    np.testing.assert_allclose(np.exp(nuclei.counted(masks)), [9, 1], rtol=1e-6)
    drawn = nuclei.draw_discs(8, 0)
    assert drawn.x.shape == (8, 128, 128, 3) and drawn.x.dtype == np.uint8
    assert np.exp(drawn.y).max() > 2


def real_file(nuclei):
    if not (nuclei.default_folder() / nuclei.FILE).is_file():
        pytest.skip(f"{nuclei.FILE} is not in {nuclei.default_folder()}: name it in TFUQ_DATA")


def test_nuclei_of_the_real_file(nuclei):
    real_file(nuclei)
    known, other = nuclei.load_nuclei(nuclei.default_folder())
    assert (len(known.y), len(other.y)) == (541, 107)
    assert known.x.shape == (541, 128, 128, 3)
    assert known.x.mean() < 60 < 120 < other.x.mean()  # dark, and stained
    assert 15 < np.exp(np.median(known.y)) < 30


@pytest.mark.slow
def test_nuclei_of_the_real_file_are_learned(nuclei, tmp_path, capsys):
    real_file(nuclei)
    nuclei.main(["--output", str(tmp_path)])
    rows = table(capsys.readouterr().out, "images")
    known, other = (
        [float(cell.rstrip(" %")) for cell in rows[name][:4]]
        for name in ("the same kind", "another kind")
    )
    assert known[1] < 15 and known[3] > 75
    assert other[3] < known[3] - 20  # a promise is for images of its kind
