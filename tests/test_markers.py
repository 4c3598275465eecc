"""Markers that leave cases of a test to `make test-slow`: see conftest.py."""

import itertools
import types

import costs
import pytest
from conftest import is_beside_diagonal, is_beyond


def left_out(rule, marker, *parameters):
    """The places of the cases of a product of parameters that a rule calls slow."""
    marks = [pytest.mark.parametrize(f"p{i}", values) for i, values in enumerate(parameters)]
    found = set()
    for number, case in enumerate(itertools.product(*map(range, map(len, parameters)))):
        item = types.SimpleNamespace(
            callspec=types.SimpleNamespace(indices={"p0": number}),
            iter_markers=lambda name: (decorator.mark for decorator in marks),
            get_closest_marker=lambda name: marker.mark if name == marker.mark.name else None,
        )
        found |= {case} if rule(item) else set()
    return found


def test_a_diagonal_has_each_value_once():
    slow = left_out(is_beside_diagonal, pytest.mark.slow_product, "abc", "xy")
    assert slow == {(0, 1), (1, 0), (2, 1)}
    assert not left_out(is_beside_diagonal, pytest.mark.slow_product, "abc")
    assert not left_out(is_beside_diagonal, pytest.mark.slow_after(1), "abc", "xy")


def test_cases_after_the_first_values():
    assert left_out(is_beyond, pytest.mark.slow_after(2), "abc") == {(2,)}
    assert left_out(is_beyond, pytest.mark.slow_after(1), "ab", "xy") == {(0, 1), (1, 0), (1, 1)}
    assert not left_out(is_beyond, pytest.mark.slow_product, "abc")


def test_cases_within_the_budget_of_their_function():
    names = ["a", "b", "a", "a", "c", "c", "a", "d"]
    found = list(costs.beyond_budget(names, {"a": 0.2, "b": 3.0, "c": 0.6}, budget=0.5))
    assert found == [3, 5, 6]  # two of a, the only one of b, the first of c, and d as not measured


def test_measurements_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "FILE", tmp_path / "costs.json")
    assert costs.read() == {}
    costs.write({"/any/tests/x.py::dear[1]": 0.3, "tests/x.py::dear[2]": 0.5, "x.py::one": 9.0})
    assert costs.read() == {"x.py::dear": 0.4}
    costs.write({"x.py::cheap[1]": 0.05, "x.py::cheap[2]": 0.05})
    assert costs.read() == {}
