"""The server's monitor: cases as they are answered, labels as they come, an alarm, a file."""

import functools
import importlib
import json
import pathlib
import sys
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tfuq.export import export
from tfuq.predictive import RegressionUncertainty, declare
from tfuq.selective import Monitor, RegressionRule, RejectionRule
from tfuq.serving import cases as cases_of_server
from tfuq.serving import reading, watching

pytestmark = pytest.mark.xdist_group("serving")

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "serving"


def module(name):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def metadata_of(rule, outputs=("confidence", "probabilities"), family=None):
    return {
        "rule": {"config": json.loads(json.dumps(rule.get_config(), default=np.ndarray.tolist))},
        "outputs": {name: {"shape": [None, 2]} for name in outputs},
        "family": family,
    }


@functools.cache
def fitted(costs=None):
    """A rule of two classes that was fitted to labels, of errors or of costs."""
    rng = np.random.default_rng(5)
    top = rng.uniform(0.5, 1, size=1000)
    labels = (rng.random(1000) > top).astype(int)
    probs = np.stack([top, 1 - top], -1)
    loss = "error" if costs is None else np.array(costs)
    return RejectionRule.fit(probs, labels, target_risk=0.2, loss=loss)


def rule_of(score="confidence", threshold=None):
    """The rule, or one of another score or threshold."""
    config = fitted().get_config()
    if threshold is not None:
        config["threshold"] = threshold
    return RejectionRule.from_config({**config, "score": score})


@pytest.fixture
def watch(tmp_path):
    rule = fitted()
    rule.monitor().save(tmp_path / "monitor.json")
    return watching.Watch(tmp_path / "monitor.json", metadata_of(rule), ("a", "b"))


def test_a_rule_that_accepts_nothing_can_be_watched(tmp_path):
    """Its threshold is infinite, which JSON has as a text."""
    rule = rule_of(threshold=np.inf)
    rule.monitor().save(tmp_path / "monitor.json")
    assert watching.Watch(tmp_path / "monitor.json", metadata_of(rule)).said()["cases"] == 0
    with pytest.raises(ValueError, match="another rule"):
        watching.Watch(tmp_path / "monitor.json", metadata_of(fitted()))


def cases(count, seed=0):
    """Outputs of a batch, and the answers to it."""
    top, limit = np.random.default_rng(seed).uniform(0.5, 1, size=count), fitted().threshold
    probs = np.stack([top, 1 - top], -1)
    outputs = {
        "probabilities": probs,
        "confidence": top,
        "label": np.zeros(count, int),
        "accept": top >= limit,
    }
    said = [{"label": 0, "accept": bool(each)} for each in outputs["accept"]]
    return outputs, said


def taken(watch, outputs, said, marks=None):
    watch.take(outputs, said, [None] * len(said) if marks is None else marks)


def test_is_the_monitor_of_python(watch):
    """Cases in batches, labels of half of them later: what `Monitor` says of all of it."""
    expected, rng = fitted().monitor(), np.random.default_rng(1)
    for seed in range(4):
        outputs, said = cases(20, seed)
        taken(watch, outputs, said)
        expected.update_decisions(outputs["accept"], outputs["confidence"])
        labels = {answer["id"]: int(rng.random() < 0.05) for answer in said[::2]}
        found = watch.label(labels)
        losses = [
            float(y) for y, ok in zip(labels.values(), outputs["accept"][::2], strict=True) if ok
        ]
        expected.update_losses(losses)
    assert found["cases"] == 80 and found["waiting_for_labels"] == 40
    assert found["wealth"] == pytest.approx(expected.wealth)
    assert found["risk_bound"] == pytest.approx(expected.risk_bound)
    again = Monitor.load(watch.path)  # written when labels had come
    assert again.fitted_to == expected.fitted_to and again.wealth == pytest.approx(expected.wealth)


def test_raises_an_alarm(watch):
    for seed in range(20):
        outputs, said = cases(20, seed)
        taken(watch, outputs, said)
        found = watch.label({answer["id"]: "b" for answer in said})  # all wrong
    assert found["alarm"] and "risk" in found["alarms"]
    assert found["promised_risk"] == 0.2 and found["risk_bound"] > 0.9


def test_labels_that_are_none(watch, counts):
    outputs, said = cases(5)
    taken(watch, outputs, said)
    first = said[0]["id"]
    for labels, status in (
        ({}, 422),
        ([1, 2], 422),
        ({"nobody": 0}, 404),
        ({first: 0, "nobody": 0}, 404),
        ({first: "c"}, 422),
        ({first: 2}, 422),
        ({first: -1}, 422),
        ({first: 1.0}, 422),
        ({first: True}, 422),
        ({first: None}, 422),
    ):
        with pytest.raises(reading.Refused) as refused:
            watch.label(labels)
        assert refused.value.status == status, labels
        counts("misuse rows, refused")
    assert watch.said()["waiting_for_labels"] == 5 and watch.said()["labelled"] == 0
    watch.label({first: 0})
    with pytest.raises(reading.Refused, match="it has one"):  # the same label twice
        watch.label({first: 0})
    counts("misuse rows, refused")


