"""The eight tasks of docs/how-to/eight-tasks.md: six lines each at most, and what they find."""

import pathlib
import re

import numpy as np
import pytest
from test_docs import fences

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "how-to" / "eight-tasks.md"
TASKS = (
    "Reject",
    "Calibrate",
    "Regress with an interval",
    "Find unknown inputs",
    "Ensemble",
    "Convert",
    "Export",
    "Monitor",
)


def sections():
    """What stands under each heading, by the heading; what stands above the first under ''."""
    first, *rest = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": first, **dict(part.split("\n", 1) for part in rest)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The variables after each task, by its name; all in one namespace, as on the page."""
    space, found = {"__name__": "page"}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tasks"))
        for title, text in sections().items():
            for block in fences(text, "python"):
                exec(compile(block, f"{PAGE.name}: {title}", "exec"), space)
            found[title] = dict(space)
    return found


def test_each_takes_at_most_six_lines():
    found = sections()
    assert [title for title in found if title in TASKS] == list(TASKS)
    for title in TASKS:
        (block,) = fences(found[title], "python")
        assert len([line for line in block.splitlines() if line.strip()]) <= 6, title


def test_the_table_names_what_the_tasks_call():
    table = sections()["The names, and why these"]
    names = re.findall(r"^\| [\w ]+ \| `([\w.]+)` \|", table, re.MULTILINE)
    assert len(names) == len(TASKS)
    for title, name in zip(TASKS, names, strict=True):
        assert name in fences(sections()[title], "python")[0], title


@pytest.mark.dear
def test_what_is_accepted_is_right(ran):
    space = ran["Reject"]
    right = space["model"].predict(space["x_test"], verbose=0).argmax(-1) == space["y_test"]
    assert 0 < space["accepted"].mean() < 1
    assert right[space["accepted"]].mean() > right.mean()


def test_calibrated_probabilities(ran):
    """The same answers, with another confidence."""
    space = ran["Calibrate"]
    plain = space["model"].predict(space["x_test"], verbose=0)
    np.testing.assert_array_equal(space["found"].label, plain.argmax(-1))
    temperature = float(space["scaling"].temperature)
    assert temperature != 1
    probs = np.exp(plain / temperature - (plain / temperature).max(-1, keepdims=True))
    expected = (probs / probs.sum(-1, keepdims=True)).max(-1)
    np.testing.assert_allclose(space["found"].confidence, expected, atol=1e-4)


def test_intervals_hold_the_truth(ran):
    """Of 122 patients 9 in 10: below 75 % in one of 1e5 runs of a right interval."""
    space = ran["Regress with an interval"]
    truth = space["t"][320:, None]
    held = (space["lower"] <= truth) & (truth <= space["upper"])
    assert held.shape == truth.shape and held.mean() > 0.75


def test_negatives_are_strange(ran):
    space = ran["Find unknown inputs"]
    assert space["strange"].mean() > 0.9
    assert space["detector"].detect(space["x_test"]).mean() < 0.3


@pytest.mark.parametrize("task", ["Ensemble", "Convert"])
def test_disagreement_is_larger_where_the_answer_is_wrong(ran, task):
    space = ran[task]
    wrong = space["found"].label != space["y_test"]
    epistemic = space["found"].mutual_information
    assert epistemic[wrong].mean() > epistemic[~wrong].mean() > 0


def test_a_promise_that_holds_raises_no_alarm(ran):
    assert not ran["Monitor"]["monitor"].alarms
