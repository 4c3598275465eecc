"""Losses of a rejection rule: which answers count as lost, and among which."""

import warnings
from typing import NamedTuple

import keras
import numpy as np

from tfuq._arguments import (
    check_fraction,
    check_integer,
    is_finite,
    shown,
    to_float64,
)
from tfuq._predictions.class_names import called

LOSSES = ("error", "false_negative", "precision", "recall")
MATRIX, FUNCTION = "loss_matrix", "loss_function"  # of a report: costs, a function's name
SEVERAL = "several"  # the word for more than one in a rule's report
OF = {
    "false negatives of ": "false_negative",
    "precision of ": "precision",
    "recall of ": "recall",
}
_FORMS = (
    '"error", "false negatives of A", "recall of A", "precision of A" (A a class, or "A or B" as '
    'one, or "A and B" with a promise each), a function or costs'
)


class Loss(NamedTuple):
    """What is lost, as numbers in [0, 1], and which examples belong to the risk."""

    kind: str  # one of LOSSES, "matrix" or "function"
    classes: tuple = ()  # of all but errors: these count as one class
    value: object = None  # costs or a function

    @property
    def is_named(self):
        """Whether answers and labels alone say it, as 0 or 1."""
        return self.kind in LOSSES

    @property
    def is_zero_one(self):
        """Whether it can be no other number than 0 or 1."""
        is_matrix = self.kind == "matrix"
        return self.is_named or (is_matrix and bool(np.isin(self.value, (0, 1)).all()))

    @property
    def grows_with_good(self):
        """Whether what is promised is the good share, 1 less the risk."""
        return self.kind in ("precision", "recall")

    @property
    def word(self):
        """The word for reports."""
        if self.kind == "function":
            return f"function {getattr(self.value, '__name__', type(self.value).__name__)}"
        return self.kind

    def said(self):
        """What it is, a dict for reports, which know registered functions again."""
        if self.kind == "matrix":
            return {"loss": self.word, MATRIX: self.value.tolist()}
        if self.kind == "function":
            name = _registered_name(self.value)
            return {"loss": self.word, **({} if name is None else {FUNCTION: name})}
        if not self.classes:
            return {"loss": self.word}
        one = self.classes[0] if len(self.classes) == 1 else list(self.classes)
        return {"loss": self.word, "positive_class": one}

    def of_answers(self, predicted, labels):
        """Losses and whether entries belong to the risk, bool, of answers `(entries,)`."""
        if self.kind == "error":
            return predicted != labels, np.broadcast_to(np.True_, labels.shape)
        is_answer, is_label = (_is_one_of(part, self.classes) for part in (predicted, labels))
        if self.kind == "precision":
            return ~is_label, is_answer
        return ~is_answer, is_label


def _registered_name(function):
    """Under which name Keras knows a function, or None; objects that are called have no name."""
    if not hasattr(function, "__name__"):
        return None
    name = keras.saving.get_registered_name(function)
    return name if keras.saving.get_registered_object(name) is function else None


def _is_one_of(values, classes):
    return values == classes[0] if len(classes) == 1 else np.isin(values, classes)


class Promise(NamedTuple):
    """A loss, and the risk that is to be kept."""

    loss: Loss
    target_risk: float


def title(said, class_names=None):
    """The name of a loss from its entry in a report, such as "precision of melanoma"."""
    classes = classes_of(said)
    if not classes:
        return said["loss"]
    words = {kind: text for text, kind in OF.items()}
    return words[said["loss"]] + " or ".join(str(name) for name in called(classes, class_names))


def titles(report, rule):
    """The names of a rule's losses."""
    return [title(entry, rule.class_names) for entry in report["losses"]]


def classes_of(said):
    """The classes of an entry of a report, a tuple."""
    found = said.get("positive_class", ())
    return tuple(int(k) for k in (found if isinstance(found, (list, tuple)) else [found]))


