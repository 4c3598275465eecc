"""Workers that train one model on several machines: their cluster, and messages between them."""

import json
import os

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

TYPES = ("chief", "worker", "evaluator")

# --- Who they are -----------------------------------------------------------------------------


def read_cluster():
    """`(cluster, type, index)` as the environment variable TF_CONFIG has them; None without it.

    Raises ValueError if it does not say which machines there are, and which of them this is.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise _config_error(f"be JSON ({error})", text) from error
    if not isinstance(config, dict):
        raise _config_error("be a JSON object", text)
    if not config.get("cluster"):
        return None  # TensorFlow, too, takes that for one machine
    cluster, task = config["cluster"], config.get("task")
    _check_cluster(cluster, text)
    _check_task(task, cluster, text)
    return cluster, task["type"], int(task["index"])


def _check_cluster(cluster, text):
    lists = cluster.values() if isinstance(cluster, dict) else [None]
    if not all(isinstance(addresses, list) and addresses for addresses in lists):
        raise _config_error("give under 'cluster' a list of addresses for each type of task", text)
    if not {"chief", "worker"} & set(cluster):
        raise _config_error("name the addresses of all workers under 'cluster'", text)
    if len(cluster.get("chief", [])) > 1:
        raise _config_error("name one chief at most", text)
    every = [address for addresses in lists for address in addresses]
    if not all(isinstance(address, str) and ":" in address for address in every):
        raise _config_error("give addresses as 'host:port'", text)
    if len(set(every)) < len(every):
        raise _config_error("give each task an address of its own", text)


def _check_task(task, cluster, text):
    if not isinstance(task, dict) or not {"type", "index"} <= set(task):
        raise _config_error("say under 'task' the 'type' and 'index' of this process", text)
    if task["type"] not in TYPES or task["type"] not in cluster:
        raise _config_error(f"give the task a type of the cluster, one of {TYPES}", text)
    count, index = len(cluster[task["type"]]), str(task["index"])
    if not index.isdecimal() or int(index) >= count:
        raise _config_error(f"give the task an index from 0 to {count - 1}", text)


def _config_error(expected, text):
    return ValueError(f"Environment variable `TF_CONFIG` must {expected}. Received: {text}")


def spans_machines(strategy):
    """Whether `strategy` trains one model in several processes."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def is_chief_of(strategy):
    """Whether this process writes the files of what trains under `strategy`."""
    if not spans_machines(strategy):
        return True
    return task_is_chief(_cluster_of(strategy), *_task_of(strategy))


def task_is_chief(cluster, task_type, index):
    """The chief, or, of a cluster that names none, the first worker."""
    return task_type == "chief" or ("chief" not in cluster and task_type == "worker" and index == 0)


def _cluster_of(strategy):
    return strategy.cluster_resolver.cluster_spec().as_dict()


def _task_of(strategy):
    resolver = strategy.cluster_resolver
    return resolver.task_type, resolver.task_id


# --- What one tells the others ----------------------------------------------------------------


def from_chief(strategy, data):
    """The bytes `data` of the chief, in every process; None if the chief has None.

    All processes must call it at the same place. What the others pass is not looked at.
    """
    if not spans_machines(strategy):
        return data
    if not is_chief_of(strategy):
        data = None
    sizes = np.array([0, 0] if data is None else [1, len(data)], "int32")
    is_there, size = _sum(strategy, sizes)
    if not is_there:
        return None
    words = np.zeros(-(-size // 4), "int32")
    if data is not None:
        words.view("uint8")[:size] = np.frombuffer(data, "uint8")
    return _sum(strategy, words).tobytes()[:size]


def _sum(strategy, array):
    """The sum of what each process has; a process with several devices counts once."""
    values = [array, *[np.zeros_like(array)] * (len(strategy.extended.worker_devices) - 1)]
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: values[context.replica_id_in_sync_group % len(values)]
    )

    @tf.function
    def summed():
        return strategy.reduce("SUM", parts, axis=None)

    return keras.ops.convert_to_numpy(summed())


def joined():
    """Whether this process belongs to a cluster already, by a strategy that others made."""
    return getattr(context.context(), "_collective_ops_server_def", None) is not None
