"""The other callbacks of a `fit`: those that exclude one another, and who is called last."""

import keras

from tfuq._models.train_step import callbacks_of_fit, list_of_fit


def check_alone(callback, why, folder=None):
    """Raises ValueError if another callback of this kind trains the model in the same `fit`.

    `folder` is the name of an attribute: then only those with the same one are meant.
    """
    kind = next(each for each in type(callback).__mro__ if each.__module__.startswith("tfuq."))
    others = [each for each in callbacks_of_fit(callback) if isinstance(each, kind)]
    if folder is not None:
        own = str(getattr(callback, folder))
        others = [each for each in others if str(getattr(each, folder)) == own]
    if len(others) > 1:
        what = kind.__name__ if folder is None else f"{kind.__name__} of one `{folder}`"
        raise ValueError(
            f"Argument `callbacks` of `fit` must hold one {what}: {why}. Received: {len(others)}"
        )


def others_of(callback, kinds):
    """The other callbacks of the same `fit` that are of one of `kinds`."""
    found = callbacks_of_fit(callback)
    return [each for each in found if each is not callback and isinstance(each, kinds)]


def move_behind(callback, kinds):
    """Lets `callback` be called after all others of `kinds` from the next hook on."""
    callbacks = callbacks_of_fit(callback)
    behind = [i for i, each in enumerate(callbacks) if isinstance(each, kinds)]
    if behind and behind[-1] > callbacks.index(callback):
        others = [each for each in callbacks if each is not callback]
        # A new list, because the old one is being gone through.
        list_of_fit(callback).callbacks = [*others[: behind[-1]], callback, *others[behind[-1] :]]


def names_of(callbacks):
    """The names of the kinds of callbacks, each once, without those that Keras adds."""
    usual = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
    kinds = (type(each) for each in callbacks if not isinstance(each, usual))
    return list(dict.fromkeys(kind.__name__ for kind in kinds))
