"""The example that writes a rule, and the tables of its benchmark."""

import json
import re

import keras
import numpy as np
import pytest
from test_ood_example import load_script, script  # noqa: F401 (a fixture)

from tfuq.selective import RejectionRule


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The range test ended")  # it is short
def test_quick_run_ends_in_a_rule_and_a_sentence(script, tmp_path, capsys):  # noqa: F811
    example = script("examples/clinical_rejection.py")
    example.main(["--quick", "--output", str(tmp_path)])
    said = capsys.readouterr().out
    sentence = (
        r"Of 100 cases like these the model answers about (\d+) and refers (\d+) to a person. With "
        r"95 % confidence, for cases like the \d+ .*: of its answers at most 10 in 100 are wrong"
    )
    answered, referred = map(int, re.search(sentence, said).groups())
    assert answered + referred == 100
    assert 20 < answered < 100
    assert re.search(r"\| group: other \| \d+ \|.*\| fails \|", said)
    assert re.search(r"\| group: own \| \d+ \|.*\| (holds|not shown) \|", said)
    assert "| the rule |" in said
    rule = RejectionRule.load(tmp_path / "rule.json")
    assert rule.fitted_to["target_risk"] == 0.1
    model = keras.models.load_model(tmp_path / "with_rule.keras", safe_mode=True)
    x = np.zeros((2, 8, 8, 3), "uint8")
    found = model.predict(x, verbose=0)
    np.testing.assert_array_equal(found["accept"], rule.accept(found["probabilities"]))


def test_parts_do_not_overlap_and_the_other_hospital_is_only_judged(script):  # noqa: F811
    example = script("examples/clinical_rejection.py")
    _, rest, names = example.load_digits()
    parts = example.share_out(rest, "other", 0)
    assert sum(len(part.y) for part in parts) == len(rest.y) == 1000
    assert [(part.groups == "other").any() for part in parts] == [False, False, True]
    assert len(names) == 10


@pytest.mark.slow
def test_benchmark_counts_splits_that_exceed(script, tmp_path, monkeypatch, capsys):  # noqa: F811
    benchmark = load_script("benchmarks/selective.py")
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, size=600)
    labels = (rng.random(600) < p).astype(int)
    groups = np.where(np.arange(600) < 500, "home", benchmark.EXTERNAL)
    labels[500:] = 1 - (p[500:] > 0.7)  # abroad the confident answers are wrong
    found = (np.stack([1 - p, p], axis=-1), labels, groups)
    monkeypatch.setattr(benchmark, "SOURCES", {"HAM10000": lambda folder: found})
    monkeypatch.setattr(benchmark, "SPLITS", 5)
    path = tmp_path / "runs.json"
    benchmark.main(["--json", str(path)])
    (run,) = json.loads(path.read_text())
    assert run["images"] == 500
    for row in run["rows"]:
        expected = [
            benchmark.one_split(found[0][:500], labels[:500], row["target"], row["method"], seed)
            for seed in range(5)
        ]
        expected = [split for split in expected if split]
        assert row["fitted"] == len(expected)
        assert row["exceeded"] == sum(split["risk"] > row["target"] for split in expected)
    said = capsys.readouterr().out
    assert re.search(r"\| group: external \| 100 \|.*\| fails \|", said) or "No threshold" in said
