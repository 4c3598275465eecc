"""Rounding of rates and ranks."""

import math


def rounded_up(number):
    """The ceiling, of a number that rounding may have put just above an integer."""
    return math.ceil(number * (1 - 1e-12))