def test_labels_are_classes_of_the_model_without_names_too(watch, counts):
    watch.class_names = None
    outputs, said = cases(2)
    taken(watch, outputs, said)
    for label in (2, "a"):
        with pytest.raises(reading.Refused, match="must be a class, 0 to 1, not"):
            watch.label({said[0]["id"]: label})
        counts("misuse rows, refused")


def test_forgets_the_oldest(watch, monkeypatch):
    monkeypatch.setattr(cases_of_server, "KEPT", 3)
    outputs, said = cases(5)
    taken(watch, outputs, said)
    assert watch.said()["waiting_for_labels"] == 3 and watch.said()["cases"] == 5
    with pytest.raises(reading.Refused, match="not waiting"):
        watch.label({said[0]["id"]: 0})


def test_a_full_disk_ends_no_answers(watch, monkeypatch, caplog):
    """Cases and labels are counted once, and written when there is room again."""

    def full(path):
        raise OSError(28, "No space left on device")

    watch.save_every = 3
    with monkeypatch.context() as patched:
        patched.setattr(watch.monitor, "save", full)
        outputs, said = cases(5)
        taken(watch, outputs, said)
        found = watch.label({said[0]["id"]: 0})
        with pytest.raises(OSError):  # at the end nothing is tried again
            watch.close()
    assert (found["cases"], found["waiting_for_labels"], found["unsaved"]) == (5, 4, 6)
    assert caplog.text.count("No space left on device") == 2
    assert watch.label({said[1]["id"]: 0})["unsaved"] == 0
    assert Monitor.load(watch.path).fitted_to == watch.monitor.fitted_to


