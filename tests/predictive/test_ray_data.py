"""Scores in Ray Data, against `score_dataset`."""

import os
import pathlib

import keras
import numpy as np
import pytest

from tfuq.layers import MCDropout
from tfuq.predictive import read_scores, score_dataset
from tfuq.predictive.ray import ScoreBatches
from tfuq.selective import RejectionRule

X = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")
Y = np.arange(24) % 3
OPTIONS = {"num_samples": 4, "rule": RejectionRule("mutual_information", 0.1), "seed": 3}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Where a model is, and what `score_dataset` says."""
    folder = tmp_path_factory.mktemp("ray")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu"), MCDropout(0.5), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.save(folder / "m.keras")
    score_dataset(model, (X, Y), folder / "s.tfrecord", verbose=0, **OPTIONS)
    return folder / "m.keras", read_scores(folder / "s.tfrecord")


def check(found, expected):
    order = np.argsort(found["key"])
    assert found.keys() - {"key"} == expected.keys() - {"index"}
    for name in expected.keys() - {"index"}:
        given = np.stack(list(found[name]))[order]
        np.testing.assert_allclose(given, expected[name], atol=1e-6, err_msg=name)


def test_batches_without_ray(scored):
    path, expected = scored
    worker = ScoreBatches(str(path), inputs="x", labels="y", **OPTIONS)
    parts = [
        worker({"x": X[n : n + 8], "y": Y[n : n + 8], "key": np.arange(n, n + 8)})
        for n in (16, 0, 8)
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check(whole, expected)
    objects = np.empty(8, object)
    objects[:] = list(X[:8])
    again = worker({"x": objects, "y": Y[:8]})
    np.testing.assert_array_equal(again["label"], expected["label"][:8])


def test_wrong_columns_are_refused(scored):
    path, _ = scored
    worker = ScoreBatches(str(path), inputs="x", num_samples=4)
    ragged = np.empty(2, object)
    ragged[:] = [X[0], X[0, :3]]
    for batch, says in (
        ({"image": X}, "`inputs`"),
        ({"x": X, "label": Y}, "columns with the names of scores"),
        ({"x": ragged}, "one shape"),
        ({"x": X[:, :4]}, "shape that the model takes"),
    ):
        with pytest.raises(ValueError, match=says):
            worker(batch)
    with pytest.raises(ValueError, match="`model` must be the path"):
        ScoreBatches(keras.Sequential())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_rows_are_those_of_score_dataset(scored):
    for name in ("ray", "pandas", "pyarrow"):
        pytest.importorskip(name)
    import ray

    paths = os.pathsep.join(
        [str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    try:
        path, expected = scored
        rows = [{"x": x, "y": int(y), "key": n} for n, (x, y) in enumerate(zip(X, Y, strict=True))]
        found = ray.data.from_items(rows).map_batches(
            ScoreBatches,
            fn_constructor_args=(str(path),),
            fn_constructor_kwargs={"inputs": "x", "labels": "y", **OPTIONS},
            batch_size=8,
            concurrency=1,
        )
        told = found.take_all()
    finally:
        ray.shutdown()
    check({name: np.array([row[name] for row in told]) for name in told[0]}, expected)
