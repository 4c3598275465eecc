"""One chain of tests for several promises of few examples, with the whole error for each of them.

The promises are of the same n examples, their losses errors of 0 or 1. All are ordered from the
most trusted down, equal scores by a draw. Let s be the most that `fewest_examples` asks for of any
promise, which depends on no example. The chain passes a count a if the errors of the first a
examples are so few, for each promise j, that P(Bin(a, r_j) <= errors) <= delta. It goes through
s, s + 1, ... up to the first that fails, and shows the whole levels of at least s + 1 examples that
end before that. So every promise has the whole error delta, of which nothing is shared out.

Why. Let R_j be the risk of promise j by the place in the order of all that can be drawn, a
continuous function, and call a place bad if R_j > r_j there for any j. The chain errs if it shows a
level that ends at a bad place. Consider the place u of example s + 1, which all these levels hold.

1. u is bad. Take any j with R_j(u) > r_j; which that is depends on u alone. Given u, the first s
   examples are independent draws of what lies before u, each with an error of j with probability
   R_j(u) > r_j. The chain has passed s, with a probability of at most delta.
2. u lies in a gap between bad places, from a to b, where R_j(b) = r_j for some j that depends on
   the gap alone, and R_j(a) <= r_j. (If nothing bad comes after u, nothing errs.) A level that ends
   at a bad place holds all N(b) examples before b, of which there are at least s + 1: the chain has
   passed N(b). Given N(b) = m, these are independent draws with errors of probability r_j, of which
   N(a) lie before a. That u lies in this gap says of them that N(a) <= s, and nothing else. Given
   N(a), the errors are those of N(a) draws with probability R_j(a) <= r_j and of m - N(a) with at
   least r_j, as both together have r_j: the smaller N(a), the more of them. So N(a) <= s makes them
   stochastically no fewer, and the chain passes m with a probability of at most delta.

One of both is the case, for one u or one gap. (An intersection-union test, Berger 1982, whose first
hypothesis that is true is not known beforehand.)

Why this is not for all promises. Where they are of different examples, such as of one class, a
start at a fixed count of all may hold too few of some, and one at a count of each is a place that
says something of the others. The curve of `_guarantees` shows levels beyond bad places, where at
each another promise may be broken: it needs the error shared out. With that it is ahead of this
chain from some `MOST_TIMES` s examples on, by simulation; no part of the proof depends on where.
"""

import numpy as np

from tfuq.selective._drawn_ties import seed_of
from tfuq.selective._flat_walk import first_looks
from tfuq.selective._guarantees import fewest_examples

MOST_TIMES = 3.5  # the fewest that can pass, up to which the chain is taken


def start_of_chain(reads, promises, rows, delta):
    """The count at which the chain starts, or None where the error is to be shared out."""
    first = reads[0].counts
    if not all(read.binary and np.array_equal(read.counts, first) for read in reads):
        return None
    total = np.count_nonzero(first if rows is None else first[rows])
    start = max(fewest_examples(promise.target_risk, delta) for promise in promises)
    return start if total < MOST_TIMES * start else None


def last_of_chain(levels, reads, promises, rows, sign, start, delta):
    """The most lenient of the `levels` that the chain from `start` shows, or None."""
    rows = np.arange(len(reads[0].score)) if rows is None else rows
    rows = rows[reads[0].counts[rows]]
    seed = [part for level in levels for part in seed_of(level.table)]
    losses = _in_drawn_order(reads, rows, sign, np.random.default_rng(seed))
    stop = np.inf
    for loss, promise in zip(losses, promises, strict=True):
        stop = min(stop, first_failure(loss, promise.target_risk, start, delta))
    shown = np.flatnonzero((levels[0].weight > start) & (levels[0].weight < stop))
    return int(shown[-1]) if len(shown) else None


def first_failure(loss, risk, start, delta):
    """The first count from `start` on with too many errors to pass, or one more than all."""
    looks = first_looks(len(loss), risk, delta)  # from which count on so many errors pass
    counts = np.arange(start, len(loss) + 1)
    allowed = np.searchsorted(looks, counts, side="right") - 1
    failed = np.flatnonzero(np.cumsum(loss)[start - 1 :] > allowed)
    return int(counts[failed[0]]) if len(failed) else len(loss) + 1


def _in_drawn_order(reads, rows, sign, rng):
    """Losses `(promises, examples)` from the most trusted example on, equal scores as drawn.

    One draw for all promises, and the same in whatever order the rows are.
    """
    losses = np.stack([read.loss[rows] for read in reads])
    doubts = -sign * reads[0].score[rows]
    losses = losses[:, np.lexsort((*losses, doubts))]
    return losses[:, np.lexsort((rng.random(len(rows)), np.sort(doubts)))]
