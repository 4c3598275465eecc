"""Names of classes: labels by them, and what several parts say they are."""

import numpy as np

from tfuq._arguments import shown


def checked_names(class_names, argument="class_names"):
    """The argument `class_names` as a list of texts, or None."""
    if class_names is None:
        return None
    is_list = np.iterable(class_names) and not isinstance(class_names, (str, bytes, dict))
    names = list(class_names) if is_list else [None]
    fit = all(isinstance(name, str) and name for name in names)
    if not names or not fit or len(set(names)) < len(names):
        raise ValueError(
            f"Argument `{argument}` must be a list of different texts, one for each class in its "
            f"order. Received: {argument}={shown(class_names)}"
        )
    return [str(name) for name in names]


def check_count(class_names, classes, argument="class_names"):
    """Raises ValueError unless there are names for all classes; one column is two classes."""
    wanted = 2 if classes == 1 else classes
    if class_names is not None and len(class_names) != wanted:
        raise ValueError(
            f"Argument `{argument}` must name the {wanted} classes of the predictions. Received: "
            f"{len(class_names)} names, {_listed(class_names)}"
        )


def agreed_names(given):
    """The names that all agree on, of a dict `{who: names or None}`; None if nobody knows any."""
    known = {who: list(names) for who, names in given.items() if names is not None}
    if not known:
        return None
    (first, names), *others = known.items()
    for who, theirs in others:
        if theirs != names:
            raise ValueError(
                "Argument `class_names` must be the same everywhere, in the same order. Received: "
                f"{_listed(names)} of {first}, {_listed(theirs)} of {who}"
            )
    return names


def called(classes, class_names):
    """Classes, which are numbers or texts of such, by their names where these are known."""
    return [class_names[int(k)] for k in classes] if class_names else list(classes)


def numbered(labels, class_names, argument="labels"):
    """Labels as numbers: names of classes by their places, all others as they are.

    Raises:
        ValueError: If labels are texts and no names are known, or a text is none of them.
    """
    try:
        array = np.asarray(labels)
    except ValueError:  # ragged, which whoever reads numbers says
        return labels
    if array.dtype.kind not in "OUS":
        return labels
    texts = [_text(value) for value in array.ravel().tolist()]
    if not any(isinstance(text, str) for text in texts):
        return labels  # numbers in an array of objects
    if class_names is None:
        raise ValueError(
            f"Argument `{argument}` must hold numbers where `class_names` are not known. "
            f"Received: {_listed(sorted({str(text) for text in texts}))}"
        )
    places = {name: place for place, name in enumerate(class_names)}
    unknown = sorted({str(text) for text in texts if text not in places})
    if unknown:
        raise ValueError(
            f"Argument `{argument}` must hold names of the classes, {_listed(class_names)}. "
            f"Received: {_listed(unknown)}"
        )
    return np.array([places[text] for text in texts], "int64").reshape(array.shape)


def _text(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _listed(names, most=10):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