def is_several(loss):
    """Whether the argument `loss` is several with their targets: a dict, or a list of pairs."""
    if isinstance(loss, dict):
        return True
    is_list = isinstance(loss, (list, tuple)) and len(loss) > 0
    return is_list and all(isinstance(pair, (list, tuple)) and _is_pair(pair) for pair in loss)


def _is_pair(pair):
    is_loss = len(pair) == 2 and (isinstance(pair[0], str) or callable(pair[0]))
    return is_loss or (len(pair) == 2 and np.ndim(pair[0]) == 2)


def promises_of(loss, positive_class, target_risk, class_names):
    """The argument `loss`, one or several, as a list of `Promise`."""
    if not is_several(loss):
        found = [Promise(read_loss(loss, positive_class, class_names), target_risk)]
    else:
        found = _several(loss, positive_class, class_names)
    for promise in found:
        if promise.target_risk is not None:
            _warn_if_low(*promise, class_names)
    return found


def _several(loss, positive_class, class_names):
    if is_chosen(positive_class):
        raise ValueError(
            "Argument `positive_class` must be left out for several losses, which name their "
            f"classes. Received: positive_class={shown(positive_class)}"
        )
    return read_losses(loss, class_names)


def own_promises(rule, loss=None, positive_class=1):
    """The argument `loss` as a list of `Promise`, if None what the rule was fitted to."""
    report = rule.fitted_to
    if loss is not None:
        return promises_of(loss, positive_class, None, rule.class_names)
    if is_chosen(positive_class):
        raise ValueError(
            "Argument `positive_class` must be left out without `loss`: the rule was fitted to "
            f"{shown(report.get('loss'))}. Received: positive_class={shown(positive_class)}"
        )
    if getattr(rule, "_promises", None):  # of this process, functions among them
        return rule._promises
    entries = report["losses"] if report.get("loss") == SEVERAL else [report]
    losses = [_kept(entry) for entry in entries]
    unknown = [entry["loss"] for entry, loss in zip(entries, losses, strict=True) if loss is None]
    if unknown:
        raise ValueError(
            "Argument `loss` must be given, because a rule's file holds no functions, only names "
            "of registered ones (keras.saving.register_keras_serializable). Pass the loss that "
            "the rule was fitted to, or 'error'. Received: loss=None with a rule fitted to "
            f"{shown(unknown[0])}"
        )
    targets = [entry.get("target_risk") for entry in entries]
    return [Promise(*pair) for pair in zip(losses, targets, strict=True)]


def known_by(rule, promises):
    """The rule, which knows the functions that it was fitted to while this process runs."""
    rule._promises = promises
    return rule


def _kept(entry):
    """The `Loss` of an entry of a report; None of a function that is not known here."""
    name = entry.get("loss", "error")
    if name in LOSSES:
        return Loss(name, classes_of(entry))
    if MATRIX in entry:
        return Loss("matrix", value=np.asarray(entry[MATRIX], "float64"))
    known = FUNCTION in entry and keras.saving.get_registered_object(entry[FUNCTION])
    is_function = callable(known) and not isinstance(known, type)
    return Loss("function", value=known) if is_function else None


def first_of(promises):
    """The one loss that is read, errors if there are several."""
    return promises[0].loss if len(promises) == 1 else Loss("error")


def said_of(promises, several):
    """What the losses are, for the report of a rule."""
    if not several:
        return promises[0].loss.said()
    entries = [{**loss.said(), "target_risk": target} for loss, target in promises]
    return {"loss": SEVERAL, "losses": entries}


def is_chosen(positive_class):
    """Whether the argument is another than its default, 1."""
    return positive_class is not None and (np.ndim(positive_class) > 0 or positive_class != 1)


