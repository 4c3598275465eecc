"""Seconds that `import tfuq` takes beside TensorFlow and Keras, with and without TFP.

    make bench-import-time

Three kinds of fresh process take turns: TensorFlow and Keras alone; these and tfuq; these, tfuq
and `tensorflow_probability.distributions`, which `import tfuq` loaded itself before. `--before
FOLDER` takes `import tfuq` from another working tree in the place of the third. Figures are medians
over the rounds, of the time on the clock and of the processor's, which a busy machine disturbs
less; what tfuq adds is the median of the differences within a round. On the processor it must stay
under 0.5 s. Compiled bytecode is kept for the run, as an installation has it: compiling tfuq's own
sources, where Python writes no bytecode, takes three times as long as running them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

PEERS = "import tensorflow, keras"
EAGER = "from tensorflow_probability import distributions"
TIMED = """
import json, time
clock, processor = time.perf_counter(), time.process_time()
{statement}
print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]))
"""
LIMIT = 0.5


def seconds(statement, bytecode, folder=None):
    """Time on the clock and the processor of `statement` in a new process; tfuq's is `folder`."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement=statement)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout)


def measure(rounds, before, bytecode):
    """`[clock, processor]` of each round, by kind of process."""
    kinds = {
        "peers": (PEERS,),
        "after": (f"{PEERS}, tfuq",),
        "before": (f"{PEERS}, tfuq", before) if before else (f"{PEERS}, tfuq; {EAGER}",),
    }
    for statement, *folder in kinds.values():  # the first run reads from the disk, and compiles
        seconds(statement, bytecode, *folder)
    runs = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (statement, *folder) in kinds.items():
            runs[kind].append(seconds(statement, bytecode, *folder))
    return runs


def summary(runs):
    """Medians over the rounds, in seconds, and what tfuq adds to its peers."""
    found = {}
    for column, unit in enumerate(("clock", "processor")):
        times = {kind: [row[column] for row in rows] for kind, rows in runs.items()}
        found[unit] = {kind: statistics.median(values) for kind, values in times.items()}
        for kind in ("after", "before"):
            pairs = zip(times[kind], times["peers"], strict=True)
            found[unit][f"added {kind}"] = statistics.median(a - b for a, b in pairs)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=pathlib.Path, help="a working tree of another commit")
    parser.add_argument("--json", type=pathlib.Path, help="where all times are written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfuq_bytecode_") as bytecode:
        runs = measure(arguments.rounds, arguments.before, bytecode)
    figures = summary(runs)
    for unit, values in figures.items():
        print(f"{unit}: " + ", ".join(f"{name} {value:.2f} s" for name, value in values.items()))
    if arguments.json:
        content = {"seconds": figures, "runs": runs}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if figures["processor"]["added after"] > LIMIT:
        raise SystemExit(f"import tfuq adds more than {LIMIT} s")


if __name__ == "__main__":
    main()
