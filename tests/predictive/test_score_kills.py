"""Scores of processes that SIGKILL ends, and others resume."""

import pathlib
import random
import shutil
import signal
import time

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from tfuq.layers import MCDropout
from tfuq.predictive import read_scores, score_dataset

SCRIPT = pathlib.Path(__file__).with_name("scoring_process.py")
OPTIONS = {"num_samples": 20, "shard_size": 20, "verbose": 0}


def start(model, folder, *arguments):
    return processes.start(SCRIPT, model, folder, *arguments)


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def saved_model(path):
    layers = [keras.layers.Dense(32, "relu"), MCDropout(0.5), keras.layers.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((16,)), *layers])
    model.save(path)
    return model


def digits():
    data = tf.data.Dataset.range(3000).map(
        lambda n: tf.random.stateless_normal((16,), (0, tf.cast(n, "int32")))
    )
    return data.batch(16)


@pytest.mark.slow
def test_one_process_is_killed_and_this_one_resumes(tmp_path, counts):
    model = saved_model(tmp_path / "m.keras")
    # Each file is flushed, and then its folder; shard 6 is the fourteenth file.
    with start(tmp_path / "m.keras", tmp_path / "killed", 27) as killed:
        assert killed.wait(timeout=300) == -signal.SIGKILL
    counts("kills while scoring")
    left = contents(tmp_path / "killed")
    unfinished = [name for name in left if name.startswith(".unfinished-")]
    assert len(unfinished) == 1 and "part-00006.parquet" not in left, sorted(left)
    with pytest.raises(ValueError, match="are scored"):
        read_scores(tmp_path / "killed")
    found = score_dataset(model, digits(), tmp_path / "killed", **OPTIONS)
    assert 0 < found.scored < found.examples == 3000
    score_dataset(model, digits(), tmp_path / "whole", **OPTIONS)
    scores = [read_scores(tmp_path / name) for name in ("killed", "whole")]
    for name, values in scores[0].items():  # another process may optimize its graphs otherwise
        np.testing.assert_allclose(values, scores[1][name], atol=1e-6, err_msg=name)
    assert contents(tmp_path / "killed").keys() == contents(tmp_path / "whole").keys()


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_the_same_bytes(tmp_path, counts):
    """The figures: how often, with how many rows each time, and that every file is the same."""
    saved_model(tmp_path / "m.keras")
    with start(tmp_path / "m.keras", tmp_path / "whole") as whole:
        assert whole.stdout.readline() == "ready\n"
        began = time.monotonic()
        assert whole.stdout.readline() == "scored\n"
        seconds = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    chance, kills, rows, attempts = random.Random(0), 0, [], 0
    while kills < 10:
        attempts += 1
        assert attempts < 50
        with start(tmp_path / "m.keras", tmp_path / "killed") as process:
            if work_begins(process, tmp_path / "killed"):
                time.sleep(chance.uniform(0, 0.1) * seconds)
                process.send_signal(signal.SIGKILL)
        shards = len(list((tmp_path / "killed").glob("part-*")))
        if process.returncode == -signal.SIGKILL and shards < 150:
            kills += 1
            rows.append(20 * shards)
        else:  # it was done before: begin again, so that ten kills meet work
            assert contents(tmp_path / "killed") == expected
            shutil.rmtree(tmp_path / "killed")
    with start(tmp_path / "m.keras", tmp_path / "killed") as last:
        assert last.wait(timeout=600) == 0
    counts("kills while scoring", kills)
    print(f"{kills} kills in {attempts} processes, with so many of 3000 rows: {rows}")
    assert contents(tmp_path / "killed") == expected


def work_begins(process, folder):
    """Waits until the process has written a shard; False if it has ended."""
    before = len(list(folder.glob("part-*")))
    while process.poll() is None:
        if len(list(folder.glob("part-*"))) > before:
            return True
        time.sleep(0.002)
    return False
