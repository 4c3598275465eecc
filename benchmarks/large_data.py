"""Time and memory of metrics, fits and the report for 10^6 to 10^7 rows.

    python benchmarks/large_data.py            # all cases, at full size
    python benchmarks/large_data.py --rows 0.01  # a hundredth of the rows

How is in `large.py`; the array is the one that the case is about. `large_data.json` holds all
figures.
"""

import large
import numpy as np


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
    return (probs,), lambda: tfuq.metrics.expected_calibration_error(labels, probs)


def temperature(tfuq, rows):
    probs, labels = predictions(rows)
    return (probs,), lambda: tfuq.selective.TemperatureScaling().fit(probs, labels).temperature


def detection(tfuq, rows):
    rng = np.random.default_rng(0)
    outside = rng.random(rows) < 0.4
    score = rng.normal(size=rows) + outside
    return (score,), lambda: tfuq.metrics.auroc(outside, score)


def rule(tfuq, rows, target):
    rng = np.random.default_rng(0)
    probs = 0.5 + 0.5 * rng.random(rows)
    labels = (rng.random(rows) < probs**0.5).astype(int)

    def fitted():
        try:
            return tfuq.selective.RejectionRule.fit(probs, labels, target_risk=target).threshold
        except tfuq.selective.UnattainableRisk as refusal:
            return refusal.best_risk

    return (probs,), fitted


def report(tfuq, rows):
    probs, labels = predictions(rows)
    return (probs,), lambda: tfuq.report.html((probs, labels), "/dev/shm/tfuq_report.html").name


CASES = {
    "ECE, 10 classes": (calibration_error, 1.0, {}),
    "TemperatureScaling, 10 classes": (temperature, 1.0, {}),
    "auroc": (detection, 1.0, {}),
    "RejectionRule, target reached": (rule, 0.1, {"target": 0.2}),
    "RejectionRule, target out of reach": (rule, 0.1, {"target": 0.0001}),
    "RejectionRule, target reached, all rows": (rule, 1.0, {"target": 0.2}),
    "RejectionRule, out of reach, all rows": (rule, 1.0, {"target": 0.0001}),
    "report.html, 10 classes": (report, 0.1, {}),
}


if __name__ == "__main__":
    large.main(__file__, __doc__, CASES)
