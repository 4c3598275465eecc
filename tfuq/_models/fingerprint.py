"""Fingerprint of a model: every byte of its weights, and the shape of its outputs.

Where draws of the network count, the posterior that its optimizer keeps belongs to it.
"""

import hashlib
import json

import keras
import numpy as np

from tfuq._arguments import shown
from tfuq._models.logit_layer import is_head
from tfuq._random.draws import posterior_state

_PLAIN = (bool, int, float, str, type(None))
_BESIDE = ("name", "trainable", "seed")  # of a layer's config: nothing that a prediction shows


def networks_of(model):
    """The Keras models in a model, an ensemble or features of a model; None of a function."""
    if isinstance(model, keras.Model):
        return [model]
    members = getattr(model, "members", None) or [getattr(model, "model", None)]
    return list(members) if all(isinstance(each, keras.Model) for each in members) else None


def fingerprint(model, draws=False):
    """`{"weights": digest, "outputs": shapes}`, or None where there is nothing to know it by.

    With `draws` the weights are those of all networks that may be drawn from the model.
    """
    networks = networks_of(model)
    if networks is None:
        return None
    return {
        "weights": weights_digest(_arrays_of(model, networks, draws)),
        "outputs": [_output_shape(each) for each in networks],
    }


def _arrays_of(model, networks, draws):
    found = [weight for each in networks for weight in each.weights]
    return [*found, *posterior_state(model)] if draws else found


def quick_mark(model, draws=False):
    """A number that changes when a weight does, found many times faster than a digest."""
    total = 0
    for number, weight in enumerate(_arrays_of(model, networks_of(model) or (), draws)):
        array = np.ascontiguousarray(weight)
        words = array.reshape(-1).view("uint8" if array.nbytes % 4 else "uint32")
        total += (number + 1) * int(words.sum(dtype="uint64"))
    return total


def weights_digest(weights):
    """A mark of arrays, in order: dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for weight in weights:
        array = np.ascontiguousarray(weight)
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def layers_digest(model):
    """A mark of the layers that a model is made of: classes, and what their configs plainly say."""
    found = [[type(layer).__name__, plain_config(layer)] for layer in model._flatten_layers()]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def plain_config(layer):
    """Numbers and texts of a layer's config, such as activation and strides; {} of containers."""
    if list(layer._flatten_layers(include_self=False)) and not is_head(layer):
        return {}
    try:
        config = layer.get_config()
    except Exception:  # a class of the user's that has none raises what it likes
        return {}
    return {key: value for key, value in config.items() if key not in _BESIDE and _is_plain(value)}


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _output_shape(model):
    """Shape of the output, as JSON can hold it; None of a model that does not tell."""
    shape = getattr(model, "output_shape", None)
    return json.loads(json.dumps(shape, default=str))


def check_known(known, model, draws=False):
    """Raises ValueError unless `known` is the fingerprint of the model."""
    found = fingerprint(model, draws)
    if found != known:
        same = found is not None and found["weights"] == known["weights"]
        differs = "another output" if same else "other weights"
        raise ValueError(
            "Argument `model` must be the one that the detector was fitted to, with the same "
            "weights: fit again, or pass `check_model=False` if you mean another model. Received: "
            f"a model of {differs}, {found} instead of {known}"
        )


def checked_fingerprint(known):
    """What a file says of a model, or ValueError if that is no fingerprint."""
    if known is not None and not (isinstance(known, dict) and set(known) == {"weights", "outputs"}):
        raise ValueError(f"a model of {shown(known)}")
    return known
