"""Arguments that are True or False refuse anything else, in all classes that have a public name."""

import importlib
import inspect

import pytest

PACKAGES = ("callbacks", "corruptions", "layers", "losses", "metrics", "ood", "optimizers")
PACKAGES += ("ensembles", "interpret", "preprocessing", "selective")
NEEDED = {
    "corruption": "gaussian_noise",
    "directory": "backup",
    "filters": 2,
    "height": 8,
    "key_dim": 2,
    "kernel_size": 2,
    "kl_weight": 0.1,
    "num_classes": 3,
    "num_factors": 2,
    "num_heads": 2,
    "num_outputs": 3,
    "rate": 0.2,
    "severity": 1,
    "units": 3,
}


def flags():
    """Classes with what they need, and their arguments that are True or False by default."""
    for package in PACKAGES:
        module = importlib.import_module(f"tfuq.{package}")
        for name in module.__all__:
            kind = getattr(module, name)
            if inspect.isclass(kind):
                yield from of_class(f"{package}.{name}", kind)


def of_class(name, kind):
    parameters = inspect.signature(kind.__init__).parameters
    needed = {key: NEEDED[key] for key in parameters if key in NEEDED}
    if "last_layer" in parameters:  # to which the weight belongs
        needed.pop("kl_weight")
    theirs = [each for each in kind.__mro__ if each.__module__.startswith("keras.src.layers")]
    theirs = [set(inspect.signature(each.__init__).parameters) for each in theirs]
    for key, parameter in parameters.items():
        is_of_keras = any(key in names for names in theirs)  # which takes what is true
        if isinstance(parameter.default, bool) and not is_of_keras:
            yield pytest.param(kind, needed, key, id=f"{name}.{key}")


@pytest.mark.parametrize("kind, needed, flag", flags())
def test_what_is_neither_true_nor_false_is_refused(kind, needed, flag):
    try:
        kind(**needed)
    except TypeError:
        pytest.skip("made of what is no number")
    for value in ("yes", 1, None):
        with pytest.raises(ValueError, match=rf"`{flag}` must be .*Received: {flag}="):
            kind(**{**needed, flag: value})


def test_there_are_many():
    assert len(list(flags())) > 80
