"""Several machines train as one does; Keras is corrected where it fails, and put back."""

import json
import pathlib
import sys
import types

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow import trainer

from tfuq import distribute
from tfuq._models.workers import from_chief, read_cluster, task_is_chief
from tfuq.callbacks.backup import read_backup
from tfuq.distribute import (
    averages_over_examples,
    find_faults,
    is_chief,
    multi_worker,
    reduces_the_batch,
    without_writers,
)

WORKER = pathlib.Path(__file__).with_name("worker_process.py")
TWO = {"worker": ["10.0.0.1:1", "10.0.0.2:1"]}
KERAS = (trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build)


def in_keras():
    return (trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build)


# --- Training ---------------------------------------------------------------------------------


def run(folder, workers, kills=0, seed=0, extent="brief"):
    """What each worker found, and what the process alone did."""
    done = processes.run(WORKER, folder, workers, kills, seed, extent)
    assert done.returncode == 0, done.stderr
    names = ["single", *map(str, range(workers))]
    single, *found = [dict(np.load(folder / f"worker_{name}.npz")) for name in names]
    return single, found


def assert_agree(single, found):
    """All numbers, but for the losses per output where a batch is divided unevenly.

    There Keras averages the means of the replicas as if they had as many examples each.
    """
    uneven = {name for name in single if name.startswith("rest/") and name.endswith("_loss")}
    names = set(single) - uneven - {"chief"}
    assert len(names) > 30
    for worker in found:
        assert set(worker) == set(single)
        for name in names:
            np.testing.assert_allclose(
                worker[name], single[name], rtol=1e-5, atol=1e-5, err_msg=name
            )


