"""Time and memory of fits to 10^7 predicted numbers: rules and conformal intervals.

    python benchmarks/large_numbers.py            # all cases, at full size
    python benchmarks/large_numbers.py --rows 0.01  # a hundredth of the rows

As in `large_data.py` each case runs in a process of its own, memory is how much the process grew at
most, a small case goes first. The array is what is fitted to: parameters of normals in float32, as
networks say them, and labels in float64, 16 bytes a row. `large_numbers.json` holds all figures.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
from large_data import FULL, LIMITS, Memory


def numbers(tfuq, rows):
    rng = np.random.default_rng(0)
    params = np.empty((1, rows, 2), "float32")
    params[0, :, 0] = rng.normal(size=rows)
    params[0, :, 1] = rng.uniform(0.1, 3, size=rows)
    y = params[0, :, 0] + params[0, :, 1] * rng.normal(size=rows)
    return tfuq.predictive.RegressionUncertainty(params, "normal"), y


def rule(tfuq, found, y, **options):
    fit = tfuq.selective.RejectionRule.fit
    try:
        return fit(found, y, tolerance=1.0, **options).threshold
    except tfuq.selective.UnattainableRisk as refusal:
        return refusal.best_risk


def intervals(tfuq, found, y, **options):
    return np.ravel(tfuq.selective.ConformalRegressor.fit(found, y, **options).threshold)[0]


CASES = {
    "RejectionRule, target reached": (rule, {"target_risk": 0.1}),
    "RejectionRule, target out of reach": (rule, {"target_risk": 1e-6}),
    "RejectionRule, target_coverage": (rule, {"target_coverage": 0.8}),
    "ConformalRegressor, split": (intervals, {"method": "split"}),
    "ConformalRegressor, normalized": (intervals, {"method": "normalized"}),
    "ConformalRegressor, cqr": (intervals, {"method": "cqr"}),
    "ConformalRegressor, asymmetric": (intervals, {"method": "normalized", "asymmetric": True}),
}


def measured(name, rows):
    """One case, in this process."""
    import tfuq

    fit, options = CASES[name]
    fit(tfuq, *numbers(tfuq, 2000), **options)
    found, y = numbers(tfuq, rows)
    size = found.params.nbytes + y.nbytes
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    answer = fit(tfuq, found, y, **options)
    seconds = time.perf_counter() - start
    return {
        "case": name,
        "rows": rows,
        "array_mb": size / 2**20,
        "seconds": seconds,
        "times_array": memory.growth() / size,
        "answer": float(answer),
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
        row = json.loads(done.stdout.splitlines()[-1])
        found.append(row)
        print(
            f"| {name} | {rows:,} | {row['seconds']:.1f} | {row['times_array']:.1f} |", flush=True
        )
    text = json.dumps({"limits": LIMITS, "cases": found}, indent=1)
    pathlib.Path(arguments.output).write_text(f"{text}\n")


if __name__ == "__main__":
    main()
