"""Ends and steps of the slider of a threshold."""

import numpy as np


def slider_of(threshold, marks, score):
    """The largest threshold to choose, and the digits after the point of a step."""
    known = np.append([threshold, *(mark for _, mark in marks)], score)
    known = known[np.isfinite(known)]
    largest, least = float(np.max(known, initial=0.0)), float(np.min(known, initial=0.0))
    if largest <= 0 and least < 0:
        largest = float(known.max())  # of scores that are all below 0
    if largest == 0 == least:
        return 1.0, 3
    digits = int(2 - np.floor(np.log10(max(largest - least, abs(least) * 1e-3) / 2)))
    return float(np.ceil(largest * 10.0**digits) / 10.0**digits), digits


def smallest_of(marks, score, digits):
    """The smallest threshold to choose: 0, or below the scores and marks if some are."""
    known = np.append([mark for _, mark in marks], score)
    least = float(np.min(known, initial=0.0, where=np.isfinite(known)))
    return float(np.floor(least * 10.0**digits) / 10.0**digits) if least < 0 else 0.0
