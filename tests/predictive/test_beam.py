"""Scores in a Beam pipeline on the local runner, against `score_dataset`."""

import json

import keras
import numpy as np
import pytest

from tfuq.layers import MCDropout
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import RejectionRule

X = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")


def model_in(path):
    layers = [keras.layers.Dense(8, "relu"), MCDropout(0.5), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(loss="sparse_categorical_crossentropy")
    model.save(path)
    return model


def test_without_beam_it_says_what_to_install(monkeypatch):
    from tfuq.predictive import beam

    monkeypatch.setattr(beam, "_DoFn", None)  # as where importing Beam has failed
    with pytest.raises(ImportError, match=r"pip install 'tfuq\[beam\]'"):
        beam.ScoreDoFn("model.keras")


@pytest.mark.filterwarnings("default")  # Beam's own
def test_rows_are_those_of_score_dataset(tmp_path):
    beam = pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    from apache_beam.options.pipeline_options import PipelineOptions

    from tfuq.predictive.beam import ScoreDoFn

    model = model_in(tmp_path / "m.keras")
    rule = RejectionRule("mutual_information", 0.1)
    options = {"num_samples": 4, "rule": rule, "seed": 3}
    expected = read_scores(score_dataset(model, X, tmp_path / "s", verbose=0, **options).path)

    def said(row):
        return json.dumps(row)

    local = PipelineOptions(["--runner=DirectRunner", "--direct_running_mode=in_memory"])
    with beam.Pipeline(options=local) as pipeline:
        (
            pipeline
            | beam.Create([(f"key {n}", x) for n, x in enumerate(X)])
            | beam.BatchElements(min_batch_size=8, max_batch_size=8)
            | beam.ParDo(ScoreDoFn(str(tmp_path / "m.keras"), **options))
            | beam.Map(said)
            | beam.io.WriteToText(str(tmp_path / "rows"))
        )
    lines = [line for file in tmp_path.glob("rows-*") for line in file.read_text().splitlines()]
    rows = {row["key"]: row for row in map(json.loads, lines)}
    assert sorted(rows) == sorted(f"key {n}" for n in range(24))
    for name in expected.keys() - {"index"}:
        found = [rows[f"key {n}"][name] for n in range(24)]
        np.testing.assert_allclose(found, expected[name], atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="`model` must be the path"):
        ScoreDoFn(model)
