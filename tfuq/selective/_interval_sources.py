"""Predictions of numbers as intervals are made of them, some rows at a time."""

import numpy as np

from tfuq._arguments import shown, to_float64
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty

STEP = 2**18  # numbers at a time

METHODS = ("split", "normalized", "cqr")
_PAIRS = {"normalized": ("mean", "std"), "cqr": ("lower", "upper")}
_EXPECTED = {
    "split": "an array of means `(n, ..., units)`",
    "normalized": "arrays `(mean, std)` of shape `(n, ..., units)`",
    "cqr": "arrays `(lower, upper)` of quantiles, `(n, ..., units)`",
}


def checked_levels(levels, method):
    """The argument `levels` of a constructor, a list or None."""
    if levels is None:
        return None
    found = to_float64("levels", levels)
    if method != "cqr" or found.shape != (2,) or not 0 < found[0] < found[1] < 1:
        raise ValueError(
            "Argument `levels` must be None, or with method='cqr' two numbers in (0, 1) that "
            f"increase. Received: levels={shown(levels)}, method={shown(method)}"
        )
    return found.tolist()


def levels_of(found, method, alpha):
    """Both levels of "cqr": alpha / 2 and 1 - alpha / 2, or the outermost that were learned."""
    if method != "cqr" or not isinstance(found, RegressionUncertainty):
        return None
    learned = getattr(found.family, "levels", (0.0, 1.0))
    return [max(alpha / 2, learned[0]), min(1 - alpha / 2, learned[-1])]


