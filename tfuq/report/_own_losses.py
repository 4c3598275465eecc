"""Effect of any threshold by the losses that a rule was fitted to, unless these are errors."""

from typing import NamedTuple

import numpy as np

from tfuq.report._filling import floats, integers
from tfuq.report._tables import percent
from tfuq.selective.own_loss import is_known, losses_of, own_promises, title

NAMES = {"matrix": "mean cost", "function": "mean loss, {}"}  # of others their title


class OwnLoss(NamedTuple):
    """One of them, of the usable examples in the order of trust."""

    name: str
    """Such as "false negatives of melanoma"."""
    grows: bool
    """Whether what is told is the good share, as of precision and recall."""
    target: float | None
    """What the rule promises of it."""
    is_zero_one: bool
    """Whether it counts examples."""
    losses: np.ndarray
    """In [0, 1], 0 of what does not belong to the risk, `(k,)`."""
    counts: np.ndarray
    """Whether an example belongs to the risk, `(k,)`."""

    def at(self, accepted):
        """The figure of the first so many; NaN where none of them belongs to the risk."""
        counted = np.count_nonzero(self.counts[:accepted])
        risk = self.losses[:accepted].sum() / counted if counted else np.nan
        return 1 - risk if self.grows else risk

    def text(self, accepted):
        return percent(self.at(accepted))

    def payload(self):
        """What the script of a page works on."""
        return {
            "name": self.name,
            "grows": self.grows,
            "target": self.target,
            "zeroOne": self.is_zero_one,
            "losses": floats(self.losses),
            "counts": integers(self.counts.astype(int), 2),
        }


def own_losses(rule, found, ranked):
    """`OwnLoss` of each loss of a rule; none of errors alone, nor of a function not known here.

    Args:
        rule: The rule, or None.
        found: `Given`.
        ranked: `Ranked` of its usable examples.
    """
    if rule is None or rule.fitted_to.get("loss", "error") == "error" or not is_known(rule):
        return []
    order = np.searchsorted(np.flatnonzero(found.usable), ranked.index)
    examples = found.labelled.examples
    probs, labels = np.asarray(examples.probs()), np.asarray(examples.labels)
    made = []
    for loss, target in own_promises(rule):
        losses, counts = losses_of(loss, probs, labels)
        losses = np.where(counts, losses, 0.0)[order]
        told = 1 - target if loss.grows_with_good and target is not None else target
        name = NAMES.get(loss.kind, "{}").format(title(loss.said(), rule.class_names))
        made.append(
            OwnLoss(name, loss.grows_with_good, told, loss.is_zero_one, losses, counts[order])
        )
    return made
