"""A promise that watches itself: tests of a rule's risk, coverage and scores, case by case.

Each test holds a wealth that is 1 at first and, while nothing has changed, no fair game makes grow:
it ever reaches 1 / alpha with a probability of at most alpha, over the whole stream, however long
and however often one looks. `bets.py` says what it bets, and proves that.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfuq._arguments import ArrayLike, Self, check_fraction, register, shown, to_float64
from tfuq._files.reading import json_text
from tfuq._math.bounds import clopper_pearson_interval
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._losses import SEVERAL, titles
from tfuq.selective._monitor_state import (
    BATCHES,
    BINS,
    NUMBERS,
    checked_state,
    encoded,
    encoded_counts,
    mark_of,
    mark_of_edges,
    rounded,
    short,
    whole,
)
from tfuq.selective.base import Fitted, numbers, plain
from tfuq.selective.bets import Bets, Jumps, mean_upper_bound

__all__ = ["Monitor"]

SHARES = {"risk": 0.5, "coverage": 0.25, "scores": 0.25}  # of alpha
TO_BIN = 32  # scores that set the bins
LEAST = 1e-6  # a rate is between this and 1 less this
SURE = 0.999  # of the interval of the coverage
_NAMES = ("RejectionRule", "RegressionRule")


@register
class Monitor(Fitted):
    """Monitors a rule in use and raises an alarm when its promise breaks; labels may be partial.

    `rule.monitor()` makes one. It runs three tests. The risk of accepted answers is at most the
    promised one; this uses the labelled cases, which must be a fair sample of the accepted ones,
    not those that somebody doubted. The coverage lies in the interval found at the fit. The scores
    keep the distribution of the first ones; this needs no labels. While all three hold, the
    probability of ever raising an alarm is at most `alpha`, however many cases come and however
    often you look.

    Args:
        rule: The rule, fitted to a `target_risk`, with one decision for each example. The monitored
            risk uses the loss of that fit.
        alpha: Probability in (0, 1) of ever raising a false alarm: half of it for the risk, a
            quarter each for the other two.
        state: State so far, from `get_config`.

    Raises:
        ValueError: If the rule promises no risk, or decides on several entries of an example.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import RejectionRule
    >>> rng = np.random.default_rng(0)
    >>> probs = rng.uniform(0.5, 1, size=2000)
    >>> labels = (rng.random(2000) < probs).astype(int)
    >>> monitor = RejectionRule.fit(probs, labels, target_risk=0.2).monitor()
    >>> monitor.update(probs, labels).alarm
    False
    >>> monitor.update(probs[::-1], rng.random(2000) < 0.5).alarms
    ['risk']

    References:
        - Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024.
        - Vovk et al., "Retrain or not retrain: conformal test martingales for change-point
          detection", 2021.

    See also: `tfuq.selective.RejectionRule`, `tfuq.selective.shift_report`,
    `tfuq.plots.monitor_process`.
    """

    def __init__(
        self, rule: Any, alpha: float = 0.05, *, state: dict[str, Any] | None = None
    ) -> None:
        check_fraction("alpha", alpha)
        if alpha in (0, 1):
            raise ValueError(f"Argument `alpha` must be in (0, 1). Received: alpha={alpha}")
        _check_rule(rule)
        self.rule, self.alpha = rule, float(alpha)
        fitted = rule.fitted_to
        low, high = clopper_pearson_interval(fitted["accepted"], fitted["decisions"], SURE)
        rates = {"more": min(high, 1 - LEAST), "less": min(max(1 - low, LEAST), 1 - LEAST)}
        bounds = {"risk": fitted["target_risk"], **{k: float(rate) for k, rate in rates.items()}}
        state = checked_state(state)
        counts = {"risk": state["labelled"], "more": state["cases"], "less": state["cases"]}
        self._bets = {name: Bets(bounds[name], n, state[name]) for name, n in counts.items()}
        self._seen = {name: state[name] for name in NUMBERS}
        self._most = dict(zip(SHARES, state["most"].tolist(), strict=True))
        self._first, self._batches = list(state["first"]), list(state["batches"])
        self._edges, self._bins = numbers("state", state["edges"]), numbers("state", state["bins"])
        self._jumps = Jumps(int(self._bins.sum()), state["scores"])

    def get_config(self) -> dict[str, Any]:
        of_scores = {"edges": self._edges, "bins": encoded_counts(self._bins)}
        of_scores = {"first": encoded(self._first, "<f4")} if self._first else of_scores
        games = [*([self._jumps] if self._jumps.count else []), *self._bets.values()]
        wealth = [*self._most.values(), *(part for each in games for part in each.sums)]
        wealth = {"wealth": encoded(wealth), "batches": encoded(self._batches, "<u4")}
        state = {**self._seen, **of_scores, **wealth}
        return plain({"rule": short(self.rule._content()), "alpha": self.alpha, "state": state})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        content = config["rule"]
        if content.get("class") not in _NAMES:
            raise ValueError(f"it watches {shown(content.get('class'))}")
        kind = keras.saving.get_registered_object(f"tfuq>{content['class']}")
        rule = kind._from_content(whole(content, kind().get_config()))
        return cls(rule, config["alpha"], state=config["state"])

    def to_json(self) -> str:
        """What has been seen, and the rule, as a text for `from_json`.

        At most 1,024 bytes, however much was seen, of a rule without groups and of few classes, or
        some with short names.
        """
        return json_text(self._content(), allow_nan=False, separators=(",", ":"))

    @property
    def fitted_to(self) -> dict[str, Any]:
        """What has been seen so far: numbers of cases, of accepted, and of those with labels."""
        return dict(self._seen)

    def update(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        stacked: bool | None = None,
        score: str | None = None,
    ) -> Self:
        """Takes cases in the order in which they came, each once.

        Args:
            probs: Predictions of the kind that the rule was fitted to, `(n, classes)`; for a
                regression the result of `predict_uncertainty`.
            labels: Labels, sparse `(n,)`, or numbers; None or NaN for a case without; None if no
                case has one.
            groups: As for `rule.accept`, of which a group that is unknown is rejected.
            stacked, score: As for `rule.accept`.

        Returns:
            The monitor itself.

        Raises:
            ValueError: As `rule.accept`, before any case counts; if labels are not one for each; if
                the batch has the scores of the one before, of the one before that or of the first,
                eight different ones or more: labels that come late go to `update_losses`.
        """
        self.follow(probs, labels, groups, stacked=stacked, score=score)
        return self

    def follow(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        stacked: bool | None = None,
        score: str | None = None,
    ) -> dict[str, np.ndarray]:
        """As `update`, and says how the wealth of each test went.

        Returns:
            `{test: wealth after each case (n,)}`.
        """
        return self._take(*self.rule._cases(probs, labels, groups, stacked, score))

    def update_decisions(
        self, accepted: ArrayLike, scores: Any, losses: ArrayLike | None = None
    ) -> Self:
        """Takes cases that were decided elsewhere, as by a server of an export.

        Args:
            accepted: Whether the rule accepted each case, `(n,)`, in the order in which they came.
            scores: The rule's score of each, `(n,)`; NaN where nothing is known.
            losses: The loss of each in [0, 1], of errors 1.0 where an answer is wrong; NaN where
                there is no label, or the case belongs to no risk of the rule's (see
                `update_losses`, which takes those that come later); None if no case has one.

        Returns:
            The monitor itself.

        Raises:
            ValueError: If these are not one for each case, or of other values; as `update`, if they
                are those of a batch before.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import RejectionRule
        >>> rng = np.random.default_rng(0)
        >>> probs = rng.uniform(0.5, 1, size=2000)
        >>> rule = RejectionRule.fit(probs, rng.random(2000) < probs, target_risk=0.2)
        >>> monitor = rule.monitor().update_decisions([True, False], [0.9, 0.7])
        >>> monitor.update_losses([0.0]).fitted_to
        {'cases': 2, 'accepted': 1, 'labelled': 1, 'loss': 0.0}
        """
        scores = np.ravel(to_float64("scores", scores))
        decided = np.asarray(accepted)
        if decided.shape != scores.shape or decided.dtype != bool:
            raise ValueError(
                f"Argument `accepted` must hold True or False for each of {len(scores)} scores. "
                f"Received: accepted={shown(accepted)}"
            )
        losses = np.full(len(scores), np.nan) if losses is None else _read_losses(losses)
        if losses.shape != scores.shape:
            raise ValueError(
                f"Argument `losses` must hold one for each of {len(scores)} cases, NaN for those "
                f"without a label. Received: {len(losses)}"
            )
        self._take(scores, decided, losses)
        return self

    def update_losses(self, losses: ArrayLike) -> Self:
        """Takes the losses of accepted cases that it took before without a label.

        In which order labels come must not depend on whether answers are wrong. Left out are cases
        that the risk of the rule is not of: of a precision the answers that are another class, of a
        recall and of false negatives the labels that are.

        Args:
            losses: Numbers in [0, 1], `(n,)`.

        Returns:
            The monitor itself.

        Raises:
            ValueError: If one is none, or they are more than accepted cases without a label.
        """
        losses = _read_losses(losses)
        waiting = self._seen["accepted"] - self._seen["labelled"]
        if np.isnan(losses).any() or len(losses) > waiting:
            raise ValueError(
                f"Argument `losses` must hold losses of the {waiting} accepted cases that have no "
                f"label yet. Received: losses={shown(losses)}"
            )
        for loss in losses:
            self._take_loss(float(loss))
            self._remember()
        return self

    def _take(self, scores, accepted, losses):
        mark = mark_of(scores)
        if mark is not None and mark in self._batches:
            raise ValueError(
                f"Argument `probs` must hold new cases: {len(scores)} with these scores, in this "
                "order, were taken before. Each case counts once; pass labels that come late to "
                f"`update_losses`. Received: scores={shown(scores)}"
            )
        followed = {name: np.empty(len(accepted)) for name in SHARES}
        cases = zip(scores, accepted, losses, strict=True)
        for place, (one_score, is_accepted, one_loss) in enumerate(cases):
            self._take_score(float(one_score))
            self._bets["more"].take(float(is_accepted))
            self._bets["less"].take(1.0 - is_accepted)
            self._seen["cases"] += 1
            self._seen["accepted"] += int(is_accepted)
            if is_accepted and not np.isnan(one_loss):
                self._take_loss(float(one_loss))
            for name, wealth in self._remember().items():
                followed[name][place] = wealth
        if mark is not None:
            first, *later = [*self._batches, mark]
            self._batches = [first, *later[1 - BATCHES :]]
        return followed

    def _take_loss(self, loss):
        self._bets["risk"].take(loss)
        self._seen["labelled"] += 1
        self._seen["loss"] += loss

    def _remember(self):
        """The wealth of each test, whose largest is what raises an alarm."""
        found = self.wealth
        for name, wealth in found.items():
            self._most[name] = max(self._most[name], wealth)
        return found

    def _take_score(self, score):
        if np.isnan(score):
            return
        if len(self._first) < TO_BIN and not len(self._edges):
            self._first.append(float(np.float32(score)))
            if len(self._first) == TO_BIN:
                edges = np.quantile(self._first, np.arange(1, BINS) / BINS)
                self._edges = np.array([rounded(edge) for edge in edges])
                self._first = []
            return
        place = int(np.searchsorted(self._edges, score, side="right"))
        self._bins[place] += 1
        drawn = np.random.default_rng([mark_of_edges(self._edges), int(self._bins.sum())])
        higher = self._bins[place + 1 :].sum() + drawn.random() * self._bins[place]
        self._jumps.take(higher / self._bins.sum())

    @property
    def wealth(self) -> dict[str, float]:
        """Of the tests of the risk, the coverage and the scores, in which they stand now."""
        more, less = self._bets["more"].wealth, self._bets["less"].wealth
        found = {"risk": self._bets["risk"].wealth, "coverage": (more + less) / 2}
        return {**{k: float(v) for k, v in found.items()}, "scores": float(self._jumps.wealth)}

    @property
    def alarms(self) -> list[str]:
        """Names of the tests that have raised one, at any time."""
        return [
            name for name, share in SHARES.items() if self._most[name] >= 1 / (share * self.alpha)
        ]

    @property
    def alarm(self) -> bool:
        """Whether any test has raised one, at any time."""
        return bool(self.alarms)

    @property
    def risk_bound(self) -> float:
        """A bound above the mean risk of the accepted cases so far, valid at all times together.

        It is below the true one ever with a probability of at most `alpha`; 1 without labels.
        """
        return mean_upper_bound(self._seen["loss"], self._seen["labelled"], self.alpha)


def _read_losses(losses):
    found = np.ravel(to_float64("losses", losses))
    if not np.all(np.isnan(found) | ((found >= 0) & (found <= 1))):
        raise ValueError(
            f"Argument `losses` must hold numbers in [0, 1]. Received: losses={shown(losses)}"
        )
    return found


def _check_rule(rule):
    report = getattr(rule, "fitted_to", {})
    fault = None
    if report.get("goal") != "risk":
        fault = "without a promise of the risk"
    elif report["decisions"] != report["examples"] or rule.rank > 2 or rule.multi_label:
        fault = "that decides on several entries of an example"
    elif report["loss"] == SEVERAL:
        fault = f"of several losses, {titles(report, rule)}: watch a rule of each"
    if fault is not None:
        raise ValueError(
            "Argument `rule` must be a RejectionRule or RegressionRule of single decisions, fitted "
            f"to a target_risk of one loss. Received: a {type(rule).__name__} {fault}"
        )


class Watched:
    """Rules that a `Monitor` can watch."""

    def monitor(self, alpha: float = 0.05) -> Monitor:
        """A `Monitor` of what was promised: an alarm if the cases that come show it broken.

        Args:
            alpha: Probability in (0, 1) of ever raising a false alarm.

        Raises:
            ValueError: If the rule promises no risk, or decides on several entries of an example.
        """
        return Monitor(self, alpha)
