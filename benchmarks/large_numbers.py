"""Time and memory of fits to 10^7 predicted numbers: rules and conformal intervals.

    python benchmarks/large_numbers.py            # all cases, at full size
    python benchmarks/large_numbers.py --rows 0.01  # a hundredth of the rows

How is in `large.py`. The arrays are what is fitted to: parameters of normals in float32, as
networks say them, and labels in float64, 16 bytes a row. `large_numbers.json` holds all figures.
"""

import large
import numpy as np


def numbers(tfuq, rows):
    rng = np.random.default_rng(0)
    params = np.empty((1, rows, 2), "float32")
    params[0, :, 0] = rng.normal(size=rows)
    params[0, :, 1] = rng.uniform(0.1, 3, size=rows)
    y = params[0, :, 0] + params[0, :, 1] * rng.normal(size=rows)
    return tfuq.predictive.RegressionUncertainty(params, "normal"), y


def rule(tfuq, rows, **options):
    found, y = numbers(tfuq, rows)

    def fitted():
        try:
            rule = tfuq.selective.RejectionRule.fit(found, y, tolerance=1.0, **options)
            return rule.threshold
        except tfuq.selective.UnattainableRisk as refusal:
            return refusal.best_risk

    return (found.params, y), fitted


def intervals(tfuq, rows, *, groups=None, **options):
    found, y = numbers(tfuq, rows)
    names = None if groups is None else np.arange(rows) % groups

    def fitted():
        fit = tfuq.selective.ConformalRegressor.fit
        return float(np.ravel(fit(found, y, groups=names, **options).threshold)[0])

    return (found.params, y), fitted


CASES = {
    "RejectionRule, target reached": (rule, 1.0, {"target_risk": 0.1}),
    "RejectionRule, target out of reach": (rule, 1.0, {"target_risk": 1e-6}),
    "RejectionRule, target_coverage": (rule, 1.0, {"target_coverage": 0.8}),
    "ConformalRegressor, split": (intervals, 1.0, {"method": "split"}),
    "ConformalRegressor, normalized": (intervals, 1.0, {"method": "normalized"}),
    "ConformalRegressor, cqr": (intervals, 1.0, {"method": "cqr"}),
    "ConformalRegressor, asymmetric": (
        intervals,
        1.0,
        {"method": "normalized", "asymmetric": True},
    ),
    "ConformalRegressor, 5 groups": (intervals, 1.0, {"method": "split", "groups": 5}),
}


if __name__ == "__main__":
    large.main(__file__, __doc__, CASES)
