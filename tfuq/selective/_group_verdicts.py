"""Verdicts on a promise in each group, by tests that are corrected for their number."""

from __future__ import annotations

import numpy as np
from scipy import stats

from tfuq._math.bounds import binomial_p_value, hoeffding_bentkus_p_value

ALL, NOTHING = "all", "nothing accepted"
CORRECTIONS = ("holm", "bonferroni", None)


def verdicts_of(parts, target_risk, confidence, correction):
    """A verdict for each part, the first by itself, the others with the correction."""
    if target_risk is None:
        return ["no target"] * len(parts)
    p_values = np.array([both_p_values(part, target_risk) for part in parts])
    tested = np.flatnonzero([part.at_risk.any() for part in parts[1:]]) + 1
    for column in p_values.T:
        column[tested] = corrected(column[tested], correction)
    passed = p_values <= 1 - confidence + 1e-12
    return [
        "fails" if fails else "holds" if holds else "not shown" if part.at_risk.any() else NOTHING
        for part, (fails, holds) in zip(parts, passed, strict=True)
    ]


def both_p_values(part, risk):
    """Of the hypotheses that the risk is at most `risk`, and that it is at least that."""
    if not part.at_risk.any():
        return 1.0, 1.0
    losses = part.loss[part.at_risk]
    if part.loss.shape[1] == 1 and np.isin(losses, (0, 1)).all():
        errors, count = losses.sum(), len(losses)
        return stats.binom.sf(errors - 1, count, risk), binomial_p_value(errors, count, risk)
    used = part.at_risk.any(axis=1)
    above = np.where(part.at_risk, part.loss - risk, 0)[used].mean()  # at most 0 if within `risk`
    count = np.count_nonzero(used)
    return (
        float(hoeffding_bentkus_p_value(1 - risk - above, count, 1 - risk)),
        float(hoeffding_bentkus_p_value(above + risk, count, risk)),
    )


def corrected(p_values, correction):
    """p-values that hold for all groups together (Holm 1979, or Bonferroni)."""
    count = len(p_values)
    if correction is None or not count:
        return p_values
    if correction == "bonferroni":
        return np.minimum(p_values * count, 1)
    order = np.argsort(p_values)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1))
    return np.minimum(adjusted, 1)
