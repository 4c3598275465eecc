"""Tests of how predictions and labels are read: errors name the arguments of the caller."""

import numpy as np
import pytest

from tfuq._predictions.examples import from_arrays
from tfuq._predictions.labelled import labelled_predictions

PROBS, LABELS = [[0.9, 0.1], [0.2, 0.8]], [0, 1]
FAULTS = {  # y_true, y_pred, sample_weight, and which of them is at fault
    "text": ("ab", PROBS, None, 0),
    "no class": ([0, 2], PROBS, None, 0),
    "other shape": ([0, 1, 1], PROBS, None, 0),
    "rows of other sums": ([[1, 1], [0, 1]], PROBS, None, 0),
    "empty": ([], np.zeros((0, 2)), None, 1),
    "no axes": (0, 0.5, None, 1),
    "nan": (LABELS, [[np.nan, 0.1], [0.2, 0.8]], None, 1),
    "outside": (LABELS, [[5, -4], [0.2, 0.8]], None, 1),
    "sum": (LABELS, [[0.9, 0.9], [0.2, 0.8]], None, 1),
    "negative weight": (LABELS, PROBS, [-1, 1], 2),
    "no weight": (LABELS, PROBS, [0, 0], 2),
    "weight of other shape": (LABELS, PROBS, [1, 1, 1], 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_the_arguments_of_the_caller(fault):
    *given, at_fault = FAULTS[fault]
    for names in ((), ("first", "second", "third"), ("first",)):
        expected = [*names, *("y_true", "y_pred", "sample_weight")[len(names) :]][at_fault]
        with pytest.raises(ValueError, match=f"Argument `{expected}` must .*Received") as caught:
            from_arrays(*given, names=names)
        assert not {"y_true", "y_pred"} & set(str(caught.value).split()) - {expected}


def test_labelled_predictions_have_names_of_their_own():
    for names, expected in (((), "probs"), (("probs_target",), "probs_target")):
        with pytest.raises(ValueError, match=f"Argument `{expected}` must"):
            labelled_predictions([[0.9, 0.9], [0.2, 0.8]], LABELS, names=names)
        with pytest.raises(ValueError, match=f"Argument `{expected}` must .*sum to 1"):
            labelled_predictions(np.full((3, 2, 2), 0.9), LABELS, names=names)
        with pytest.raises(ValueError, match="Argument `labels` must"):
            labelled_predictions(PROBS, [0, 7], names=names)


def test_nan_in_a_stack_is_left_out_by_its_weight():
    stack = np.tile([PROBS], (3, 1, 1))
    stack[:, 0] = np.nan
    found = labelled_predictions(stack, LABELS, [0, 1])
    assert found.error[1] == 0 and found.weight.tolist() == [0, 1]
