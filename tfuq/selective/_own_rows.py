"""Rows that a promise has for itself: split off, or known again if a calibration has used them."""

import warnings

import numpy as np

from tfuq._arguments import check_fraction, check_integer, shown
from tfuq._predictions.class_names import numbered
from tfuq._predictions.stacks import is_stack_shape, is_stacked
from tfuq.selective._calibrated_arrays import seen
from tfuq.selective._calibration import Calibration
from tfuq.selective._reading import array_of, kind_of
from tfuq.selective._row_hashes import (
    STEP,
    behind_scores,
    fitted_by,
    labelled_hashes,
    most_shared,
    score_hashes,
    shared_rows,
    sum_of_hashes,
    text_of_sum,
    what_is_known,
)
from tfuq.selective.base import FORMAT
from tfuq.selective.beta_calibration import BetaCalibration
from tfuq.selective.calibration import IsotonicCalibration, TemperatureScaling, VectorScaling
from tfuq.selective.dirichlet_calibration import DirichletCalibration
from tfuq.selective.venn_abers import VennAbersCalibration

PLAIN = "confidence"  # the score of who chooses none
KINDS = {
    kind.__name__: kind
    for kind in (
        *(TemperatureScaling, VectorScaling, IsotonicCalibration),
        *(BetaCalibration, DirichletCalibration, VennAbersCalibration),
    )
}


def checked_calibration(calibration, rank, from_logits, multi_label):
    """The argument `calibration` of a constructor: None, a fitted scaling or its content."""
    if calibration is None:
        return None
    if isinstance(calibration, dict):
        kind = KINDS.get(calibration.get("class"))
        if kind is None or calibration.get("format") != FORMAT:
            raise ValueError(
                f"Argument `calibration` must be of one of {sorted(KINDS)}, format {FORMAT}. "
                f"Received: {calibration.get('class')!r}, format {calibration.get('format')!r}"
            )
        calibration = kind.from_config(calibration["config"])
    if not isinstance(calibration, Calibration) or not calibration.is_fitted:
        raise ValueError(
            "Argument `calibration` must be None or a scaling that has been fitted. "
            f"Received: {type(calibration).__name__}"
        )
    if calibration.rank not in (None, rank) or calibration.multi_label != multi_label:
        raise ValueError(
            f"Argument `calibration` must be fitted to predictions of {rank} axes with "
            f"multi_label={multi_label}. Received: one of {calibration.rank} axes with "
            f"multi_label={calibration.multi_label}"
        )
    if calibration.from_logits == from_logits:
        return calibration
    # A temperature of logits is one of their probabilities: who has only these may say so.
    return type(calibration)(**{**calibration.get_config(), "from_logits": from_logits})


def split_rows(draft, probs, labels, groups=None, known=None, *, calibration, share, seed):
    """A scaling fitted to some rows; predictions, labels, groups and `known` of all others.

    Rows are drawn without a look at their labels: a stratified draw would not leave the others
    exchangeable with new data, which the promises stand on.

    Args:
        draft: Rule or conformal predictor that is to be fitted to the others.
        probs: Predictions, a stack of them or an `Uncertainty`.
        labels: Labels.
        groups: An array, or None.
        known: Which labels are known, or None.
        calibration: A scaling that has not been fitted.
        share: Of the rows, for the scaling.
        seed: Of the draw.
    """
    kind = kind_of(draft, {})
    _check_unfitted(calibration, kind)
    check_fraction("calibration_share", share)
    check_integer("seed", seed, 0)
    probs = array_of(probs)
    stacked = is_stack_shape(np.shape(probs), kind, is_stacked(probs))
    names = getattr(draft, "class_names", None)
    probs, labels = np.asarray(probs), np.asarray(numbered(labels, names))
    if stacked and kind.rank == 1 and probs.ndim == 2:
        probs = probs[..., None]  # which is read as a stack from its shape
    count = probs.shape[1 if stacked else 0]
    taken = round(share * count)
    if not 0 < taken < count or len(labels) != count:
        raise ValueError(
            f"Argument `calibration_share` must leave some of {count} examples with labels on both "
            f"sides. Received: calibration_share={shown(share)} with {len(labels)} labels"
        )
    if groups is not None and np.shape(groups)[:1] != (count,):
        raise ValueError(
            f"Arguments `groups` and `weights` must hold one for each of {count} examples. "
            f"Received: an array of shape {np.shape(groups)}"
        )
    order = np.random.default_rng(seed).permutation(count)
    ours, others = np.sort(order[:taken]), np.sort(order[taken:])
    flags = {"from_logits": kind.from_logits, "multi_label": kind.multi_label}
    fresh = type(calibration)(**{**calibration.get_config(), **flags})
    weight = None if known is None else known[ours]
    fresh.fit(probs[:, ours] if stacked else probs[ours], labels[ours], weight)
    fresh.rank = kind.rank
    groups, known = (None if x is None else np.asarray(x)[others] for x in (groups, known))
    return fresh, probs[:, others] if stacked else probs[others], labels[others], groups, known


