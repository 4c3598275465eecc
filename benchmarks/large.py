"""Cases of large arrays, each in a process of its own: time, memory, a table and a file.

A case is a function `make(tfuq, rows, **options)` that returns arrays and a call, a share of the
full size, and options. Its process makes the data, runs one plain NumPy pass over them (the largest
entry of each row, and its mean), then the call. Memory is how much the process grew at most,
looked at every 5 ms, as a multiple of the arrays; time is in seconds (of the clock, and of the
processor on all cores, which other work does not lengthen much) and as a multiple of the plain
pass. A small case goes first, for what happens once.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import threading
import time

FULL = 10**7
LIMITS = {"times_array": 3.0, "seconds": 10.0}


class Memory(threading.Thread):
    """The largest memory of this process while the thread runs, beyond that at its start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.first = self.most = self.now()
        self.ended = threading.Event()

    @staticmethod
    def now():
        """Resident bytes."""
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def run(self):
        while not self.ended.wait(0.005):
            self.most = max(self.most, self.now())

    def growth(self):
        """Bytes, after which nothing is watched any more."""
        self.ended.set()
        return max(self.most, self.now()) - self.first


def measured(name, case, rows):
    """One case, in this process."""
    import tfuq

    make, share, options = case
    make(tfuq, 2000, **options)[1]()
    arrays, call = make(tfuq, max(1000, int(rows * share)), **options)
    size = sum(array.nbytes for array in arrays)
    start = time.perf_counter()
    for array in arrays:
        (array if array.ndim == 1 else array.max(axis=-1)).mean()
    plain = time.perf_counter() - start
    memory = Memory()
    memory.start()
    start, of_processor = time.perf_counter(), time.process_time()
    answer = call()
    seconds = time.perf_counter() - start
    of_processor = time.process_time() - of_processor
    return {
        "case": name,
        "rows": max(1000, int(rows * share)),
        "array_mb": size / 2**20,
        "seconds": seconds,
        "processor_seconds": of_processor,
        "times_pass": seconds / plain,
        "times_array": memory.growth() / size,
        "answer": answer,
    }


def main(script, description, cases):
    """The command line of `script`, which measures `cases`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--case", choices=cases, help="one case, in this process")
    parser.add_argument("--output", default=str(pathlib.Path(script).with_suffix(".json")))
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(arguments.case, cases[arguments.case], FULL * arguments.rows)))
        return
    found = []
    for name in cases:
        command = [sys.executable, script, "--case", name, "--rows", str(arguments.rows)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        found.append(row)
        print(
            f"| {name} | {row['rows']:,} | {row['seconds']:.1f} | "
            f"{row['processor_seconds']:.1f} | {row['times_pass']:.0f} | "
            f"{row['times_array']:.1f} |",
            flush=True,
        )
    text = json.dumps({"limits": LIMITS, "cases": found}, indent=1)
    pathlib.Path(arguments.output).write_text(f"{text}\n")
