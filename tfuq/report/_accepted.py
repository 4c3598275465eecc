"""Accepted answers, class by class: what becomes of each class, and what an answer is worth."""

import numpy as np

from tfuq._math.bounds import wilson_interval
from tfuq.report._tables import Table, number, percent, with_interval
from tfuq.selective.own_loss import is_known, own_loss, own_promises, risk_in_words

HEADER = (
    *("class", "examples", "accepted", "accepted ones called so", "answers"),
    "of these right",
)
NOTE = "Intervals are Wilson's at 95 %."
MOST_NAMED = 8  # classes in a sentence


def class_counts(ranked, classes, threshold):
    """Counts `(classes, 4)`: examples, accepted ones, those called so, and answers."""
    accepted = ranked.count(threshold)
    labels, predicted = ranked.labels[:accepted], ranked.predicted[:accepted]
    right = labels[labels == predicted]
    parts = (ranked.labels, labels, right, predicted)
    return np.stack([np.bincount(part, minlength=classes)[:classes] for part in parts], axis=-1)


def class_table(counts, names):
    """`Table` of sensitivity and precision of the accepted, with intervals."""
    rows = [
        [
            *(name, number(total), share(taken, total), rate(right, taken)),
            *(number(told), rate(right, told)),
        ]
        for name, (total, taken, right, told) in zip(names, counts.tolist(), strict=True)
    ]
    return Table("Accepted answers, class by class", list(HEADER), rows, NOTE)


def share(count, total):
    """A count with its share, such as "12 (30.0 %)"."""
    return f"{number(count)} ({percent(count / total)})" if total else number(count)


def rate(count, total):
    """A rate with its interval; a dash where there is nothing to count."""
    return with_interval(count / total if total else np.nan, *wilson_interval(count, total))


def only_text(counts, names):
    """Which classes no accepted answer names, though there are such examples; "" if none."""
    _, taken, _, told = counts.T
    silent = np.flatnonzero((told == 0) & (counts[:, 0] > 0))
    if not silent.size or not told.any():
        return ""
    answered = [names[k] for k in np.flatnonzero(told)]
    text = f"It answers only {_listed(answered)}. "
    missed = int(taken[silent].sum())
    return text + (
        f"No answer is {_listed([names[k] for k in silent])}: of {number(missed)} accepted "
        "cases of these every one is called something else."
        if missed
        else f"No case of {_listed([names[k] for k in silent])} is accepted."
    )


def own_risks_text(rule, found, groups):
    """What is found of the losses that a rule was fitted to, where these are not errors alone.

    Args:
        rule: The rule.
        found: `Given`.
        groups: Of all examples, for a rule by group, or None.
    """
    if rule.fitted_to.get("loss", "error") == "error" or not is_known(rule):
        return ""
    rows = found.usable
    score = None if found.beside is None else found.beside[rows]
    groups = None if groups is None else groups[rows]
    judged = rule.evaluate(found.rows, found.labels, groups, score=score)
    if judged.losses and len(judged.losses) > 1:
        told = [loss for loss, target in own_promises(rule) if target is not None]
        told = zip(told, judged.losses, strict=True)
        each = [f"{entry['loss']} {percent(_shown(loss, entry))}" for loss, entry in told]
        return f" By the losses that it was fitted to: {', '.join(each)}."
    words = risk_in_words(own_loss(rule), rule.class_names)
    return f" By the loss that it was fitted to the risk is {percent(judged.risk)}: {words}."


def _shown(loss, entry):
    """Of precision and recall the good share, of other losses the risk."""
    return 1 - entry["risk"] if loss.grows_with_good else entry["risk"]


def _listed(names):
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def promise_text(threshold, decision, marks, has_promise, wrong="are wrong"):
    """Whether anything is promised at a threshold, and the interval of the accepted errors.

    Args:
        threshold: A number.
        decision: What it accepts, with counts `accepted` and `wrong`.
        marks: `(name, threshold)` of the rule.
        has_promise: Whether the rule promises a risk.
        wrong: What those that count as wrong are; None where nothing does.
    """
    seen = ""
    if not decision.accepted:
        seen = " Nothing is accepted."
    elif wrong is not None:
        seen = (
            f" Of the accepted here {rate(decision.wrong, decision.accepted)} {wrong}, an interval "
            "for a threshold that was chosen before these examples were seen."
        )
    at = [np.float32(mark) == np.float32(threshold) for _, mark in marks]
    if has_promise and len(marks) == 1 and at[0]:
        return f"This is the rule's threshold: what is said of it above is promised here.{seen}"
    if has_promise and len(marks) == 1:
        return (
            f"Nothing is promised at this threshold, only at the rule's, {marks[0][1]:.6g}.{seen}"
        )
    if has_promise:
        return (
            "Nothing is promised at one threshold for all: the rule has one for each class or "
            f"group.{seen}"
        )
    why = "the rule was given by hand or for a coverage" if marks else "there is no rule"
    return f"Nothing is promised: {why}.{seen}"
