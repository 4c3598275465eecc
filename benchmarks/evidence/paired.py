"""Differences of rows on the same examples, for whatever a script measures."""

import numpy as np
import scipy.stats

from evidence import measures

DIGITS = 5


def differences(runs, resampled, counts, comparisons, base, seed=0):
    """{row: {column: [row less `base`, low, high]}}, of intervals that hold for all at once.

    `runs`: {row: [run of a seed, ...]}. `resampled(run, weights)` gives {column: values of the
    resamples, that of all examples first}, where `weights` holds for each part of `counts` how
    often each example is drawn. Seeds are drawn anew, too, the same for both rows; the intervals
    are normal, Bonferroni's for so many `comparisons`: 95 % together.
    """
    rng = np.random.default_rng(seed)
    weights = {
        part: measures.drawn(count, measures.RESAMPLES, rng) for part, count in counts.items()
    }
    seeds = len(runs[base])
    chosen = measures.drawn(seeds, measures.RESAMPLES, rng) / seeds
    width = scipy.stats.norm.isf(0.025 / comparisons)

    def over_seeds(row):
        each = [resampled(run, weights) for run in runs[row]]
        return {k: (np.stack([e[k] for e in each], 1) * chosen).sum(axis=1) for k in each[0]}

    theirs, found = over_seeds(base), {}
    for row in runs:
        if row != base:
            mine = over_seeds(row)
            found[row] = {
                column: [
                    round(float(v), DIGITS) for v in measures.interval(mine[column] - values, width)
                ]
                for column, values in theirs.items()
            }
    return found


def told(difference, digits, more_is_better):
    """A difference with its interval, and a + or − where that leaves out 0."""
    mean, low, high = difference
    sign = "" if low <= 0 <= high else " +" if (low > 0) == more_is_better else " −"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{sign}"
