"""Peak memory of the rows of `benchmarks/methods.py`, each measured in a process of its own.

    python -m evidence.memory FOLDER     # what `evidence/costs.py` starts, in this folder

FOLDER holds `data.npz` (x, y of training rows, validation rows, rows to ask) and `plans.json`
({row: [plan, folder of its export]}). This process imports TensorFlow and computes nothing; a fork
of it trains a row, another loads the row's export and asks it. What is printed is JSON: MB that
the fork had at its most, less those that it began with.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np


def peak_of(work):
    """MB at the most of a fork that does `work`, beyond those at its start; None if it fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            work()
            found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(write, str(found * 1024 / 1e6).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return round(float(said), 1) if status == 0 else None


def of_rows(data, plans):
    """{row: {"training": MB, "answers": MB}}."""
    import tensorflow as tf

    from evidence import costs, rows

    task = costs.Rows(data["x"], data["y"], (data["x_validation"], data["y_validation"]))

    def ask(path):
        served = tf.saved_model.load(path)
        served.serve(tf.constant(data["asked"]))

    found = {}
    for row, (plan, path) in plans.items():
        found[row] = {
            "training": peak_of(
                lambda row=row, plan=plan: costs.network(row, task, rows.Plan(*plan))
            ),
            "answers": peak_of(lambda path=path: ask(path)),
        }
    return found


def measured(task, asked, plans, folder):
    """`of_rows` in a process that has computed nothing yet."""
    x_validation, y_validation = task.validation
    np.savez(
        folder / "data.npz", x=task.x, y=task.y, x_validation=x_validation,
        y_validation=y_validation, asked=asked,
    )  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    here = pathlib.Path(__file__).resolve().parents[1]
    options = {"cwd": here, "stdout": subprocess.PIPE, "check": True, "text": True}
    said = subprocess.run([sys.executable, "-m", "evidence.memory", str(folder)], **options).stdout
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    given = pathlib.Path(sys.argv[1])
    with np.load(given / "data.npz") as file:
        arrays = {name: file[name] for name in file.files}
    print(json.dumps(of_rows(arrays, json.loads((given / "plans.json").read_text("utf-8")))))
