"""Names of the figures of a rejection evaluator, which of them go into logs, and its table."""

import numpy as np

from tfuq._arguments import check_fraction, shown

FIELDS = ("accuracy", "coverage", "rejection_rate", "risk", "ece")
FEW = ("accuracy", "coverage")  # that go into logs by default
TITLES = ("accuracy", "coverage", "rejected", "  risk", "   ECE")


def check_thresholds(thresholds):
    """Raises ValueError unless `thresholds` are distinct numbers in [0, 1], at least one."""
    if isinstance(thresholds, str) or not np.iterable(thresholds) or len(thresholds) == 0:
        raise ValueError(
            "Argument `thresholds` must be a sequence of at least one number in [0, 1]. "
            f"Received: thresholds={shown(thresholds)}"
        )
    for threshold in thresholds:
        check_fraction("thresholds", threshold)
    if len({f"{threshold:g}" for threshold in thresholds}) < len(thresholds):
        raise ValueError(
            "Argument `thresholds` must hold numbers that differ in their first six digits. "
            f"Received: thresholds={shown(thresholds)}"
        )


def log_names(thresholds, prefix):
    """`val_accuracy_at_0.7` and so on, by field and then by threshold."""
    return [f"{prefix}{field}_at_{threshold:g}" for field in FIELDS for threshold in thresholds]


def logged_names(log, thresholds, prefix):
    """The names of the argument `log`: `"few"`, `"all"` or names."""
    known = log_names(thresholds, prefix)
    if isinstance(log, str) and log == "all":
        return known
    if isinstance(log, str) and log == "few":
        middle = thresholds[len(thresholds) // 2]
        return [f"{prefix}{field}_at_{middle:g}" for field in FEW]
    if isinstance(log, str) or not np.iterable(log) or not set(log) <= set(known):
        raise ValueError(
            f"Argument `log` must be 'few', 'all' or names such as {shown(known[0])}, "
            "which go by the "
            f"fields {', '.join(FIELDS)} and the thresholds. Received: log={shown(log)}"
        )
    return list(log)


def format_table(thresholds, table):
    """The table as aligned text, one line per threshold; "-" is what nothing accepted leaves."""
    lines = [" | ".join(("threshold", *TITLES))]
    lines.append("-+-".join("-" * len(title) for title in ("threshold", *TITLES)))
    for i, threshold in enumerate(thresholds):
        values = [table[field][i] for field in FIELDS]
        cells = ["-" if np.isnan(value) else f"{value:.4f}" for value in values]
        cells = [f"{cell:>{len(title)}}" for cell, title in zip(cells, TITLES, strict=True)]
        lines.append(" | ".join((f"{threshold:>9g}", *cells)))
    nothing = [f"{thresholds[i]:g}" for i in np.flatnonzero(table["coverage"] == 0)]
    if nothing:
        lines.append(f"-: nothing was accepted at {', '.join(nothing)}")
    return "\n".join(lines)
