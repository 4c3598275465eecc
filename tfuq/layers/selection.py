"""Selection of the random weights of sparse Bayesian layers, by all that may rank them."""

import numpy as np

from tfuq._arguments import check_choice, check_integer, shown
from tfuq._math.rounding import rounded_up
from tfuq.layers.saliency import check_saliency, global_counts
from tfuq.layers.sparse_bayes import ARGUMENTS, RATES

WHICH = ("saliency", "magnitude", "biases", "first", "last", "random")
SALIENCIES = ("gradient", "ivon")
BY_DEPTH = ("first", "last")
_WHY_ALL_ZERO = {
    "saliency": (
        "Argument `loss` must depend on every layer that is to be random. Received: a loss whose "
        "gradients are 0"
    ),
    "magnitude": (
        "Argument `which` must not be 'magnitude' where all weights are 0, which ranks none. "
        "Received: which='magnitude' with weights that are 0"
    ),
}


def check_which(which, saliency, method, seed):
    """Raises ValueError unless the words say one way of choosing weights."""
    check_choice("which", which, WHICH)
    check_choice("saliency", saliency, SALIENCIES)
    check_integer("seed", seed, 0)
    if which != "saliency" and saliency != "gradient":
        raise ValueError(
            "Argument `saliency` must be left out where weights are not chosen by it. "
            f"Received: saliency={shown(saliency)} with which={shown(which)}"
        )
    if method != "gradient" and (which, saliency) != ("saliency", "gradient"):
        raise ValueError(
            "Argument `method` must be left out where weights are not chosen by their gradients. "
            f"Received: method={shown(method)} with which={shown(which)}, "
            f"saliency={shown(saliency)}"
        )


def needs_gradients(which, saliency):
    """Whether gradients choose the weights."""
    return which == "saliency" and saliency == "gradient"


def rankings(which, weights, seed):
    """What ranks weights, the largest first: arrays in the shape of `weights`, dicts by layer.

    By depth the weights of a layer are ranked by chance, and all of them before or behind those of
    the next layer.
    """
    rng, found = np.random.default_rng(seed), []
    for place, named in enumerate(weights):
        depth = {"first": len(weights) - place, "last": place}.get(which, 0)
        ranked = {}
        for name, weight in named.items():
            chance = rng.random(np.shape(weight))
            ranked[name] = np.abs(weight) if which == "magnitude" else chance + depth
        found.append(ranked)
    return found


def choose_layers(layers, which, scope, seed):
    """Selects the random weights of `layers` without a saliency, which is any other `which`.

    Returns whether any variable is new.
    """
    before = _variables(layers)
    if which == "biases":
        _leave_biases(layers)
    weights = [{k: np.asarray(v) for k, v in x.ranked_weights().items()} for x in layers]
    found = rankings(which, weights, seed)
    select_layers(layers, found, "global" if which in BY_DEPTH else scope, which)
    return _variables(layers) != before


def _leave_biases(layers):
    """Gives the layers room for random biases alone: all of them, where they had none."""
    having = [layer for layer in layers if layer.use_bias]
    if not having:
        raise ValueError(
            "Argument `which` must not be 'biases' where no layer has a bias. Received: "
            f"which='biases' with {shown([layer.name for layer in layers])}"
        )
    for layer in layers:
        layer.resize(0)
    for layer in having:
        layer.resize(layer.num_bayesian("bias") or layer.bias.shape[0], "bias")


def less_than_one(layers, which, scope):
    """A few words on layers whose share comes to less than one weight, or none."""
    if scope != "layer" or which in (*BY_DEPTH, "biases"):  # where layers have no share of theirs
        return ""
    few = [layer.name for layer in layers if 0 < layer.r_bayes * np.prod(layer.kernel.shape) < 1]
    if not few:
        return ""
    return (
        f"one random weight in each of {len(few)} layers, of which r_bayes is less than one "
        f"({', '.join(few[:3])}{', ...' if len(few) > 3 else ''})"
    )


def _variables(layers):
    return [id(variable) for layer in layers for variable in layer.weights]


def select_layers(layers, saliencies, scope, which="saliency"):
    """Selects the random weights of `layers` by `saliencies`, dicts of arrays by weight.

    `which` says what the arrays are, for errors.

    With scope `"global"` all kernels are ranked together, and so are all biases: as many weights as
    the layers' shares come to are random, and each layer gets room for those of its own that are
    among the largest of all. Returns whether any variable is new.
    """
    counts = [{name: layer.num_bayesian(name) for name in RATES} for layer in layers]
    for name in RATES if scope == "global" else ():
        having = [i for i, found in enumerate(saliencies) if name in found]
        wanted = [getattr(layers[i], RATES[name]) * np.size(saliencies[i][name]) for i in having]
        total = rounded_up(sum(wanted))
        chosen = global_counts([saliencies[i][name] for i in having], total) if having else []
        for i, count in zip(having, chosen, strict=True):
            counts[i][name] = count
    for layer, found, count in zip(layers, saliencies, counts, strict=True):
        for name, values in found.items():  # before any layer changes
            check_saliency(ARGUMENTS[name], values, getattr(layer, name).shape)
            if count[name] and not np.any(values):
                raise ValueError(f"{_WHY_ALL_ZERO[which]} in all of the {name} of {layer.name!r}")
    before = _variables(layers)
    for layer, found, count in zip(layers, saliencies, counts, strict=True):
        for name in found:
            layer.resize(count[name], name)
        layer.select(found["kernel"], found.get("bias"))
    return _variables(layers) != before
