"""Docstrings of public names lead on: each has a "See also" with names that exist."""

import inspect
import re

import pytest
from test_docs import OBJECTS

SEE_ALSO = re.compile(r"^See also: (.*?)\.(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
NAMES = {name: thing for name, thing in OBJECTS.items() if callable(thing)}


def see_also(thing):
    """The names that a docstring leads to, without `tfuq.`; None if it leads nowhere."""
    found = SEE_ALSO.search(inspect.getdoc(thing) or "")
    return found and re.findall(r"`tfuq\.([\w.]+)`", found[1])


@pytest.mark.parametrize("name", NAMES)
def test_leads_to_other_public_names(name):
    found = see_also(NAMES[name])
    assert found, f"tfuq.{name} has no line 'See also: `tfuq.x.y`.'"
    assert set(found) <= set(NAMES) - {name}


def test_a_docstring_without_it_is_found():
    def alone():
        """Does nothing."""

    def leads():
        """Does nothing.

        See also: `tfuq.layers.VBLLDense`,
        `tfuq.selective.aurc`.
        """

    assert see_also(alone) is None
    assert see_also(leads) == ["layers.VBLLDense", "selective.aurc"]