def read_loss(loss, positive_class, class_names):
    """The argument `loss`, one, as a `Loss`; `positive_class` where the loss does not name it."""
    if is_chosen(positive_class) and not (isinstance(loss, str) and loss in LOSSES[1:]):
        raise ValueError(
            f"Argument `positive_class` must be left out unless `loss` is one of {LOSSES[1:]}: "
            "other losses have no class, or name it themselves. Received: "
            f"positive_class={shown(positive_class)} with loss={shown(loss)}"
        )
    if callable(loss):
        return Loss("function", value=loss)
    if not isinstance(loss, str):
        return Loss("matrix", value=_checked_costs(loss))
    for text, kind in OF.items():
        if loss.startswith(text):
            return Loss(kind, _named(loss, loss[len(text) :], class_names))
    if loss not in LOSSES:
        raise ValueError(
            f"Argument `loss` must be one of {', '.join(map(repr, LOSSES))}, one of {_FORMS}. "
            f"Received: loss={shown(loss)}"
        )
    if loss == "error":
        return Loss(loss)
    return Loss(loss, _checked_classes(positive_class, class_names))


def read_losses(losses, class_names):
    """The argument `loss`, several with their targets, as a list of `Promise`."""
    pairs = list(losses.items()) if isinstance(losses, dict) else list(losses)
    if not pairs:
        raise ValueError(f"Argument `loss` must hold at least one of {_FORMS}. Received: {losses}")
    found = []
    for loss, target in pairs:
        check_fraction("loss", target)
        if target in (0, 1):
            raise ValueError(
                "Argument `loss` must hold targets in (0, 1), one for each loss. "
                f"Received: {shown(target)} for {shown(loss)}"
            )
        for each in _each(loss, class_names):
            read = read_loss(each, None, class_names)
            risk = round(1 - float(target), 12) if read.grows_with_good else float(target)
            found.append(Promise(read, risk))
    names = [(promise.loss.word, promise.loss.classes) for promise in found]
    twice = [name for name in names if names.count(name) > 1 and name[0] in LOSSES]
    if twice:
        raise ValueError(
            "Argument `loss` must hold each loss once. Received: "
            f"{shown(_title_of(twice[0], class_names))} {names.count(twice[0])} times"
        )
    return found


def _warn_if_low(loss, risk, class_names):
    """Warns of a precision or a recall that is promised to be below one half."""
    if loss.grows_with_good and risk > 0.5:
        warnings.warn(
            f"The rule promises a {title(loss.said(), class_names)} of at least {1 - risk:.3g} "
            f"only. For one of at least {risk:.3g} pass target_risk={1 - risk:.3g} or, among "
            f"several losses, the target {risk:.3g}.",
            stacklevel=4,
        )


def _title_of(name, class_names):
    return title({"loss": name[0], "positive_class": list(name[1])}, class_names)


def _each(loss, class_names):
    """A loss, or one for each of the classes that "and" stands between."""
    for text in OF if isinstance(loss, str) else ():
        rest = loss[len(text) :]
        if loss.startswith(text) and rest not in (class_names or ()) and " and " in rest:
            return [text + name for name in rest.split(" and ")]
    return [loss]


def _named(loss, text, class_names):
    """Classes by their names or numbers; " or " stands between several."""
    names = [text] if text in (class_names or ()) else text.split(" or ")
    found = []
    for name in names:
        if name in (class_names or ()):
            found.append(class_names.index(name))
        elif name.isdecimal():
            found.append(int(name))
        else:
            known = f"one of {shown(class_names)}" if class_names else "a number"
            raise ValueError(
                f"Argument `loss` must name a class, {known}, in {shown(loss)}. "
                f"Received: {shown(name)}"
                + ("" if class_names else " (names are known by `class_names`)")
            )
    return _once(found)


def _checked_classes(positive_class, class_names):
    """The argument `positive_class`, a class or several, numbers or names, as a tuple."""
    is_one = np.ndim(positive_class) == 0
    found = [positive_class] if is_one else list(positive_class)
    names = class_names or []
    found = [names.index(k) if isinstance(k, str) and k in names else k for k in found]
    for k in found:
        check_integer("positive_class", k, 0)
    return _once(found)


