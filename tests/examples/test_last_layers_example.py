"""`examples/last_layers.py` runs, with its own features and with those of a file."""

import re

import numpy as np
import pytest
from test_examples import load_script

NAMES = ["Dense", "HET", "HET-XL", "VBLL", "SNGP", "Laplace"]


@pytest.fixture
def last_layers():
    return load_script("examples/last_layers.py")


def rows_of(text):
    return {
        row[0]: row[1:] for row in re.findall(r"^([\w-]+) +\|" + r" +(\S+) +\|?" * 6, text, re.M)
    }


@pytest.fixture
def features(tmp_path):
    """Three classes that are apart, and what lies elsewhere."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=120)
    x = rng.normal(size=(120, 6)) + 3 * np.eye(6)[y]
    far = rng.normal(size=(20, 6)) + 8
    arrays = {"x_train": x[:80], "y_train": y[:80], "x_test": x[80:], "y_test": y[80:]}
    np.savez(tmp_path / "features.npz", **arrays, x_far=far)
    np.savez(tmp_path / "without_far.npz", **arrays)
    np.savez(tmp_path / "broken.npz", x_train=x)
    return tmp_path


@pytest.mark.slow  # `make test-docs` runs it
def test_quick(last_layers, features, capsys):
    output = features / "out"
    arguments = ["--quick", "--features", str(features / "features.npz"), "--output", str(output)]
    last_layers.main(arguments)
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == NAMES
    for row in rows.values():
        accuracy, nll, ece, area, unknown, seconds = map(float, row)
        assert 0 <= accuracy <= 1 and 0 <= ece <= 1 and 0 <= area <= 0.5 and 0 <= unknown <= 1
        assert nll > 0 and seconds > 0
    assert (output / "last_layers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_quick_on_the_digits(last_layers, tmp_path, capsys):
    last_layers.main(["--quick", "--output", str(tmp_path)])
    text = capsys.readouterr().out
    assert "SYNTHETIC" in text and list(rows_of(text)) == NAMES


@pytest.mark.slow
def test_nothing_is_said_of_the_unknown_without_them(last_layers, features, capsys):
    output = ["--output", str(features / "out")]
    last_layers.main(["--quick", "--features", str(features / "without_far.npz"), *output])
    assert {row[4] for row in rows_of(capsys.readouterr().out).values()} == {"nan"}


@pytest.mark.parametrize(
    ("name", "match"),
    [("missing.npz", "there is no file"), ("broken.npz", "has no x_test, y_test, y_train")],
)
def test_files_that_are_none(last_layers, features, name, match):
    with pytest.raises(SystemExit, match=match):
        last_layers.main(["--quick", "--features", str(features / name)])
