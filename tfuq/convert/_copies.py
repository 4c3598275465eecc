"""Copies of models with other layers in place of some, and the same weights."""

import copy
import tempfile

import keras

from tfuq._arguments import shown
from tfuq._models.changes import clone_uncompiled
from tfuq._models.meaning import mean_alike
from tfuq._random.draws import warn_of_lost_posterior
from tfuq.convert._twins import WEIGHTS, why_no_twin


def check_graph(model):
    """Raises ValueError unless `model` is a graph of layers that is there already."""
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Argument `model` must be built: call it, or give it an Input. "
            f"Received: {shown(model)}, which is not"
        )
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise ValueError(
            "Argument `model` must be a functional or Sequential Keras model, whose layers can be "
            f"replaced.{_lines_to_write(model)} Received: {shown(model)}"
        )


def _lines_to_write(model):
    """What to write in a subclassed model, whose `call` nobody can read."""
    if not isinstance(model, keras.Model):
        return ""
    held = [name for name, value in vars(model).items() if isinstance(value, keras.layers.Layer)]
    name = held[-1] if held else "layer"
    return (
        " In a subclassed one, write the other layer in `__init__` and give it the trained "
        f"weights once the new model is built:\n    self.{name} = tfuq.layers.<...>(...)"
        f"\n    new_model.{name}.kernel.assign(model.{name}.kernel)  # the bias likewise\n"
    )


def leaves(model, is_wanted):
    """The layers for which `is_wanted`, at any depth, each once; not those inside another one."""
    check_graph(model)
    found, inside = [], set()
    for layer in model._flatten_layers():  # what holds others comes before them
        if id(layer) in inside or not is_wanted(layer):
            continue
        inside |= {id(each) for each in layer._flatten_layers(include_self=False)}
        if not any(layer is each for each in found):
            found.append(layer)
    return [layer for layer in found if id(layer) not in inside]


def chosen_layers(model, candidates, names):
    """Ids of the layers to convert."""
    found = {layer.name: layer for layer in candidates}
    if not found:
        kinds = sorted({type(layer).__name__ for layer in model._flatten_layers()})
        raise ValueError(
            "Argument `model` must hold layers that can be converted, such as Keras' own Dense or "
            f"Conv2D. Received: a model with none of them; it has {kinds}"
        )
    missing = sorted(set(names or ()) - set(found))
    if missing or (names is not None and not names):
        raise ValueError(
            "Argument `layers` must name layers that can be converted, among "
            f"{sorted(found)}. Received: layers={shown(names)}"
        )
    return {id(layer) for layer in candidates if names is None or layer.name in names}


def cloned(model, make):
    """A copy with the same weights, and the pairs of layers for which `make` gave a new one.

    A layer inside another one (`TimeDistributed`, `Bidirectional`) is replaced where the
    configuration of that one holds it.
    """
    warn_of_lost_posterior([model], "the copy")
    copied = []

    def clone(layer):
        new = make(layer)
        if new is None:
            new = layer.__class__.from_config(_configuration(layer, make))
        if isinstance(layer, keras.layers.Layer):  # and no operation, as `x * 2` is
            copied.append((layer, new))
        return new

    new_model = clone_uncompiled(model, clone_function=clone, recursive=True)
    pairs = []
    for layer, new in copied:
        _transfer(layer, new, pairs)
    mean_alike(new_model, model)
    return new_model, pairs


def _configuration(layer, make):
    """That of a layer, with those of other layers in place of those that it holds."""
    config = layer.get_config()
    if not isinstance(layer, keras.layers.Layer):
        return config
    held = {each.name: each for each in layer._flatten_layers(include_self=False)}
    return _with_others(config, held, make) if held else config


def _with_others(config, held, make):
    if isinstance(config, (list, tuple)):
        return type(config)(_with_others(each, held, make) for each in config)
    if not isinstance(config, dict):
        return config
    inner = config.get("config")
    if "class_name" in config and isinstance(inner, dict) and inner.get("name") in held:
        new = make(held[inner["name"]])
        if new is not None:
            return keras.saving.serialize_keras_object(new)
    return {name: _with_others(value, held, make) for name, value in config.items()}


