"""The tables of runtimes and of sizes in docs/reliability.md are those of the results."""

import json
import pathlib
import sys

import numpy as np
import pytest
from test_examples import load_script

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scripts():
    """The benchmark by its name, while what it imports can be imported."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        names = ("runtimes", "export_sizes")
        yield {name: load_script(f"benchmarks/{name}.py") for name in names}
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            if name.split(".")[0] in ("evidence", "browser"):
                del sys.modules[name]


def test_the_table_of_runtimes_is_that_of_the_results(scripts):
    from evidence.marked import with_table

    found = json.loads((ROOT / "benchmarks" / "runtimes.json").read_text(encoding="utf-8"))
    script = scripts["runtimes"]
    assert with_table(TEXT, script.PLACE, script.table(found)) == TEXT, "runtimes.py --report"
    assert found["inputs"] == 10_000 and not list(script.faults(found))
    assert all(0 < case["accepted"] < found["inputs"] for case in found["cases"].values())


def test_the_table_of_sizes_is_that_of_the_results(scripts):
    from evidence.marked import with_table

    found = json.loads((ROOT / "benchmarks" / "export_sizes.json").read_text(encoding="utf-8"))
    script = scripts["export_sizes"]
    assert with_table(TEXT, script.PLACE, script.table(found)) == TEXT, "export_sizes.py --report"
    assert found["families"] and found["families"].keys() <= script.FAMILIES.keys()
    for each in found["families"].values():
        assert each["formats"].keys() == set(script.FORMATS)
        differences = [one.get("difference", 0) for one in each["formats"].values()]
        assert max(differences) < 1e-4
    one = next(iter(found["families"].values()))
    failed = {**one, "formats": {**one["formats"], "ONNX": {"failed": "plain", "says": "E: no"}}}
    told = script.table({**found, "families": {"x": failed}})
    assert "| plain fails |" in told and "ONNX (plain): E: no" in told and "Not run yet" in told


def test_a_runtime_that_differs_is_told(scripts):
    script = scripts["runtimes"]
    probs = np.array([[0.75, 0.25], [0.5, 0.5]])
    expected = {
        "probabilities": probs,
        "label": np.array([0, 1]),
        "accept": np.array([True, False]),
        "prediction_set": probs > 0.3,
    }
    same = script.compared({**expected, "accept": np.array([1.0, 0.0])}, expected)
    assert same == {"probabilities": 0.0, "label": 0, "accept": 0, "prediction_set": 0}
    for name, other in (("accept", ~expected["accept"]), ("probabilities", probs + 2e-4)):
        wrong = script.compared({**expected, name: other}, expected)
        cases = {"a": {"runtimes": {"LiteRT": wrong, "browser": same}}}
        (said,) = script.faults({"cases": cases})
        assert "LiteRT" in said


def test_a_page_without_the_place_is_refused(scripts):
    from evidence.marked import with_table

    page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n"
    assert with_table(page, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- end -->\nb\n"
    for name in ("y", ""):
        with pytest.raises(ValueError, match="one place"):
            with_table(page, name, "new\n")
