"""What the tests of the formats in one file share: which kinds of models, and how they agree."""

import numpy as np
import pytest
from test_saved_model import KINDS

EXACT = ("label", "accept", "prediction_set")
# `make test` takes what differs most: a rule, sets and a detector, and a head that is drawn from.
QUICK = ("plain_with_everything", "vbll")


def each_kind(quick=QUICK):
    """All kinds of models; those that are not `quick` are slow."""
    return [
        pytest.param(
            kind, id=kind.__name__, marks=() if kind.__name__ in quick else pytest.mark.slow
        )
        for kind in KINDS
    ]


def assert_agrees(case, kind, model):
    """A model that a runtime runs says what Python says, twice to the bit, in several batches."""
    # Layers in float16 are computed in float32 here, which is nearer to the truth.
    tolerance = 1e-3 if kind.__name__ == "mixed_precision" else 1e-5
    for size in (1, 7, 64):
        batch = {name: array[:size] for name, array in case.inputs.items()}
        found, again = model(batch), model(batch)
        assert set(found) == set(case.expected)
        for name, expected in case.expected.items():
            expected = np.asarray(expected)[:size]
            np.testing.assert_array_equal(found[name], again[name])  # to the bit
            assert found[name].shape == expected.shape, name
            if name in EXACT:
                np.testing.assert_array_equal(found[name], expected, err_msg=name)
            else:
                scale = max(1.0, np.abs(expected).max()) if name == "ood_score" else 1.0
                np.testing.assert_allclose(
                    found[name], expected, rtol=0, atol=tolerance * scale, err_msg=name
                )
