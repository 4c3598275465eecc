"""The choice of `make test-quick`: what one runs while writing, in less than three minutes.

Of each test function the first case that is not slow, and of the contract battery the first case of
each check; all cases of those that compare with numbers of somebody else. Without what starts a
process, exports, compiles with XLA or trains on several devices, and without the folders of tests
that span packages. Nothing is entered anywhere: the choice is made by what a test's code names.
"""

import functools
import inspect
import pathlib
import re
import types

# Names in the code of a test, its fixtures and its helpers that tell what takes long.
LONG = {
    *("subprocess", "processes", "Popen", "process_pool", "workers", "executor"),
    *("two_devices", "MirroredStrategy", "MultiWorkerMirroredStrategy", "multi_worker"),
    *("sync_playwright", "running_server", "load_test"),
    *("export", "export_litert", "export_onnx", "LiteRT"),
    "fences",  # the examples of docstrings and pages, one after another
}
LONG_CASES = re.compile(r"jit|xla|compiled|two_devices", re.IGNORECASE)
SPANNING = {"distribute", "examples", "faults", "fuzz", "saved", "serving", "threads"}
# An oracle's numbers lie in `tests/fixtures`, or the oracle is asked.
ORACLES = re.compile(r"\"fixtures|fixtures/|import sklearn|from sklearn(?!\.datasets)|from scipy")


def chosen(items):
    """The set of the items to run."""
    families, found = set(), set()
    for item in items:
        if item.get_closest_marker("slow") or takes_long(item):
            continue
        family = family_of(item)
        if family not in families or is_oracle(item.path):
            found.add(item)
        families.add(family)
    return found


def family_of(item):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return item.path, getattr(item, "originalname", item.name), str(params.get("check"))


@functools.cache
def is_oracle(path):
    return path.suffix == ".py" and bool(ORACLES.search(path.read_text(encoding="utf-8")))


def takes_long(item):
    if SPANNING & set(item.path.parts) or LONG_CASES.search(item.name):
        return True
    functions = [getattr(item, "obj", None)]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        functions += [definition.func for definition in definitions]
    if hasattr(item, "callspec"):
        functions += item.callspec.params.values()
    return any(names_long(function) for function in functions)


def names_long(function):
    """Whether the code of a function names one of `LONG`, or calls one of the tests that does."""
    while isinstance(function, functools.partial):
        if function.keywords.get("jit") or function.keywords.get("jit_compile"):
            return True
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    return isinstance(function, types.FunctionType) and _names_long(function)


@functools.cache
def _names_long(function, depth=6):
    names = set(_names(function.__code__))
    if LONG & names:
        return True
    called = [function.__globals__.get(name) for name in names] if depth else []
    return any(_names_long(each, depth - 1) for each in called if _is_of_the_tests(each))


def _is_of_the_tests(value):
    if not isinstance(value, types.FunctionType):
        return False
    return pathlib.Path(__file__).parent in pathlib.Path(value.__code__.co_filename).parents


def _names(code):
    """Names that code mentions, as variables, attributes or keywords of a call."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
        elif isinstance(constant, tuple):
            yield from (name for name in constant if isinstance(name, str))