def test_refuses_other_rules(tmp_path, counts):
    served = fitted()
    costs = fitted(((0.0, 1.0), (0.5, 0.0)))
    for watched, of_model, match in (
        (rule_of(threshold=0.7), served, "another rule"),
        (rule_of("margin"), served, "another rule"),
        (costs, costs, "must watch a rule of errors"),
        (rule_of("mutual_information"), rule_of("mutual_information"), "by a score that the model"),
    ):
        watched.monitor().save(tmp_path / "monitor.json")
        with pytest.raises(ValueError, match=match):
            watching.Watch(tmp_path / "monitor.json", metadata_of(of_model))
        counts("misuse rows, refused")
    (tmp_path / "monitor.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError):
        watching.Watch(tmp_path / "monitor.json", metadata_of(served))
    counts("misuse rows, refused")


def test_numbers(tmp_path):
    std = np.random.default_rng(0).uniform(0.1, 2, size=1000)
    found = RegressionUncertainty(
        np.stack([0 * std, std], -1)[None, :, None, :][..., 0, :], "normal"
    )
    y = std * np.random.default_rng(1).normal(size=1000)
    rule = RegressionRule.fit(found, y, tolerance=2.0, target_risk=0.1)
    rule.monitor().save(tmp_path / "monitor.json")
    limit = float(rule.threshold)
    metadata = metadata_of(rule, ("mean", "score"), {"name": "normal"})
    watch = watching.Watch(tmp_path / "monitor.json", metadata)
    outputs = {"mean": np.zeros((3, 1)), "score": limit * np.array([[0.5], [0.7], [2.0]])}
    outputs["accept"] = outputs["score"] <= limit
    said = [{"mean": 0.0, "accept": bool(each)} for each in outputs["accept"][:, 0]]
    taken(watch, outputs, said)
    found = watch.label({said[0]["id"]: 1.9, said[1]["id"]: -2.1, said[2]["id"]: 50})
    assert (found["labelled"], found["loss"], found["accepted"]) == (2, 1.0, 2)
    taken(watch, outputs, said)
    for label in ("1", None, True, float("inf")):
        with pytest.raises(reading.Refused, match="must be"):
            watch.label({said[0]["id"]: label})


# --- Cases that come again --------------------------------------------------------------------


def inputs_of(count, seed=0, values=12):
    return list(np.random.default_rng(seed).normal(size=(count, values)).astype("float32"))


def said_again(watch, inputs, key=None):
    """The ids of the answers to a request, which are repeated, and how many cases there are."""
    outputs, said = cases(len(inputs))
    taken(watch, outputs, said, watch.marks(inputs, key))
    repeated = [bool(answer.get("repeated")) for answer in said]
    return [answer["id"] for answer in said], repeated, watch.said()["cases"]


@pytest.mark.parametrize("key", [None, "a-key"])
def test_a_request_that_comes_again_is_counted_once(watch, key):
    first, *found = said_again(watch, inputs_of(5), key)
    assert found == [[False] * 5, 5]
    assert said_again(watch, inputs_of(5), key) == (first, [True] * 5, 5)
    watch.label(dict.fromkeys(first, 0))  # by the ids of either answer, once
    assert said_again(watch, inputs_of(5), key) == (first, [True] * 5, 5)
    assert watch.said()["repeated"] == 10 and watch.said()["unidentified"] == 0
    with pytest.raises(reading.Refused, match="it has one"):
        watch.label({first[0]: 0})
    assert said_again(watch, inputs_of(5, seed=1), key and "another")[1:] == ([False] * 5, 10)


def test_an_input_is_known_in_another_list_too(watch):
    first, *_ = said_again(watch, inputs_of(5))
    again = [inputs_of(5)[3], *inputs_of(1, seed=1), inputs_of(5)[3]]
    found, repeated, count = said_again(watch, again)
    assert (found[0], repeated, count) == (first[3], [True, False, True], 6)


def test_equal_inputs_of_few_values_may_be_other_cases(watch):
    """By themselves: of a list that comes again as a whole that is no chance."""
    (row,) = inputs_of(1, values=3)
    for count in (1, 2):
        outputs, said = cases(1)
        taken(watch, outputs, said, watch.marks([row], None))
        assert said[0]["unidentified"] is True and watch.said()["cases"] == count
    assert watch.said()["unidentified"] == 2
    assert said_again(watch, [row], "of-this-one")[1:] == ([False], 3)
    assert said_again(watch, [row], "of-this-one")[1:] == ([True], 3)
    rows = inputs_of(4, values=3)
    first = said_again(watch, rows)
    assert first[1:] == ([False] * 4, 7)
    assert said_again(watch, rows) == (first[0], [True] * 4, 7)
    assert said_again(watch, rows[::-1])[1:] == ([False] * 4, 11)
    assert watch.said()["unidentified"] == 2


def test_equal_inputs_with_keys_of_their_own_are_other_cases(watch):
    for count, key in enumerate(("a", "b"), 1):
        assert said_again(watch, inputs_of(1), key)[1:] == ([False], count)


def test_keys_that_are_none(watch, counts):
    said_again(watch, inputs_of(2), "taken")
    for key, inputs, error in (
        ("taken", inputs_of(2, seed=1), "key_reused"),
        ("taken", inputs_of(2)[:1], "key_reused"),
        ("taken", inputs_of(2)[::-1], "key_reused"),
        ("", inputs_of(2), "wrong_key"),
        ("a" * 201, inputs_of(2), "wrong_key"),
        ("a\tb", inputs_of(2), "wrong_key"),
    ):
        with pytest.raises(reading.Refused) as refused:
            watch.marks(inputs, key)
        assert (refused.value.status, refused.value.error) == (422, error)
        counts("misuse rows, refused")
    assert watch.said()["cases"] == 2


# --- A process --------------------------------------------------------------------------------


def posted(url, body, kind, **headers):
    request = urllib.request.Request(url, body, {"Content-Type": kind, **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_over_http(tmp_path):
    """A server with `--monitor` names its cases, takes labels, and goes on after a restart."""
    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype("float32"), digits.target
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), dense])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), jit_compile=False)
    model.fit(x[:900], y[:900], epochs=5, verbose=0)
    declare(model, value_range=(0, 1))
    probs = model.predict(x[900:1500], verbose=0)
    rule = RejectionRule.fit(probs, y[900:1500], target_risk=0.2)
    export(model, tmp_path / "served", rule=rule)
    rule.monitor().save(tmp_path / "monitor.json")
    load_test = module("load_test")
    option = ("--monitor", str(tmp_path / "monitor.json"))
    body = json.dumps({"instances": x[1500:1520].tolist()}).encode()
    with load_test.running_server(tmp_path / "served", *option) as server:
        found = posted(server.url + "/predict", body, "application/json")["predictions"]
        labels = {each["id"]: int(label) for each, label in zip(found, y[1500:1520], strict=True)}
        message = json.dumps({"labels": labels}).encode()
        said = posted(server.url + "/labels", message, "application/json")
        wrong = sum(
            e["accept"] and e["label"] != t for e, t in zip(found, y[1500:1520], strict=True)
        )
        assert said["cases"] == 20 and said["loss"] == wrong and not said["alarm"]
        with urllib.request.urlopen(server.url + "/monitor", timeout=60) as answer:
            assert json.loads(answer.read()) == said
        with pytest.raises(urllib.error.HTTPError) as refused:
            posted(server.url + "/labels", message, "application/json")
        with refused.value as answer:
            assert answer.code == 404
        again = posted(server.url + "/predict", body, "application/json")["predictions"]
        assert again == [{**each, "repeated": True} for each in found]  # a retry
        key = {"Idempotency-Key": "of another twenty"}
        for _ in range(2):
            again = posted(server.url + "/predict", body, "application/json", **key)
        assert again["predictions"][0]["repeated"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            posted(server.url + "/predict", body.replace(b"0.0", b"1.0", 1), "application/json",
                   **key)  # fmt: skip
        with refused.value as answer:
            assert answer.code == 422 and json.loads(answer.read())["error"] == "key_reused"
    assert Monitor.load(tmp_path / "monitor.json").fitted_to["cases"] == 40  # written at the end
