"""The tutorials run, and are at most half as long as those that they stand for."""

import ast
import pathlib
import re

import numpy as np
import pytest
from test_examples import load_script

TUTORIALS = pathlib.Path(__file__).parents[2] / "examples" / "tutorials"
# Lines of code of the originals, without comments, texts and empty lines: the first counted by
# hand, of the second, a notebook, a low estimate; of the third up to its comparison with others; of
# the fourth a low estimate; the fifth counted by hand, the last a low count of a notebook.
ORIGINALS = {
    "bayesian_neural_networks": 178,
    "regression_five_cases": 200,
    "sngp_two_moons": 179,
    "mixture_of_answers": 160,
    "variational_lenet": 214,
    "sngp_intents": 120,
}


def lines_of_code(path):
    """How many lines hold code: no docstring, comment or empty line."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts |= set(range(node.lineno, node.end_lineno + 1))
        elif hasattr(node, "lineno"):
            found |= {node.lineno, node.end_lineno}
    return len(found - texts)


@pytest.mark.parametrize("name", ORIGINALS)
def test_is_at_most_half_as_long(name, counts):
    path = TUTORIALS / f"{name}.py"
    length = lines_of_code(path)
    counts(f"lines of code of {name}", length)
    assert 2 * length <= ORIGINALS[name]
    said = " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split())
    assert re.search(
        rf"{length} lines of code (instead of|replace) (at least )?{ORIGINALS[name]}", said
    )


@pytest.mark.slow  # run by `make test-docs`, as are the next
def test_five_cases(tmp_path, capsys):
    load_script("examples/tutorials/regression_five_cases.py").main(
        ["--quick", "--output", str(tmp_path)]
    )
    told = r"^(.*): noise .* to (.*), doubt .* to (.*), two"
    cases = re.findall(told, capsys.readouterr().out, re.MULTILINE)
    assert {name: (float(noise) > 0, float(doubt) > 0) for name, noise, doubt in cases} == {
        "no uncertainty": (False, False),
        "aleatoric": (True, False),
        "epistemic": (False, True),
        "aleatoric and epistemic": (True, True),
        "functions": (True, True),
    }
    assert (tmp_path / "five_cases.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bayesian_neural_networks(tmp_path, capsys):
    load_script("examples/tutorials/bayesian_neural_networks.py").main(
        ["--quick", "--output", str(tmp_path)]
    )
    out = capsys.readouterr().out
    assert len(re.findall(r"RMSE \d+\.\d+ of the training rows", out)) == 4
    assert len(re.findall(r"95 % between -?[\d.]+ and -?[\d.]+, actual", out)) == 10
    assert re.search(r"These intervals hold \d+\.\d% of the test labels", out)
    assert (tmp_path / "bayesian_neural_networks.png").stat().st_size > 10_000


@pytest.mark.slow
def test_two_moons(tmp_path, capsys):
    """A few epochs tell the moons apart; only the process doubts what is elsewhere."""
    load_script("examples/tutorials/sngp_two_moons.py").main(["--quick", "--output", str(tmp_path)])
    told = r"^(.*): accuracy (.*), p \(1 - p\) (.*) near, (.*) elsewhere$"
    found = {
        name: [float(each) for each in rest]
        for name, *rest in re.findall(told, capsys.readouterr().out, re.MULTILINE)
    }
    assert found.keys() == {"plain", "SNGP"}
    for accuracy, near, _ in found.values():
        assert accuracy > 0.8 and 0 <= near <= 0.25
    assert found["SNGP"][2] > 0.2 > 2 * found["plain"][2]
    assert (tmp_path / "two_moons.png").stat().st_size > 10_000


@pytest.mark.slow
def test_intents(tmp_path, capsys):
    """A few epochs know the intents of templates that are new, though of none for certain."""
    load_script("examples/tutorials/sngp_intents.py").main(["--quick", "--output", str(tmp_path)])
    told = r"^(.*): accuracy (.*), ECE (.*), AUPR (.*), AUROC (.*) of no intent$"
    found = {
        name: [float(each) for each in rest]
        for name, *rest in re.findall(told, capsys.readouterr().out, re.MULTILINE)
    }
    assert found.keys() == {"plain", "SNGP"}
    for accuracy, error, _, auroc in found.values():
        assert accuracy > 0.6 and 0 < error < accuracy and auroc > 0.6
    assert (tmp_path / "intents.png").stat().st_size > 10_000


@pytest.mark.slow  # its layer and loss have faster tests
def test_mixture_of_answers(tmp_path, capsys):
    """Even a few epochs tell more than a normal around the mean."""
    script = load_script("examples/tutorials/mixture_of_answers.py")
    script.main(["--quick", "--output", str(tmp_path)])
    alone, mixture = map(float, re.findall(r"(-?\d\.\d{3})", capsys.readouterr().out))
    assert mixture < alone
    assert (tmp_path / "mixture_of_answers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_variational_lenet(tmp_path, capsys):
    """Small digits, few epochs: it learns, and doubts wrong answers more than right ones."""
    load_script("examples/tutorials/variational_lenet.py").main(
        ["--quick", "--output", str(tmp_path)]
    )
    out = capsys.readouterr().out
    accuracy, nats = map(
        float, re.search(r"test accuracy (\S+), held-out nats (\S+)", out).groups()
    )
    assert accuracy > 0.5 and np.log(0.1) < nats < 0
    wrong, right = map(
        float, re.search(r"information: (\S+) of wrong.* (\S+) of right", out).groups()
    )
    assert wrong > right > 0
    assert (tmp_path / "variational_lenet.png").stat().st_size > 10_000


def test_mnist_files(tmp_path):
    """Both sources of full size give what the network takes."""
    rows = np.arange(4, dtype="uint8")
    images = np.repeat(rows, 28 * 28).reshape(4, 28, 28) * 85
    named = {f"x_{part}": images for part in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **named, y_train=rows, y_test=rows)
    module = load_script("examples/tutorials/variational_lenet.py")
    for source, shape in (("file", (28, 28, 1)), ("digits", (8, 8, 1))):
        for x, y in module.load(source, tmp_path):
            assert x.shape == (len(y), *shape) and x.dtype == "float32"
            assert x.min() == -1 and x.max() == 1


@pytest.mark.parametrize(
    ("name", "file"),
    [("bayesian_neural_networks", "uci_regression"), ("variational_lenet", "mnist")],
)
def test_a_missing_file_is_named(name, file, tmp_path):
    module = load_script(f"examples/tutorials/{name}.py")
    with pytest.raises(FileNotFoundError, match=rf"{file}\.npz is missing.*--source"):
        module.load("file", tmp_path)
