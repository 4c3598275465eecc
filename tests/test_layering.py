"""The house: packages import downwards, and a file with an underscore belongs to its package."""

import ast
import graphlib
import pathlib

import pytest

# Lowest first. A package may import what stands on floors below its own. CONTRIBUTING.md quotes it.
FLOORS = (
    {"_version", "_arguments", "_random"},
    {"_math", "_files", "_predictions", "_images"},
    {"_models", "losses"},
    {"layers", "metrics", "predictive", "interpret", "preprocessing", "datasets"}
    | {"distribute", "optimizers"},
    {"convert", "corruptions", "ensembles"},
    {"ood"},
    {"selective"},
    {"export", "plots", "report"},
    {"serving"},
    {"callbacks", "cli"},
    {"training", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

ROOT = pathlib.Path(__file__).parents[1] / "tfuq"
MODULES = {  # ("layers", "vbll"): its path; a package's own file is ("layers",), the root's ()
    tuple(
        path.relative_to(ROOT).with_suffix("").parts[: -1 if path.stem == "__init__" else None]
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
UNSAFE = {"pickle", "cloudpickle", "dill", "marshal", "joblib"}


def imported(path, tree):
    """`(full dotted name, line)` of all that the nodes of `tree` import."""
    package = ["tfuq", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
            yield from ((name, node.lineno) for name in names or ["(a computed name)"])


def called(node):
    """The last name of what is called: `keras.layers.Lambda(f)` -> "Lambda"."""
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def may_import(module, name):
    """Whether the file of `module` may import the full name `name`."""
    top, *target = name.split(".")
    if top != "tfuq":
        allowed = top != "matplotlib" or module[:1] == ("plots",)  # matplotlib is optional
        return allowed and top not in UNSAFE and name != "(a computed name)"
    if not module:  # tfuq/__init__.py gathers all
        return True
    if not target or target[0] not in FLOOR_OF:
        return False
    if target[0] == module[0]:
        return len(target) > 1
    belongs = any(part.startswith("_") and part != "__version__" for part in target[1:])
    return FLOOR_OF[target[0]] < FLOOR_OF[module[0]] and not belongs


def faults(path, source):
    """What the file at `path` in the package must not do, as lines of text."""
    path = ROOT / path
    tree, module = ast.parse(source), path.relative_to(ROOT).with_suffix("").parts
    module = module[:-1] if module[-1] == "__init__" else module
    if module and module[0] not in FLOOR_OF:
        yield f"{path}: not on any floor of tests/test_layering.py"
        return
    for name, line in imported(path, tree):
        if not may_import(module, name):
            yield f"{path}:{line}: must not import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"{path}:{node.lineno}: `assert` is stripped by python -O; raise instead"
        if isinstance(node, ast.Call) and called(node) == "Lambda":
            yield f"{path}:{node.lineno}: a Lambda layer cannot be loaded in safe mode"


def test_files_keep_the_rule():
    found = [f for path in MODULES.values() for f in faults(path, path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_packages_have_one_floor_each():
    assert len(FLOOR_OF) == sum(len(names) for names in FLOORS)


def test_files_form_no_circle():
    graph = {}
    for module, path in MODULES.items():
        names = (name.split(".") for name, _ in imported(path, ast.parse(path.read_text("utf-8"))))
        targets = (tuple(name[1:]) for name in names if name[0] == "tfuq")
        graph[module] = {t if t in MODULES else t[:-1] for t in targets} - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


@pytest.mark.parametrize(
    "path, source",
    [
        ("attic.py", "x = 1"),
        ("_math/bins.py", "from tfuq._models.outputs import Reading"),
        ("layers/vbll.py", "from tfuq.metrics import calibration"),
        ("layers/vbll.py", "from ..metrics.scoring import brier_score"),
        ("layers/vbll.py", "from tfuq import callbacks"),
        ("layers/vbll.py", "import tfuq"),
        ("layers/vbll.py", "import tfuq.plots as p"),
        ("layers/vbll.py", "def f():\n    import tfuq.report"),
        ("layers/vbll.py", "import importlib\nimportlib.import_module('tfuq.plots')"),
        ("layers/vbll.py", "import importlib\nimportlib.import_module('tfuq.' + name)"),
        ("layers/__init__.py", "from tfuq.metrics import ECE"),
        ("callbacks/snapshot.py", "from tfuq.training import rapid_fit"),
        ("plots/rejection.py", "from tfuq.callbacks import LRRangeTest"),
        ("ood/logits.py", "from tfuq.selective._fitting import fit"),
        ("ood/logits.py", "from tfuq.metrics.ood import _table"),
        ("report/page.py", "import matplotlib.pyplot as plt"),
        ("report/page.py", "from matplotlib import pyplot"),
        ("ood/detector.py", "import pickle"),
        ("report/page.py", "assert True"),
        ("convert.py", "import keras\nkeras.layers.Lambda(abs)"),
    ],
)
def test_faults_are_found(path, source):
    assert len(list(faults(path, source))) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("__init__.py", "from tfuq import layers\nfrom tfuq._version import __version__"),
        ("layers/__init__.py", "from tfuq.layers.vbll import VBLLDense\nfrom . import vbll"),
        ("layers/vbll.py", "import keras\nfrom tfuq._math import bins\nfrom .._arguments import x"),
        ("layers/vbll.py", "from tfuq.layers._posteriors import Dense"),
        ("callbacks/rejection.py", "from tfuq.metrics import rejection_table"),
        ("callbacks/lr_sweep.py", "def draw():\n    from tfuq.plots import lr_range_test"),
        ("training.py", "from tfuq.callbacks import SGDR"),
        ("plots/_axes.py", "from matplotlib.axes import Axes"),
        ("convert.py", "square = lambda x: x * x"),
    ],
)
def test_the_house_is_allowed(path, source):
    assert not list(faults(path, source))
