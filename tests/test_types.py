"""Types of the public API: every signature is annotated, and its names are known."""

import importlib
import inspect
import typing

import pytest
from test_api import PUBLIC

import tfuq

EMPTY = inspect.Parameter.empty


def own(thing):
    return getattr(thing, "__module__", "").startswith("tfuq")


def written(kind):
    """`(name, function)` of a class: its constructor, public methods and properties, of all that
    it inherits from tfuq."""
    for base in kind.__mro__:
        if not own(base):
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            public = not name.startswith("_") or name in ("__init__", "__call__")
            if public and inspect.isfunction(function):
                yield f"{base.__name__}.{name}", function


def public_functions():
    """`{(module, name): function}` of the table of public names."""
    found = {}
    things = [getattr(importlib.import_module(module), name) for module, name in PUBLIC]
    for thing in [*things, *(getattr(tfuq, name) for name in tfuq.__all__)]:
        if inspect.isclass(thing):
            pairs = written(thing)
        else:
            pairs = [(getattr(thing, "__name__", ""), thing)] * inspect.isfunction(thing)
        for name, function in pairs:
            function = inspect.unwrap(function)
            if own(function) and not is_of_a_tuple(function):
                found[function.__module__, name] = function
    return found


def is_of_a_tuple(function):
    """Whether `collections.namedtuple` wrote it, whose fields are annotated in the class."""
    return function.__code__.co_filename.startswith("<")


FUNCTIONS = public_functions()
MODULES = sorted({module for module, _ in FUNCTIONS})


def missing(function):
    """What has no annotation: names of parameters, and "return"."""
    signature = inspect.signature(function)
    names = list(signature.parameters)
    is_method = names[:1] in (["self"], ["cls"])
    found = [n for n in names[is_method:] if signature.parameters[n].annotation is EMPTY]
    return found + ["return"] * (signature.return_annotation is EMPTY)


def contradictions(function):
    """Parameters whose default is of no type that they are annotated with, of plain types."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        default, hint = parameter.default, hints.get(name)
        if default is not EMPTY and not may_be(default, hint):
            yield f"{name}: {hint} = {default!r}"


def may_be(value, hint):
    """Whether a value may be of a type; what is not looked into may be anything."""
    arguments = typing.get_args(hint)
    if hint is typing.Any or hint is None or isinstance(hint, typing.TypeVar):
        return True
    if value is None:
        return hint is type(None) or type(None) in arguments
    kinds = [typing.get_origin(part) or part for part in (arguments or (hint,))]
    if typing.get_origin(hint) not in (typing.Union, type(int | str), None):
        kinds = [typing.get_origin(hint)]
    plain = [kind for kind in kinds if isinstance(kind, type)]
    if len(plain) < len(kinds) or (float in plain and isinstance(value, int)):
        return True
    return isinstance(value, tuple(plain)) or getattr(hint, "_is_protocol", False)


def test_there_are_many():
    assert len(FUNCTIONS) > 700 and len(MODULES) > 100


@pytest.mark.every_case
@pytest.mark.parametrize("module", MODULES)
def test_every_signature_is_annotated(module):
    of_module = {name: each for (where, name), each in FUNCTIONS.items() if where == module}
    assert {name: missing(each) for name, each in of_module.items() if missing(each)} == {}


@pytest.mark.every_case
@pytest.mark.parametrize("module", MODULES)
def test_annotations_can_be_read_and_hold_the_defaults(module):
    """Names in them are imported where they stand, and a default is of its type."""
    for (where, name), function in FUNCTIONS.items():
        if where == module:
            assert list(contradictions(function)) == [], name


def example(a, b: int = "1", *, c: float | None = 0, d: str = None) -> None:  # noqa: RUF013
    pass


def test_a_missing_type_and_a_false_default_are_found():
    assert missing(example) == ["a"]
    assert [said.partition(":")[0] for said in contradictions(example)] == ["b", "d"]
