"""Rejection rules on labelled data, and what was promised of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tfuq._arguments import ArrayLike
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._joint_fitting import reads_of
from tfuq.selective._losses import first_of, own_promises
from tfuq.selective._repeated_rows import warn_of_repeated_in
from tfuq.selective._rule_evaluation import Evaluation, description, evaluation_of
from tfuq.selective._rule_reading import read_labelled
from tfuq.selective._void import filled


class JudgedRules:
    """Rules that can be held against labels."""

    def evaluate(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        loss: Any = None,
        positive_class: int | str | Sequence[int | str] = 1,
        score: str | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_class: int | str | None = None,
    ) -> Evaluation:
        """What is accepted of labelled data, and how much of that is wrong: an `Evaluation`.

        Args:
            probs, labels: Predictions or a stack of them; labels, sparse or one-hot.
            groups: With `by="group"`: the group of each example; unknown groups are rejected.
            loss, positive_class: As in `fit`; by default what the rule was fitted to, `"error"`
                where that is nothing. Of several the risk is that of errors, and `losses` tells
                each.
            score: As for `accept`.
            sample_weight, ignore_class: As in `fit`.

        Raises:
            ValueError: If arrays do not fit together, or hold a label that is no class; if no loss
                is given and that of the fit is a function that its file does not tell.
        """
        promises = own_promises(self, loss, positive_class)
        asked = sample_weight, ignore_class
        probs, labels, score, known = filled(self, probs, labels, score, *asked)
        given = {"given": score, "known": known}
        read = read_labelled(self, probs, labels, first_of(promises), **given)
        warn_of_repeated_in(read)
        accepted = self.accept(probs, groups, unknown_group="reject", score=score).ravel()
        if len(promises) == 1:
            return evaluation_of(read, accepted, promises, class_names=self.class_names)
        again = functools.partial(read_labelled, self, probs, labels, **given)
        reads = reads_of(read, promises, again)
        return evaluation_of(read, accepted, promises, reads, self.class_names)

    def describe(self) -> str:
        """The rule and its promise, in a sentence for the person who relies on it."""
        return description(self)