def _transfer(layer, new, pairs):
    """Gives `new` the weights of `layer`, and so of what they hold; notes pairs that differ."""
    new.trainable = layer.trainable
    has_lora = getattr(layer, "lora_enabled", False)
    if type(new) is not type(layer) or has_lora != getattr(new, "lora_enabled", False):
        pairs.append((layer, new))
        for name in WEIGHTS:
            if getattr(layer, name, None) is not None and hasattr(new, name):
                value = keras.ops.convert_to_tensor(getattr(layer, name))
                weight = getattr(new, name)  # of members, perhaps, who all start from it
                weight.assign(keras.ops.broadcast_to(value, weight.shape))
    else:
        weights = own_weights(layer), own_weights(new)
        _check_same_shapes(layer, *weights)
        for old, weight in zip(*weights, strict=True):
            weight.assign(old)
        _transfer_adapted(layer, new)
    for old, each in _held_by_both(layer, new):
        _transfer(old, each, pairs)


def _transfer_adapted(layer, new):
    """What Keras' preprocessing layers have learned by `adapt`, which is not in their weights.

    Of a `Normalization` it follows from them, but only where it is told to.
    """
    if not hasattr(layer, "finalize_state"):
        return
    if hasattr(layer, "save_assets"):  # a vocabulary, by the way it goes into a file
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            new.load_assets(folder)
    for name in ("summary", "bin_boundaries"):
        if hasattr(layer, name):
            setattr(new, name, copy.copy(getattr(layer, name)))
    new.finalize_state()


def _check_same_shapes(layer, old, new):
    """Raises ValueError unless a layer that its configuration made again has the same weights."""
    shapes = [[tuple(weight.shape) for weight in weights] for weights in (old, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Argument `model` must hold layers that can be made again from their configurations. "
            "Layers whose inner layers were quantized one by one (attention's projections) "
            f"cannot. Received: {shown(layer.path)} with weights of shapes {shapes[0]}, made again "
            f"{shapes[1]}"
        )


def _held(layer):
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_weights(layer):
    inner = {id(weight) for each in _held(layer) for weight in each.weights}
    return [weight for weight in layer.weights if id(weight) not in inner]


def _held_by_both(layer, new):
    """Pairs of the layers that two layers hold: by attribute, or else in order."""
    named = [_by_attribute(layer), _by_attribute(new)]
    held = [_held(layer), _held(new)]
    if named[0].keys() == named[1].keys() and len(named[0]) == len(held[0]) == len(held[1]):
        return [(named[0][name], named[1][name]) for name in named[0]]
    return zip(*held, strict=True)


def _by_attribute(layer):
    return {n: each for n, each in vars(layer).items() if isinstance(each, keras.layers.Layer)}


def left_over(model, candidates, chosen, pairs, table, why_not="it is not among `layers`"):
    """Of each layer with weights of its own that was not converted `(class, why)`, by name."""
    changed = {id(old) for old, _ in pairs}
    changed |= {id(each) for old, _ in pairs for each in old._flatten_layers()}
    left, holders = [], recurrent_holders(model)
    for layer in model._flatten_layers():
        if id(layer) in changed or not own_weights(layer):
            continue
        if any(layer is each for each in candidates):
            is_inside = id(layer) in chosen
            why = "another layer builds it" if is_inside else why_not
        else:
            why = why_no_twin(layer, table)
        left.append((holders.get(id(layer), layer), why))
    return by_name((layer, (type(layer).__name__, why)) for layer, why in left)


def recurrent_holders(model):
    """The recurrent layer of each cell, which is what its user has written, by the cell's id."""
    found = {}
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN):
            found |= {id(each): layer for each in layer._flatten_layers(include_self=False)}
    return found


def by_name(pairs):
    """`{name: what}` of pairs of a layer and what is said of it; by path where names repeat."""
    pairs = list({id(layer): (layer, said) for layer, said in pairs}.values())
    names = [layer.name for layer, _ in pairs]
    found = {}
    for layer, said in pairs:
        name = layer.name if names.count(layer.name) == 1 else layer.path
        while name in found:
            name += "'"
        found[name] = said
    return found


def check_all_changed(candidates, chosen, pairs):
    """Raises ValueError if no layer that was chosen could be reached."""
    changed = {id(old) for old, _ in pairs}
    if not changed & chosen:
        names = sorted(layer.name for layer in candidates if id(layer) in chosen)
        raise ValueError(
            "Argument `model` must hold layers that can be converted, as layers of its own or in "
            "the configuration of a layer of its own. Received: a model whose layers "
            f"build {names} themselves"
        )


def conversions(pairs, chosen):
    """`{name: (old class, new class)}` of the layers that were converted."""
    return by_name(
        (old, (type(old).__name__, type(new).__name__)) for old, new in pairs if id(old) in chosen
    )
