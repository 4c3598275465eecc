"""What the rows of `benchmarks/methods.py` cost: an answer, the weights, an exported model."""

import collections
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf

from evidence import features, memory, rows
from tfuq import export
from tfuq.ensembles import DeepEnsemble

ASKED, ROUNDS = 500, 5


def milliseconds(function, examples):
    """CPU time of an example: the least of `ROUNDS` calls after the first."""
    function()
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return 1e3 * min(spent) / examples


def size_of(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


Rows = collections.namedtuple("Rows", ["x", "y", "validation"])  # what a network is trained on


def network(row, data, plan):
    """A model as the row answers with it, hardly trained, and the options of its export."""
    x, y = data.x, data.y
    plan = plan._replace(stages=4 if row == "snapshots" else 2)
    if rows.ROWS[row].kind == "fit":
        return rows.fitted(row, x, y, plan), {}
    if row == "deep ensemble":
        plans = (plan._replace(seed=seed) for seed in range(rows.MEMBERS))
        return DeepEnsemble.from_models([rows.fitted("Dense", x, y, each) for each in plans]), {}
    made = rows.made_of(row, rows.fitted("Dense", x, y, plan), x, y, data.validation)
    return (made[0], {"calibration": made[1]}) if isinstance(made, tuple) else (made, {})


def weights_of(model):
    members = model.members if isinstance(model, DeepEnsemble) else [model]
    return sum(member.count_params() for member in members) * 4 / 1e6


def of_trunk(folder):
    """CPU milliseconds of an image in the network that makes the features."""
    trunk = features.trunk(folder)
    few = np.zeros((32, features.SIZE, features.SIZE, 3), "uint8")
    call = tf.function(lambda images: trunk(images, training=False), autograph=False)
    return milliseconds(lambda: call(tf.constant(few, "float32")), len(few))


def exported(row, model, options, path):
    """Writes the model of a row, as it is asked in the table: with so many draws."""
    sampled = row in ("MC dropout", "VBLL", "VBLL + HET", "fully Bayesian", "IVON")
    if sampled or row.startswith("sparse"):
        options = {**options, "num_samples": rows.DRAWS}
    export.export(model, path, from_logits=True, **options)


def measured(task, plan_of, names, folder):
    """{"trunk": ..., "rows": {row: ms an image, MB of weights, of the SavedModel, of memory}}.

    `folder` is that of the trunk; None if pixels are the features, and there is none.
    """
    trunk_ms = 0.0 if folder is None else of_trunk(folder)
    data = Rows(task.x["train"], task.y["train"], (task.x["validation"], task.y["validation"]))
    asked = np.resize(task.x["test"], (ASKED, task.x["test"].shape[1]))
    x, found, plans = tf.constant(asked), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, row in enumerate(names):
            plan = plan_of("Dense" if rows.ROWS[row].kind != "fit" else row)
            path = pathlib.Path(temporary) / str(number)
            model, options = network(row, data, plan)
            exported(row, model, options, path)
            served = tf.saved_model.load(str(path))
            found[row] = {
                "ms": round(milliseconds(lambda served=served: served.serve(x), ASKED), 6),
                "weights_mb": round(weights_of(model), 3),
                "export_mb": round(size_of(path) / 1e6, 3),
            }
            plans[row] = [list(plan), str(path)]
        peaks = memory.measured(data, asked, plans, pathlib.Path(temporary))
    for row, cost in found.items():
        cost["memory_mb"] = peaks[row]
        print(row, cost, flush=True)
    return {"trunk": {"ms": round(trunk_ms, 4)}, "rows": found}
