"""Every public function: given anything, it is right or raises a ValueError, and nothing else.

What is drawn is fixed, so that a run repeats; `TFUQ_FUZZ_SEED=n` in the environment draws other
cases.
"""

import os
import signal
import warnings
import zlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from fuzz_registry import REASONS, is_record, registry
from fuzz_values import Entry, calls, floats_in
from test_docs import OBJECTS

ENTRIES = registry()
EXAMPLES = {"quick": 16, "whole": 1000}
PATIENCE = 120  # seconds after which a call hangs; correct ones take less than one


def test_every_public_name_is_fuzzed_or_says_why_not():
    records = {name for name, thing in OBJECTS.items() if is_record(thing)}
    missing = set(OBJECTS) - set(ENTRIES) - set(REASONS) - records
    assert not missing, f"add to tests/fuzz/fuzz_registry.py: {sorted(missing)}"
    assert not set(ENTRIES) & set(REASONS)
    assert set(REASONS) <= {*OBJECTS, "metrics.PredictionMetric"}


def run(entry, call):
    """What the function answers; None if it refuses with a ValueError."""
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [entry.function(**call.arguments)]
    except ValueError as error:
        assert str(error), "an error without words"
        return None
    except (AttributeError, IndexError, TypeError, tf.errors.OpError):
        if entry.host and call.is_foreign:
            return None
        raise
    finally:
        signal.alarm(0)


def _hangs(*_):
    raise TimeoutError(f"no answer after {PATIENCE} seconds")


def check(entry, call, answer):
    """Raises AssertionError unless an answer is finite, or not so where that is documented."""
    bad = {name for name, array in floats_in(answer) if not np.all(np.isfinite(array))}
    if entry.nan == "raises":
        assert not call.has_nan, "an answer to NaN"
    if call.has_nan and entry.nan == "unknown":
        assert bad, "a finite answer to NaN"
    if call.has_nan and entry.nan == "rejected":
        accepted = np.asarray(answer[0][0])
        new = np.asarray(call.arguments["new"], "float64")
        rows = np.isnan(new).reshape(len(new), -1).any(axis=1)
        assert rows.any(), "fitted to NaN"
        of_row = accepted.reshape(len(accepted), -1)
        assert not of_row[rows].all(axis=1).any(), "accepted NaN"
    if "*" not in entry.undefined:
        assert bad <= set(entry.undefined), f"not finite: {sorted(bad)}"


def fuzz(entry, examples, seed=0):
    """Runs that many cases, and says how many ran."""
    seen = []

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(seed + int(os.environ.get("TFUQ_FUZZ_SEED", 0)))
    @hypothesis.given(calls(entry))
    def case(call):
        seen.append(call.how)
        answer = run(entry, call)
        if answer is not None:
            check(entry, call, answer)

    case()
    return len(seen)


@pytest.mark.parametrize("name", ENTRIES)
def test_any_arguments(name, counts):
    entry = ENTRIES[name]
    counts("fuzz cases", fuzz(entry, max(3, EXAMPLES["quick"] // entry.cost), seed_of(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_any_arguments_at_length(name, counts):
    entry = ENTRIES[name]
    counts("fuzz cases", fuzz(entry, max(30, EXAMPLES["whole"] // entry.cost), seed_of(name)))


def seed_of(name):
    """A seed of its own for each name, so that functions alike see different cases."""
    return zlib.crc32(name.encode())


# --- That the fuzzer finds what there is to find --------------------------------------------------


def _silent(stack):
    return np.asarray(stack, "float64").mean()


def _crashes(stack):
    return 1 / np.asarray(stack).shape[-1]


def _fine(stack):
    stack = np.asarray(stack)
    if stack.dtype.kind != "f" or not np.all(np.isfinite(stack)) or stack.size == 0:
        raise ValueError("no")
    return float(np.clip(stack, 0, 1).mean())


@pytest.mark.parametrize("function", [_silent, _crashes])
def test_faults_are_found(function):
    with pytest.raises((AssertionError, IndexError, ZeroDivisionError)):
        fuzz(Entry(function, {"stack": "stack"}), 200)


def test_what_is_right_passes():
    assert fuzz(Entry(_fine, {"stack": "stack"}), 200) >= 200
