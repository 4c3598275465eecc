"""Time and memory of metrics, fits and the report for 10^6 to 10^7 rows.

    python benchmarks/large_data.py            # all cases, at full size
    python benchmarks/large_data.py --rows 0.01  # a hundredth of the rows

Each case runs in a process of its own, which makes its data, runs one plain NumPy pass over them
(the largest entry of each row, and its mean) and then the case. Memory is how much the process grew
at most, looked at every 5 ms, as a multiple of the array that the case is about; time is in seconds
(of the clock, and of the processor on all cores, which other work does not lengthen much) and as a
multiple of the plain pass in the same process. A small case goes first, for what happens
once. `large_data.json` holds all figures.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import threading
import time

import numpy as np

FULL = 10**7
LIMITS = {"times_array": 3.0, "seconds": 10.0}


def predictions(rows, classes=10):
    rng = np.random.default_rng(0)
    probs = rng.random((rows, classes))
    probs **= 6
    probs /= probs.sum(axis=-1, keepdims=True)
    right = rng.random(rows) < probs.max(axis=-1)
    labels = np.where(right, probs.argmax(axis=-1), rng.integers(classes, size=rows))
    return probs, labels


def calibration_error(tfuq, rows):
    probs, labels = predictions(rows)
    return probs, lambda: tfuq.metrics.expected_calibration_error(labels, probs)


def temperature(tfuq, rows):
    probs, labels = predictions(rows)
    return probs, lambda: tfuq.selective.TemperatureScaling().fit(probs, labels).temperature


def detection(tfuq, rows):
    rng = np.random.default_rng(0)
    outside = rng.random(rows) < 0.4
    score = rng.normal(size=rows) + outside
    return score, lambda: tfuq.metrics.auroc(outside, score)


def rule(tfuq, rows, target):
    rng = np.random.default_rng(0)
    probs = 0.5 + 0.5 * rng.random(rows)
    labels = (rng.random(rows) < probs**0.5).astype(int)

    def fitted():
        try:
            return tfuq.selective.RejectionRule.fit(probs, labels, target_risk=target).threshold
        except tfuq.selective.UnattainableRisk as refusal:
            return refusal.best_risk

    return probs, fitted


def report(tfuq, rows):
    probs, labels = predictions(rows)
    return probs, lambda: tfuq.report.html((probs, labels), "/dev/shm/tfuq_report.html").name


CASES = {
    "ECE, 10 classes": (calibration_error, 1.0, {}),
    "TemperatureScaling, 10 classes": (temperature, 1.0, {}),
    "auroc": (detection, 1.0, {}),
    "RejectionRule, target reached": (rule, 0.1, {"target": 0.2}),
    "RejectionRule, target out of reach": (rule, 0.1, {"target": 0.0001}),
    "RejectionRule, out of reach, all rows": (rule, 1.0, {"target": 0.0001}),
    "report.html, 10 classes": (report, 0.1, {}),
}


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


def measured(name, rows):
    """One case, in this process."""
    import tfuq

    make, share, options = CASES[name]
    make(tfuq, 2000, **options)[1]()
    array, call = make(tfuq, max(1000, int(rows * share)), **options)
    start = time.perf_counter()
    (array if array.ndim == 1 else array.max(axis=-1)).mean()
    plain = time.perf_counter() - start
    memory = Memory()
    memory.start()
    start, of_processor = time.perf_counter(), time.process_time()
    answer = call()
    seconds = time.perf_counter() - start
    of_processor = time.process_time() - of_processor
    growth = memory.growth()
    return {
        "case": name,
        "rows": len(array),
        "array_mb": array.nbytes / 2**20,
        "seconds": seconds,
        "processor_seconds": of_processor,
        "times_pass": seconds / plain,
        "times_array": growth / array.nbytes,
        "answer": answer,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--case", choices=CASES, help="one case, in this process")
    parser.add_argument("--output", default=str(pathlib.Path(__file__).with_suffix(".json")))
    arguments = parser.parse_args()
    rows = int(FULL * arguments.rows)
    if arguments.case:
        print(json.dumps(measured(arguments.case, rows)))
        return
    found = []
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--rows", str(arguments.rows)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        row = found[-1]
        print(
            f"| {name} | {row['rows']:,} | {row['seconds']:.1f} | "
            f"{row['processor_seconds']:.1f} | {row['times_pass']:.0f} | "
            f"{row['times_array']:.1f} |",
            flush=True,
        )
    text = json.dumps({"limits": LIMITS, "cases": found}, indent=1)
    pathlib.Path(arguments.output).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