class Source:
    """What a method makes intervals of.

    Args:
        found: `RegressionUncertainty`, or the arrays of the method.
        method: One of `METHODS`.
        levels: Of "cqr", both quantiles of a `RegressionUncertainty`.

    Raises:
        ValueError: If `found` is of another kind or shape.
    """

    def __init__(self, found, method, levels=None):
        self.method, self.levels = method, levels
        self.is_uncertainty = isinstance(found, RegressionUncertainty)
        _check_found(found, method)
        if self.is_uncertainty:
            self._parts = (found,)
            self.shape = found.shape
        else:
            self._parts = _read_arrays(found, method)
            self.shape = self._parts[0].shape

    def __len__(self):
        return self.shape[0]

    @property
    def family(self):
        """Configuration of the family, None of arrays."""
        return self._parts[0].family.get_config() if self.is_uncertainty else None

    @property
    def draws(self):
        """How many draws there are, None of arrays."""
        return self._parts[0].num_samples if self.is_uncertainty else None

    def blocks(self):
        """Slices of rows that are read together."""
        row = max(1, int(np.prod(self.shape[1:])))
        step = max(1, STEP // row)
        return (slice(start, start + step) for start in range(0, len(self), step))

    def ends(self, rows):
        """`(low, high, scale)` of some rows, float64."""
        if self.is_uncertainty:
            found = self._parts[0][rows]
            if self.method == "cqr":
                return (*(found.quantile(level) for level in self.levels), 1.0)
            return found.mean, found.mean, found.std if self.method == "normalized" else 1.0
        parts = [part[rows].astype("float64") for part in self._parts]
        if self.method == "cqr":
            return parts[0], parts[1], 1.0
        return parts[0], parts[0], parts[1] if self.method == "normalized" else 1.0


def _check_found(found, method):
    if isinstance(found, Uncertainty):
        raise ValueError(
            "Argument `found` must be a `RegressionUncertainty`, but the model is a classifier: "
            "`ConformalPredictor` makes sets of classes. Received: an Uncertainty"
        )
    if getattr(found, "is_stack", False):
        raise ValueError(
            "Argument `found` must be what `predict_uncertainty` gives, or "
            f"{_EXPECTED[method]}. Received: a stack of draws of shape {np.shape(found)}"
        )
    if isinstance(found, RegressionUncertainty) and method != "split":
        if found.family.has_noise or (method == "normalized" and found.num_samples > 1):
            return
        raise ValueError(
            "Argument `method` must be 'split': the network predicts numbers without their "
            f"uncertainty. Received: method={shown(method)} with the family "
            f"{shown(found.family.name)}"
        )


def _read_arrays(found, method):
    """The arrays of a method, `(n, ..., units)` each."""
    names = _PAIRS.get(method)
    given = found if isinstance(found, (tuple, list)) else ()
    arrays = tuple(given) if names else (found,)
    try:
        arrays = tuple(np.asarray(array) for array in arrays)
    except ValueError:
        arrays = ()
    shapes = {array.shape for array in arrays}
    numeric = all(array.dtype.kind in "iufV" for array in arrays)
    right = len(arrays) == (len(names) if names else 1) and len(shapes) == 1 and numeric
    if not right or not arrays[0].ndim or not arrays[0].size:
        raise ValueError(
            f"Argument `found` must be a `RegressionUncertainty` or, with method={shown(method)}, "
            f"{_EXPECTED[method]}. Received: found={shown(found)}"
        )
    return tuple(array[:, None] if array.ndim == 1 else array for array in arrays)


def check_kind(source, fitted, units):
    """Raises ValueError unless predictions are of the kind that a regressor was fitted to."""
    if source.shape[-1] != units or len(source.shape) != fitted.rank:
        raise ValueError(
            f"Argument `found` must hold predictions of {fitted.rank} axes, the last of {units}, "
            f"as those that it was fitted to. Received: found of shape {source.shape}"
        )
    family, draws = fitted.family, fitted.fitted_to.get("draws")
    by_hand = "alpha" not in fitted.fitted_to
    if family is None and source.is_uncertainty and fitted.method != "split" and not by_hand:
        raise ValueError(
            "Argument `found` must be a pair of arrays, as what it was fitted to. "
            f"Received: a RegressionUncertainty of {source.family}"
        )
    if None not in (family, source.family) and source.family != family:
        raise ValueError(
            f"Argument `found` must be of the family {family}, as what it was fitted to. "
            f"Received: {source.family}"
        )
    if None not in (draws, source.draws) and (draws > 1) != (source.draws > 1):
        raise ValueError(
            "Argument `found` must be of several draws or of one, as what it was fitted to "
            f"({draws}): one network knows less of its uncertainty. Received: {source.draws}"
        )


def labels_of(y, shape, name="y"):
    """Labels in the shape of the predictions; a missing last axis of one is added, no more.

    Raises:
        ValueError: If they have another shape or are no numbers.
    """
    try:
        labels = np.asarray(y)
    except ValueError:
        labels = np.array("")
    if labels.dtype.kind not in "biufV":
        raise ValueError(f"Argument `{name}` must hold numbers. Received: {name}={shown(y)}")
    if shape[-1] == 1 and labels.shape == shape[:-1]:
        return labels[..., None]
    if labels.shape != shape:
        also = f" or {shape[:-1]}" if shape[-1] == 1 else ""
        raise ValueError(
            f"Argument `{name}` must have the shape of the predictions, {shape}{also}. "
            f"Received: {name} of shape {labels.shape}"
        )
    return labels


def labelled_blocks(source, y, names=("found", "y")):
    """`(rows, ends, labels)` of all blocks, float64, all finite.

    Raises:
        ValueError: If a prediction or a label is not.
    """
    for rows in source.blocks():
        ends, labels = source.ends(rows), y[rows].astype("float64")
        for name, parts in zip(names, (ends, (labels,)), strict=True):
            _check_finite(name, parts, rows.start)
        yield rows, ends, labels


def _check_finite(name, parts, start):
    for part in parts:
        faulty = ~np.isfinite(part)
        if np.any(faulty):
            raise ValueError(
                f"Argument `{name}` must hold finite numbers: leave out the other rows. Received: "
                f"{np.ravel(part[faulty])[0]} in row {np.argwhere(faulty)[0][0] + start}"
            )
