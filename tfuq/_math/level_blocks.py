"""Tables of two classes ranked by a score, a few levels at a time, for examples that are many."""

import itertools

import numpy as np

LEVELS = 2**18  # examples whose levels are counted at once


def class_sums(outside, weight):
    """Weights of both classes, `(2,)`."""
    if weight is None:
        of_all, beyond = outside.size, np.count_nonzero(outside)
    else:
        of_all, beyond = weight.sum(dtype="float64"), weight.sum(where=outside, dtype="float64")
    return np.array([of_all - beyond, beyond], "float64")


def level_blocks(order, outside, y_score, weight, is_downward):
    """Tables `(levels, 2)` of a few levels of score at a time, so that no table of all exists.

    Args:
        order: Numbers of the examples by score, from the lowest up.
    """
    for first, end in _cuts(order, y_score, is_downward):
        rows = order[first:end]
        scores = y_score[rows]
        level = np.append(0, np.cumsum(scores[1:] != scores[:-1]))
        cell = 2 * level + outside[rows]
        some = None if weight is None else weight[rows]
        counts = np.bincount(cell, some, 2 * (level[-1] + 1))
        yield counts.reshape(-1, 2).astype("float64")


def _cuts(order, y_score, is_downward):
    """Ends of blocks that share no score, in the order in which they are taken."""
    ends, size = [0], len(order)
    while ends[-1] < size:
        end = min(ends[-1] + LEVELS, size)
        while end < size and y_score[order[end]] == y_score[order[end - 1]]:
            same = y_score[order[end : end + LEVELS]] == y_score[order[end - 1]]
            end += int(same.size if same.all() else np.argmin(same))
        ends.append(end)
    pairs = list(itertools.pairwise(ends))
    return pairs[::-1] if is_downward else pairs
