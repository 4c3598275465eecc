"""State of a monitor, short enough for a row of a table, and marks of the batches that it took."""

import base64
import zlib

import numpy as np

from tfuq._arguments import shown
from tfuq.selective.bets import spent_after

BATCHES = 3  # whose marks are kept: of the first, and of the last but that
LEAST_SCORES = 8  # different ones, from which on equal batches are no chance
TESTS, SLOPES, BETS = 3, 4, 4  # numbers of wealths: the largest, by slope, by bet
OLD_SLOPES = 3  # of monitors whose test of the scores began once
BINS = 8  # of scores
NUMBERS = ("cases", "accepted", "labelled", "loss")
WEALTHS = ("most", "scores", "risk", "more", "less")


def short(content):
    """The content of a rule without the arguments that are None or False."""
    config = {name: value for name, value in content["config"].items() if not _is_off(value)}
    return {**content, "config": config}


def whole(content, defaults):
    """The content of a rule with what `short` left out of it."""
    off = {name: value for name, value in defaults.items() if _is_off(value)}
    return {**content, "config": {**off, **content["config"]}}


def _is_off(value):
    return value is None or value is False


def rounded(score):
    """A score in six digits: what bins are made of needs no more."""
    return float(f"{score:.6g}")


def mark_of(scores):
    """A number that tells a batch by its scores, in their order; None if these may be chance."""
    scores = np.asarray(scores, "<f4")
    if len(np.unique(scores[~np.isnan(scores)])) < LEAST_SCORES:
        return None
    return zlib.crc32(scores.tobytes())


def mark_of_edges(edges):
    """A number that tells a stream by the edges of its bins: each draws its ties by itself."""
    return zlib.crc32(np.asarray(edges, "<f8").tobytes())


def encoded(values, kind="<f8"):
    """Numbers as base64, which is exact and half as long as digits."""
    return base64.b64encode(np.asarray(values, kind).tobytes()).decode()


def encoded_counts(values):
    """Counts as base64, or as they are where one is too large."""
    return encoded(values, "<u4") if np.max(values) < 2**32 else values.astype(int)


def _decoded(text, kind="<f8"):
    return np.frombuffer(base64.b64decode(text, validate=True), kind)


def _wealths(text):
    values, others = _decoded(text), (BETS, BETS, BETS)
    slopes = len(values) - TESTS - sum(others)
    if slopes not in (0, SLOPES, OLD_SLOPES):
        raise ValueError(f"{len(values)} wealths")
    return np.split(values, np.cumsum([TESTS, slopes, *others])[:-1])


def _begun_again(sums, bins):
    """Wealth by slope of a test of the scores that began once, as the first of many games.

    It counts as far as games have begun by now. What it was at most stays, so that the probability
    of a false alarm of this test is at most doubled by the change.
    """
    return np.full(SLOPES, np.sum(sums) * spent_after(int(np.sum(bins))) / SLOPES)


def checked_state(state):
    """What has been seen, of the argument `state` or of nothing, or a ValueError.

    `"most"` and `"scores"` are wealths, and so are `"risk"`, `"more"` and `"less"`, by bet, where a
    case was taken.
    """
    fresh = {**dict.fromkeys(NUMBERS[:3], 0), "loss": 0.0, "edges": [], "bins": [0] * BINS}
    found = {"first": [], "batches": [], **(fresh if state is None else state)}
    if found["first"]:  # of which bins will be made
        found = {"edges": [], "bins": [0] * BINS, **found}
    try:
        for name, kind in (("first", "<f4"), ("batches", "<u4"), ("bins", "<u4")):
            if isinstance(found[name], str):
                found[name] = _decoded(found[name], kind).tolist()
        if state is None:
            wealth = [1.0] * TESTS, [0.0] * SLOPES, *np.zeros([3, BETS])
        elif "wealth" in found:
            wealth = _wealths(found.pop("wealth"))
        else:  # as monitors were first written
            wealth = list(found.pop("most").values()), found.pop("scores")
            wealth += tuple(found.pop(name)[-1] for name in WEALTHS[2:])
        wealth = [np.array(part, "float64") for part in wealth]
        if not len(wealth[1]):  # no score was tested yet
            wealth[1] = np.zeros(SLOPES)
        if len(wealth[1]) == OLD_SLOPES:
            wealth[1] = _begun_again(wealth[1], found["bins"])
        sizes = [len(found["bins"]), len(found["edges"]) in (0, BINS - 1), *map(len, wealth)]
        is_sound = set(found) == {*fresh, "first", "batches"}
        is_sound &= sizes == [BINS, True, TESTS, SLOPES, BETS, BETS, BETS]
    except (KeyError, TypeError, AttributeError, ValueError):
        is_sound = False
    if not is_sound or not np.all(np.concatenate(wealth) >= 0):
        raise ValueError(f"Argument `state` must be of a monitor. Received: state={shown(state)}")
    return {**found, **dict(zip(WEALTHS, wealth, strict=True))}