def _once(classes):
    found = tuple(int(k) for k in classes)
    if not found or len(set(found)) < len(found):
        raise ValueError(
            "Argument `positive_class` must be a class or several different ones. "
            f"Received: {shown(list(found))}"
        )
    return found


def losses_of(loss, probs, labels):
    """Losses in [0, 1] of a `Loss` and whether an entry belongs to the risk, `(entries,)`."""
    if loss.kind == "function":
        values = to_float64("loss", loss.value(probs, labels))
        if values.shape != labels.shape or not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                f"Argument `loss` must return {len(labels)} numbers in [0, 1]. "
                f"Received: {values.shape} from {values.min(initial=0)} to {values.max(initial=0)}"
            )
        return values, np.ones(len(labels), bool)
    predicted = probs.argmax(-1)
    if loss.kind == "matrix":
        return costs_of(loss, predicted, labels, probs.shape[-1]), np.ones(len(labels), bool)
    values, counts = loss.of_answers(predicted, labels)
    check_counts(loss, counts, predicted, labels)
    return values.astype("float64"), counts


def costs_of(loss, predicted, labels, classes):
    """Costs of answers, of as many classes as there are."""
    if loss.value.shape != (classes, classes):
        raise _no_costs((classes, classes), loss.value)
    return loss.value[labels, predicted]


def check_counts(loss, counts, predicted, labels, argument="positive_class"):
    """Raises ValueError if no entry belongs to the risk."""
    if counts.any():
        return
    holders = "answers" if loss.kind == "precision" else "labels"
    held = np.unique(predicted if loss.kind == "precision" else labels)
    raise ValueError(
        f"Argument `{argument}` must be a class that the {holders} hold. Received: "
        f"{argument}={shown(loss.said()['positive_class'])} with {holders} of {held}"
    )


def _checked_costs(loss):
    try:
        costs = to_float64("loss", loss)
    except ValueError:
        raise _no_costs("(classes, classes)", loss) from None
    if costs.ndim != 2 or not np.all((costs >= 0) & (costs <= 1)):
        raise _no_costs("(classes, classes)", loss)
    return costs


def _no_costs(shape, loss):
    return ValueError(
        f"Argument `loss` must be one of {LOSSES}, a function, costs in [0, 1] of shape "
        f"{shape}, or several with their targets: a dict or list of pairs of {_FORMS}. "
        f"Received: loss={shown(loss)}"
    )


def faults_of_losses(report):
    """What is wrong with the losses of a rule's report, as texts."""
    if report.get("loss") != SEVERAL:
        if report.get("loss") in LOSSES[1:] and not _are_classes(report.get("positive_class")):
            yield "no number 'positive_class'"
        yield from _faults_of_value(report)
        return
    entries = report.get("losses")
    if not isinstance(entries, list) or not entries:
        yield "no list of losses"
        return
    for entry in entries:
        fine = isinstance(entry, dict) and isinstance(entry.get("loss"), str)
        if not fine or not is_finite(entry.get("target_risk")) or not 0 < entry["target_risk"] < 1:
            yield "a loss without a target"
        elif entry["loss"] in LOSSES[1:] and not _are_classes(entry.get("positive_class")):
            yield "a loss without its class"
        else:
            yield from _faults_of_value(entry)


def _faults_of_value(entry):
    if not isinstance(entry.get(FUNCTION, ""), str):
        yield "a function without a name"
    try:
        costs = np.asarray(entry.get(MATRIX, [[0]]), "float64")
    except (TypeError, ValueError):
        costs = np.zeros(1)
    is_square = costs.ndim == 2 and costs.shape[0] == costs.shape[1] > 0
    if not is_square or not np.all((costs >= 0) & (costs <= 1)):
        yield "a cost matrix that is none"


def _are_classes(found):
    found = found if isinstance(found, list) else [found]
    return bool(found) and all(is_finite(k) and k >= 0 and int(k) == k for k in found)
