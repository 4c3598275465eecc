"""What `docs/which-method.md` says by hand of benchmarks beside `benchmarks/methods.py` holds."""

import json
import pathlib

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
MORE_IS_BETTER = {"accuracy": True, "near": True, "far": True, "nll": False, "augrc": False}


def tasks_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["tasks"]


def signs(each, column):
    """How many differences are better, and how many worse, by their intervals."""
    known = [(low > 0) - (high < 0) for _, low, high in each]
    more = 1 if MORE_IS_BETTER[column] else -1
    return known.count(more), known.count(-more)


def test_of_temperature_and_covariance():
    known = tasks_of("noisy_labels")
    same = "Dense at the same temperature"
    of = {
        (base, column): signs(
            [t["differences"][base]["full"][column] for t in known.values()], column
        )
        for base in ("Dense", same)
        for column in ("nll", "augrc")
    }
    assert of["Dense", "nll"][0] > 0 == of[same, "nll"][0]
    assert of[same, "augrc"] == (1, 0) and len(known) == 2


def test_of_fundus_images():
    (task,) = tasks_of("fundus").values()
    accepted = [each["accuracy of sure"] for each in task["differences"].values()]
    assert signs(accepted, "accuracy")[0] == 0


def test_of_optimizers():
    known = [task["differences"] for task in tasks_of("optimizers").values()]
    for column in ("accuracy", "nll", "augrc"):
        better, worse = signs([each["SGD, one cosine"][column] for each in known], column)
        assert better > 0 == worse, column
        better, worse = signs([each["SGDR+DLR+CLM"][column] for each in known], column)
        assert better == worse, column


def test_of_saliency():
    for task in tasks_of("saliency").values():
        for known in task["differences"].values():
            for column, each in known["random"].items():
                if column in MORE_IS_BETTER:
                    assert signs([each], column) == (0, 0)
