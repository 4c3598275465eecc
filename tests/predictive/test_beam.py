"""Scores in a Beam pipeline on the local runner, against `score_dataset`."""

import json

import keras
import numpy as np
import pytest

from tfuq.layers import MCDropout, NormalDense
from tfuq.predictive import predict_uncertainty, read_scores, score_dataset
from tfuq.selective import ConformalRegressor, RegressionRule, RejectionRule

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


def in_a_pipeline(path, folder, **options):
    """Rows of `X` by Beam's local runner, by key."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tfuq.predictive.beam import ScoreDoFn

    def said(row):
        return json.dumps(row)

    local = PipelineOptions(["--runner=DirectRunner", "--direct_running_mode=in_memory"])
    with beam.Pipeline(options=local) as pipeline:
        (
            pipeline
            | beam.Create([(f"key {n}", x) for n, x in enumerate(X)])
            | beam.BatchElements(min_batch_size=8, max_batch_size=8)
            | beam.ParDo(ScoreDoFn(str(path), **options))
            | beam.Map(said)
            | beam.io.WriteToText(str(folder / "rows"))
        )
    lines = [line for file in folder.glob("rows-*") for line in file.read_text().splitlines()]
    return {row["key"]: row for row in map(json.loads, lines)}


def check_rows(rows, expected):
    assert sorted(rows) == sorted(f"key {n}" for n in range(24))
    assert {name for row in rows.values() for name in row} - {"key"} == expected.keys() - {"index"}
    for name in expected.keys() - {"index"}:
        found = [rows[f"key {n}"][name] for n in range(24)]
        np.testing.assert_allclose(found, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("default")  # Beam's own
def test_rows_are_those_of_score_dataset(tmp_path):
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    from tfuq.predictive.beam import ScoreDoFn

    model = model_in(tmp_path / "m.keras")
    rule = RejectionRule("mutual_information", 0.1)
    options = {"num_samples": 4, "rule": rule, "seed": 3}
    expected = read_scores(score_dataset(model, X, tmp_path / "s", verbose=0, **options).path)
    check_rows(in_a_pipeline(tmp_path / "m.keras", tmp_path, **options), expected)
    with pytest.raises(ValueError, match="`model` must be the path"):
        ScoreDoFn(model)


def number_model_in(path):
    layers = [keras.layers.Dense(8, "relu"), MCDropout(0.5), NormalDense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.save(path)
    return model


def options_of_numbers(model):
    sets = ConformalRegressor.fit(predict_uncertainty(model, X, 4), X.sum(1), method="normalized")
    return {"num_samples": 4, "rule": RegressionRule("std", 1.5), "conformal": sets, "seed": 3}


@pytest.mark.filterwarnings("default")
def test_rows_of_a_regression_are_those_of_score_dataset(tmp_path):
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    model = number_model_in(tmp_path / "m.keras")
    options = options_of_numbers(model)
    expected = read_scores(score_dataset(model, X, tmp_path / "s", verbose=0, **options).path)
    assert {"mean", "epistemic_std", "lower", "upper", "score", "accept"} <= expected.keys()
    check_rows(in_a_pipeline(tmp_path / "m.keras", tmp_path, **options), expected)


def test_batches_of_a_regression_without_a_runner(tmp_path, monkeypatch):
    """What a worker does, called by hand: rows of batches, with keys, of one network and seed."""
    from tfuq.predictive import beam

    monkeypatch.setattr(beam, "_DoFn", object)
    model = number_model_in(tmp_path / "m.keras")
    options = options_of_numbers(model)
    path = tmp_path / "s"
    score_dataset(model, X, path, verbose=0, format="tfrecord", **options)
    worker = beam.ScoreDoFn(str(tmp_path / "m.keras"), **options)
    worker.setup()
    keyed = [(f"key {n}", x) for n, x in enumerate(X)]
    rows = {row["key"]: row for n in (0, 8, 16) for row in worker.process(keyed[n : n + 8])}
    check_rows(rows, read_scores(path))
