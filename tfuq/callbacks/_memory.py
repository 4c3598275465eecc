"""Memory of Keras' callbacks from epoch to epoch, as arrays of a file and back."""

import keras
import numpy as np

_KEPT = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "best_weights", "stopped_epoch"),
    keras.callbacks.ModelCheckpoint: ("best",),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}
REMEMBERING = tuple(_KEPT)


def memory_of(callbacks):
    """What `callbacks` remember: a description as JSON holds it, and arrays by their names."""
    described, arrays = [], {}
    for number, callback in enumerate(callbacks):
        entry = {"kind": _kind(callback).__name__, "values": {}}
        for name in _KEPT[_kind(callback)]:
            value = getattr(callback, name, None)
            parts = value if isinstance(value, list) else [] if value is None else [value]
            entry["values"][name] = len(parts) if isinstance(value, list) else value is not None
            for place, part in enumerate(parts):
                arrays[_key(number, name, place)] = np.asarray(part)
        described.append(entry)
    return described, arrays


def has_stopped(described, arrays):
    """Whether an `EarlyStopping` among those that were `described` had ended the training."""
    stopping = keras.callbacks.EarlyStopping.__name__
    ended = [i for i, each in enumerate(described) if each["kind"] == stopping]
    return any(arrays[_key(number, "stopped_epoch", 0)] > 0 for number in ended)


def recall(callbacks, described, arrays):
    """Whether `callbacks` are those that were `described`; then they remember what they did."""
    if [_kind(callback).__name__ for callback in callbacks] != [each["kind"] for each in described]:
        return False
    for number, (callback, entry) in enumerate(zip(callbacks, described, strict=True)):
        for name, count in entry["values"].items():
            if name not in _KEPT[_kind(callback)]:
                raise ValueError(f"{name!r}, which {entry['kind']} does not remember")
            found = [arrays[_key(number, name, place)] for place in range(int(count))]
            is_list = not isinstance(count, bool)
            if is_list:
                setattr(callback, name, _as_weights(found, callback.model))
            else:
                setattr(callback, name, found[0].item() if found else None)
    return True


def kinds_of(described):
    """The names of the callbacks that were described, for a message."""
    return ", ".join(str(each["kind"]) for each in described) or "none"


def _as_weights(found, model):
    """Arrays of a file as `model.get_weights()` gives them."""
    weights = model.get_weights()
    if [each.shape for each in found] != [weight.shape for weight in weights]:
        raise ValueError(f"best weights of {len(found)} shapes that are not those of the model")
    pairs = zip(found, weights, strict=True)
    return [each.view(w.dtype) if w.dtype.kind == "V" else each for each, w in pairs]


def _kind(callback):
    return next(kind for kind in _KEPT if isinstance(callback, kind))


def _key(number, name, place):
    return f"callback_{number:03d}_{name}_{place:06d}"
