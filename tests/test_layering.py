"""The floors of the house: a file imports only from floors below its own."""

import ast
import pathlib

import pytest

# One place says where each part lives; what is a package here lends its floor to its files.
FLOORS = (
    (
        "_version",
        "_keras",
        "_math",
        "_linear",
        "_sampling",
        "_logistic_normal",
        "_predictions",
        "_labelled",
        "_operations",
        "_saliency",
        "_training",
        "_seeding",
        "_files",
        "_cloning",
        "_feature_arrays",
        "_logit_scores",
        "_gradient_norms",
        "_risk_coverage",
        "_drawing",
        "_bounds",
        "_shift",
        "_scaling",
        "_logistic_regression",
        "_decomposition",
        "_multi_worker",
        "_graphs",
        "_safe_files",
        "_replacing",
    ),
    (
        "_draws",
        "_estimators",
        "_batches",
        "_masks",
        "_outputs",
        "_processes",
        "_pipelines",
        "_images",
        "_corruptions",
        "_rankings",
        "_log_features",
        "_snapshots",
        "_layer_gradients",
        "_archives",
        "_thresholds",
        "_gaussians",
        "_fitted",
        "_scores",
        "_guarantees",
        "_tables",
        "_shards",
        "_export_graphs",
        "_export_files",
    ),
    (
        "_variational",
        "_export_frozen",
        "_export_unrolled",
        "_gradients",
        "_augmentation",
        "_features",
        "_layer_uses",
        "_judged",
        "_conformal",
        "_image_layers",
        "_thumbnails",
        "_sampler",
        "_score_inputs",
    ),
    (
        "_detectors",
        "_input_processing",
        "_rule_fitting",
        "_experts",
        "_shift_estimates",
        "_report_inputs",
        "_spatial_layers",
        "_score_rows",
    ),
    ("_attribution",),
    ("layers", "metrics", "optimizers", "preprocessing", "interpret", "datasets"),
    ("predictive", "convert", "corruptions", "ensembles", "selective"),
    ("ood", "_report_tables", "_export_networks", "_export_outputs"),
    ("plots", "_command_inputs", "_export_ood", "_export_runtimes"),
    ("_export_serving",),
    ("callbacks", "export", "distribute"),
    ("training", "_report"),
    ("report",),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

ROOT = pathlib.Path(__file__).parents[1] / "tfuq"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
DRAWING = (("plots",), ("_drawing",))  # who may import matplotlib, which is optional
UNSAFE = {"pickle", "cloudpickle", "dill", "marshal", "joblib"}


def module_of(path):
    """`layers/__init__.py` -> ("layers",); `layers/vbll.py` -> ("layers", "vbll")."""
    parts = path.removesuffix(".py").split("/")
    return tuple(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, tree):
    """Full dotted names that the nodes of `tree` import, each with its line."""
    package = ["tfuq", *path.split("/")[:-1]]
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
    if name == "(a computed name)":
        return False
    top, *target = name.split(".")
    if top != "tfuq":
        return top not in UNSAFE and (top != "matplotlib" or module[:1] in DRAWING)
    if not module:  # tfuq/__init__.py gathers all
        return True
    if not target or target[0] not in FLOOR_OF:
        return False
    if target[0] == module[0]:  # a package's __init__ gathers its own files; no file another
        return len(module) == 1 and len(target) > 1
    return FLOOR_OF[target[0]] < FLOOR_OF[module[0]]


def faults(path, source):
    """What the file at `path` in the package must not do, as lines of text."""
    tree, module = ast.parse(source), module_of(path)
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


@pytest.mark.parametrize("path", SOURCES)
def test_file_keeps_the_floors(path):
    found = list(faults(path, (ROOT / path).read_text(encoding="utf-8")))
    assert not found, "\n".join(found)


def test_parts_have_one_floor_each():
    assert len(FLOOR_OF) == sum(len(parts) for parts in FLOORS)


@pytest.mark.parametrize(
    "path, source",
    [
        ("attic.py", "x = 1"),
        ("_math.py", "from tfuq._keras import register"),
        ("layers/vbll.py", "from tfuq.layers.heteroscedastic import MCSoftmaxDenseFA"),
        ("layers/vbll.py", "from tfuq.metrics import calibration"),
        ("layers/vbll.py", "from . import heteroscedastic"),
        ("layers/vbll.py", "from ..metrics.scoring import brier_score"),
        ("layers/vbll.py", "from tfuq import callbacks"),
        ("layers/vbll.py", "import tfuq"),
        ("layers/vbll.py", "import tfuq.plots as p"),
        ("layers/vbll.py", "def f():\n    import tfuq.report"),
        ("layers/vbll.py", "import importlib\nimportlib.import_module('tfuq.plots')"),
        ("layers/vbll.py", "import importlib\nimportlib.import_module('tfuq.' + name)"),
        ("layers/__init__.py", "from tfuq.metrics import ECE"),
        ("callbacks/schedules.py", "from tfuq.callbacks.snapshot import SnapshotEnsemble"),
        ("callbacks/snapshot.py", "from tfuq.training import rapid_fit"),
        ("plots/rejection.py", "from tfuq.callbacks import LRRangeTest"),
        ("report.py", "import matplotlib.pyplot as plt"),
        ("report.py", "from matplotlib import pyplot"),
        ("ood/detector.py", "import pickle"),
        ("report.py", "assert True"),
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
        ("layers/vbll.py", "import keras\nfrom tfuq import _math\nfrom .._keras import register"),
        ("callbacks/rejection.py", "from tfuq.metrics import rejection_table"),
        ("callbacks/lr_range_test.py", "def draw():\n    from tfuq.plots import lr_range_test"),
        ("training.py", "from tfuq.callbacks import SGDR"),
        ("_drawing.py", "from matplotlib.axes import Axes"),
        ("plots/rejection.py", "import matplotlib\nfrom tfuq import metrics"),
        ("convert.py", "square = lambda x: x * x"),
    ],
)
def test_the_house_is_allowed(path, source):
    assert not list(faults(path, source))
