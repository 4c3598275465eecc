"""Model cards and metadata: what a person and a program must know of an export."""

import json

import keras
import numpy as np
import pytest

from tfuq.cli import main
from tfuq.export import export, export_onnx
from tfuq.export._files import read_metadata
from tfuq.predictive import declare
from tfuq.selective import ConformalPredictor, RejectionRule, subgroup_report

RNG = np.random.default_rng(0)
X = RNG.random((400, 4, 4, 3), "float32")
NAMES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module")
def made():
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, "softmax"))
    declare(model, class_names=NAMES, value_range=(0, 1))
    probs = model.predict(X, verbose=0)
    labels = probs.argmax(-1)
    rule = RejectionRule.fit(probs, labels, target_risk=0.1, class_names=NAMES)
    groups = subgroup_report(rule, probs, labels, RNG.choice(["ward 3", "ward 4"], 400))
    return model, probs, labels, rule, groups


def test_a_card_says_what_is_known_and_what_is_not(made, tmp_path):
    model, probs, labels, rule, groups = made
    monitor = rule.monitor()
    monitor.update(probs[:50], labels[:50])
    sets = ConformalPredictor.fit(probs, labels, alpha=0.1)
    card = {
        "data": "400 images of noise",
        "figures": {"accuracy": 0.98765, "examples": 400},
        "groups": groups,
        "not_tested_on": ["night", "rain"],
    }
    export(model, tmp_path / "m", rule=rule, conformal=sets, monitor=monitor, card=card)
    text = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    for said in (
        *("cat, dog, emu", "4 by 4 pixels, rgb, from 0 to 1", "400 images of noise"),
        *("accuracy: 0.9877", "ward 3", "- night\n- rain", rule.describe(), "50 cases were"),
        *("ConformalPredictor", "`accept`: ", "tensorflow"),
    ):
        assert said in text, said
    assert text.count("Not said when") == 1  # what it is for
    about = read_metadata(tmp_path / "m")
    assert about["monitor"]["cases"] == 50 and about["monitor"]["alarms"] == []
    assert about["model_inputs"]["channels"] == "rgb" and "python" in about["versions"]
    assert "MODEL_CARD.md" in about["files"]
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    export(plain, tmp_path / "plain")
    text = (tmp_path / "plain" / "MODEL_CARD.md").read_text()
    assert text.count("Not said when") == 5 and "every answer is given" in text


def test_the_card_of_a_file_is_beside_it(made, tmp_path):
    model, _, _, rule, _ = made
    path, beside = tmp_path / "m.onnx", tmp_path / "m.onnx.md"
    export_onnx(model, path, rule=rule, preprocessing=keras.layers.Rescaling(1 / 255))
    assert "prepared by ['rescaling" in beside.read_text()
    about = read_metadata(path)
    assert about["inputs"] is None and about["model_inputs"]["value_range"] == [0.0, 1.0]
    beside.write_text(beside.read_text() + "It was tested everywhere.\n")
    with pytest.raises(ValueError, match=r"m\.onnx\.md altered"):
        read_metadata(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"card": "all is well"}, "Argument `card` must be a dict"),
        ({"card": {"promise": "none"}}, r"`card` must be a dict.*\['promise'\]"),
        ({"card": {"data": 3}}, "`card` must hold texts.*data=3"),
        ({"card": {"data": " "}}, "`card` must hold texts"),
        ({"monitor": 3}, "Argument `monitor` must be a Monitor"),
    ],
)
def test_what_is_no_card_is_refused(made, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(made[0], tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_a_card(made, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    made[0].save("m.keras")
    (tmp_path / "card.json").write_text(json.dumps({"use": "a first look"}))
    assert main(["export", "m.keras", "served", "--card", "card.json"]) == 0
    assert "a first look" in (tmp_path / "served" / "MODEL_CARD.md").read_text()
    (tmp_path / "card.json").write_text("no JSON")
    assert main(["export", "m.keras", "again", "--card", "card.json"]) == 2
    assert "--card must be" in capfd.readouterr().err