def _check_unfitted(calibration, kind):
    if not isinstance(calibration, Calibration) or calibration.is_fitted:
        state = "a fitted one" if isinstance(calibration, Calibration) else "none"
        raise ValueError(
            "Argument `calibration` must be a scaling that has not been fitted, such as "
            "IsotonicCalibration(): fitting splits the rows itself. "
            f"Received: {type(calibration).__name__}, {state}"
        )
    for name in ("from_logits", "multi_label"):
        if getattr(calibration, name) and not getattr(kind, name):
            raise ValueError(
                f"Argument `{name}` must also be True if it is True for the calibration. Received: "
                f"{name}=False"
            )


def check_own_rows(probs, mean, labels):
    """Raises ValueError if predictions and labels are rows that a calibration was fitted to.

    Args:
        probs: What the caller gave.
        mean: Mean probabilities `(..., classes)`.
        labels: Classes, as many.
    """
    own = OwnRows()
    own.add(mean, labels)
    own.check(probs)


def check_own_scores(scores):
    """Raises ValueError if scores `(n,)`, or None, are of rows that what gave them was fitted to.

    Of numbers nothing else is known of the rows.
    """
    own = OwnRows(scores)
    own._count = np.size(scores)
    own.check_scores(np.zeros(0, "uint64"))


class OwnRows:
    """Whether rows, read in blocks, are those that a calibration was fitted to.

    Rows are known by the raw predictions where `probs` come from a calibration as they are, else
    by their values and labels, among the calibrations that this process has fitted or read. Where
    it has none nothing is computed of the rows.

    Args:
        score: Scores that were given with the rows, or the name of a score of predictions: of what
            was fitted to, or chosen on, others. None of neither.
    """

    def __init__(self, score=None):
        self._behind, self._given = ([], None) if score is None else (behind_scores(score), score)
        self._wholes, self._singles = what_is_known()
        self._count, self._total, self._hashes = 0, 0, []

    def add(self, mean, labels):
        """Takes mean probabilities `(..., classes)` and as many classes."""
        self._count += np.size(labels)
        if self._wholes:
            self._total += sum_of_hashes(labelled_hashes(mean, labels, STEP))
        if self._singles or any(not each.of_scores for each in self._behind):
            self._hashes.append(labelled_hashes(mean, labels))

    def check(self, probs):
        """Raises ValueError if they are, of the predictions that the caller gave."""
        hashes = np.concatenate(self._hashes) if self._hashes else np.zeros(0, "uint64")
        name, count = fitted_by(text_of_sum(self._count, self._total)), self._count
        if name is None:
            name, count = seen(array_of(probs))
        if not count and self._singles:
            name, count = most_shared(hashes)
        if count:
            raise ValueError(
                "Argument `probs` must hold rows that its calibration was not fitted to, or "
                "nothing can be promised: pass other rows, or the raw predictions and calibration="
                f"{name}(), which splits them. Received: calibrated predictions of which about "
                f"{count} are of rows that {name} was fitted to"
            )
        self.check_scores(hashes)

    def check_scores(self, hashes):
        """Raises ValueError if what gives the scores has seen the rows; these are `hashes`."""
        for scorer, known, of_scores in self._behind:
            shared = shared_rows(known, score_hashes(self._given) if of_scores else hashes)
            if shared and isinstance(self._given, str) and self._given == PLAIN:
                warnings.warn(
                    f"The score was chosen with {scorer}, which has seen about {shared} of these "
                    f"{self._count} rows. The promise holds only if you would have used this score "
                    "whatever the outcome; otherwise fit the rule to other rows.",
                    stacklevel=6,
                )
            elif shared:
                raise ValueError(
                    "Argument `score` must come from other rows than these, or nothing can be "
                    "promised: fit or choose the score on some rows and the rule on others. "
                    f"Received: a score of {scorer}, which has seen about {shared} of these "
                    f"{self._count} rows"
                )