def written(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_only_the_chief_writes(folder, found, *more):
    """Into the folder that all share, and into folders of their own."""
    assert [worker["chief"].tolist() for worker in found[:2]] == [[True] * 2, [False] * 2]
    files = ["backup", "best.keras", *more, "log.csv", "snapshots", "steps.txt"]
    assert written(folder / "files_0") == files
    for index in range(1, len(found)):
        assert written(folder / f"files_{index}") == ["steps.txt"]
    listed = json.loads((folder / "files" / "snapshots" / "snapshots.json").read_text())
    assert len(listed["snapshots"]) == found[1]["snapshots"][0] > 0


@pytest.mark.slow
def test_two_workers_train_as_one_process(tmp_path, counts):
    single, found = run(tmp_path, 2)
    assert_agree(single, found)
    assert_only_the_chief_writes(tmp_path, found)
    counts("workers that agree with one process", 2)


@pytest.mark.slow
def test_four_workers_train_as_one_process(tmp_path, counts):
    single, found = run(tmp_path, 4, extent="whole")
    assert_agree(single, found)
    assert_only_the_chief_writes(tmp_path, found, "board")
    assert [int(worker["keras/begins"]) for worker in found] == [2] * 4
    assert written(tmp_path / "files") == ["snapshots"]  # Keras removes its backup in the end
    counts("workers that agree with one process", 4)


@pytest.mark.slow
@pytest.mark.parametrize("workers, kills", [(2, 3), (4, 2)])
def test_workers_that_are_killed_go_on(tmp_path, workers, kills, counts):
    """The chief's backup serves all: no other has a file."""
    single, found = run(tmp_path, workers, kills, seed=workers, extent="whole")
    done = json.loads((tmp_path / "kills.json").read_text())
    assert len(done) == kills
    begins = {int(worker.pop("begins")) for worker in found}
    assert single.pop("begins") == 0 and begins == {kills}  # an epoch is kept each time
    for worker in (single, *found):  # of the last start alone
        worker["snapshots"] = worker["snapshots"][:1]  # on the disk that all share
        for name in [name for name in worker if name.startswith("history/")]:
            worker[name] = worker[name][-1:]
    assert_agree(single, found)
    assert_only_the_chief_writes(tmp_path, found, "board")
    counts("kills of a worker", kills)
    print(f"{workers} workers, {kills} kills (worker, others that failed by themselves): {done}")


# --- Corrections ------------------------------------------------------------------------------


def test_keras_is_corrected_once_and_put_back():
    @multi_worker()
    def decorated():
        return in_keras()

    assert in_keras() == KERAS
    with multi_worker() as outer:
        inside = in_keras()
        assert inside[0] is not KERAS[0] and inside[1] is not KERAS[1]
        with multi_worker() as inner:
            assert in_keras() == inside and inner is outer
        assert in_keras() == inside
    assert in_keras() == KERAS
    assert decorated() == decorated() or in_keras() == KERAS
    with pytest.raises(KeyError), multi_worker():
        raise KeyError
    assert in_keras() == KERAS


def test_corrections_stay_until_the_last_thread_leaves():
    first, second = multi_worker(), multi_worker()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert in_keras() != KERAS
    second.__exit__(None, None, None)
    assert in_keras() == KERAS


def test_other_strategies_are_not_touched():
    calls = []

    def original(values, strategy, reduction):
        calls.append((values, strategy, reduction))
        return "untouched"

    corrected = distribute.corrected_reduce(original)
    strategy = tf.distribute.get_strategy()
    assert corrected({"loss": 1.0}, strategy, "auto") == "untouched"
    assert calls == [({"loss": 1.0}, strategy, "auto")]


def test_reduction_is_that_over_replicas():
    probe = distribute._Probe()
    corrected = distribute.corrected_reduce(None)
    values = {"loss": np.float32(2), "each": np.ones(3)}
    assert corrected(values, probe, "auto")["loss"] == 2
    assert corrected(values, probe, "sum")["loss"] == 2
    assert probe.axes == [None] * 4


def mended(reduce=True, build=True):
    """A trainer whose functions do as the corrections do."""

    def reduce_per_replica(values, strategy, reduction):
        return strategy.reduce("MEAN", values, None if reduce else 0)

    class TensorFlowTrainer:
        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            for _, _, batches in iterator:
                batch = next(batches)
            strategy = self.distribute_strategy
            first = [strategy.experimental_local_results(v)[0] for v in batch]
            self._symbolic_build(data_batch=first if build else batch)

    return types.SimpleNamespace(
        reduce_per_replica=reduce_per_replica, TensorFlowTrainer=TensorFlowTrainer
    )


def test_faults_are_found_by_what_keras_does():
    assert averages_over_examples(trainer) and reduces_the_batch(trainer)
    both = ["reduce_per_replica", "_maybe_symbolic_build"]
    assert find_faults(trainer, keras.__version__) == both
    for version in ("3.15.0", "3.16.0", "4.0"):
        assert find_faults(mended(), version) == []
    assert find_faults(mended(reduce=False), "3.15.7") == ["reduce_per_replica"]
    assert find_faults(mended(build=False), "3.15.7") == ["_maybe_symbolic_build"]


def test_unknown_versions_are_refused(monkeypatch):
    odd = types.SimpleNamespace(reduce_per_replica=None, TensorFlowTrainer=None)
    for module, version in ((trainer, "3.16.0"), (mended(reduce=False), "4.0"), (odd, "3.15.1")):
        with pytest.raises(RuntimeError, match=rf"3\.10, .*3\.15.*Received: Keras {version}"):
            find_faults(module, version)
    monkeypatch.setattr(keras, "__version__", "9.9.9")
    with pytest.raises(RuntimeError, match=r"Received: Keras 9\.9\.9"), multi_worker():
        pass
    assert in_keras() == KERAS


def test_keras_without_this_trainer_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras.src.backend.tensorflow.trainer", None)
    monkeypatch.delattr("keras.src.backend.tensorflow.trainer")
    with pytest.raises(RuntimeError, match=r"corrects Keras 3\.10"), multi_worker():
        pass


def test_callbacks_that_write_stay_with_the_chief(tmp_path):
    class Own(keras.callbacks.ModelCheckpoint):
        pass

    stop = keras.callbacks.EarlyStopping()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    writers = [keras.callbacks.CSVLogger(tmp_path / "log"), Own(tmp_path / "a.keras")]
    kept = without_writers([*writers, stop, backup])
    assert kept[0] is stop and kept[1].backup is backup and len(kept) == 2


# --- Who they are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, expected",
    [
        ("{", "be JSON"),
        ("[]", "be a JSON object"),
        ({"cluster": ["a:1"]}, "list of addresses"),
        ({"cluster": {"worker": "a:1"}}, "list of addresses"),
        ({"cluster": {"worker": []}}, "list of addresses"),
        ({"cluster": {"ps": ["a:1"]}}, "addresses of all workers"),
        ({"cluster": {"chief": ["a:1", "b:1"]}}, "one chief"),
        ({"cluster": {"worker": ["a"]}}, "'host:port'"),
        ({"cluster": {"worker": ["a:1", "a:1"]}}, "address of its own"),
        ({"cluster": TWO}, "under 'task'"),
        ({"cluster": TWO, "task": {"type": "worker"}}, "under 'task'"),
        ({"cluster": TWO, "task": {"type": "chief", "index": 0}}, "type of the cluster"),
        ({"cluster": TWO, "task": {"type": "worker", "index": 2}}, "index from 0 to 1"),
        ({"cluster": TWO, "task": {"type": "worker", "index": -1}}, "index from 0 to 1"),
        ({"cluster": TWO, "task": {"type": "worker", "index": None}}, "index from 0 to 1"),
    ],
)
def test_bad_clusters_are_refused(monkeypatch, config, expected):
    text = config if isinstance(config, str) else json.dumps(config)
    monkeypatch.setenv("TF_CONFIG", text)
    for call in (is_chief, multi_worker().__enter__):
        with pytest.raises(ValueError, match=r"`TF_CONFIG` must .*Received: ") as caught:
            call()
        assert expected in str(caught.value)
    assert in_keras() == KERAS


def test_the_chief_is_one(monkeypatch):
    for text in ("", "{}", '{"task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        assert read_cluster() is None and is_chief()
        with multi_worker() as strategy:
            assert strategy.num_replicas_in_sync == 1
    with_chief = {"chief": ["a:1"], "worker": ["b:1"]}
    tasks = [(TWO, "worker", 0), (TWO, "worker", 1)]
    tasks += [(with_chief, "chief", 0), (with_chief, "worker", 0)]
    for (cluster, kind, index), expected in zip(tasks, (True, False) * 2, strict=True):
        config = {"cluster": cluster, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert is_chief() == task_is_chief(*read_cluster()) == expected
        assert is_chief(tf.distribute.get_strategy())  # which trains in one process


def test_one_process_has_its_own_data():
    strategy = tf.distribute.get_strategy()
    assert from_chief(strategy, b"data") == b"data" and from_chief(strategy, None) is None


def test_bad_arguments_are_refused():
    for call in (is_chief, lambda value: multi_worker(value).__enter__()):
        with pytest.raises(ValueError, match=r"`strategy` must .*Received: strategy='two'"):
            call("two")


def test_a_backup_is_read_from_what_was_sent(tmp_path):
    with pytest.raises(ValueError, match="`backup_dir` must"):
        read_backup(tmp_path / "none", [], b"no archive")
