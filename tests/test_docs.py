"""What the documentation shows runs: docstring examples, README and docs, make targets."""

import doctest
import importlib
import importlib.util
import inspect
import pathlib
import re
import textwrap

import pytest

import tfuq

pytestmark = pytest.mark.every_case  # each snippet is a promise
PARTS = 2  # processes that share these tests: see run.py
ROOT = pathlib.Path(__file__).parents[1]
BUILT = ("_build", "scripts")  # by `make docs`
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if not {*page.parts} & {*BUILT}
]
MODULES = (
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "datasets",
    "ood",
    "corruptions",
    "preprocessing",
    "callbacks",
    "convert",
    "predictive",
    "ensembles",
    "plots",
    "selective",
    "interpret",
    "report",
    "cli",
    "distribute",
    "export",
    "serving",
    "training",
)
FENCE = re.compile(r"^([ \t]*)```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
ELLIPSIS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def fences(text, *languages):
    """The contents of the fenced blocks in one of `languages`, without their indentation."""
    return [textwrap.dedent(b) for _, language, b in FENCE.findall(text) if language in languages]


def public_objects():
    """`layers.MCSoftmaxDenseFA` and so on: each public class and function, by its name."""
    for name in MODULES:
        module = importlib.import_module(f"tfuq.{name}")
        for public in module.__all__:
            yield f"{name}.{public}", getattr(module, public)
    yield "lr_range_test", tfuq.lr_range_test
    yield "kl_weight_for", tfuq.kl_weight_for


def documented(thing):
    """The docstrings of a function, or of a class and the public methods written in it."""
    methods = vars(thing).values() if inspect.isclass(thing) else ()
    own = [m for m in methods if callable(m) and not getattr(m, "__name__", "_").startswith("_")]
    return [inspect.getdoc(part) for part in (thing, *own) if part.__doc__]


def run(source, namespace, where):
    """Runs a block: a session with `>>>` must answer as written, other code must not raise."""
    if ">>>" in source:
        run_session(source, namespace, where)
    else:
        exec(compile(source, where, "exec"), namespace)


def run_session(source, namespace, where):
    test = doctest.DocTestParser().get_doctest(source, namespace, where, where, 0)
    said = []
    runner = doctest.DocTestRunner(optionflags=ELLIPSIS)
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    assert runner.failures == 0, "".join(said)


OBJECTS = dict(public_objects())


# They take seconds: `make test-docs` runs them, and so does CI.
DEAR = (
    *(f"layers.MC{name}" for name in ("SoftmaxDenseXL", "SigmoidDenseXL", "SigmoidDenseFA")),
    *(f"layers.{name}" for name in ("SparseBayesDense", "BatchEnsembleDense", "DenseVariational")),
    *("layers.VBLLGenerativeDense", "callbacks.SaliencySelection", "callbacks.SnapshotEnsemble"),
    *("predictive.expected_entropy", "training.rapid_fit", "datasets.smote", "export.export"),
    *("export.export_litert", "export.export_onnx", "ensembles.DeepEnsemble"),
    "ood.GradientDetector",
    *("convert.sparse_bayesian", "metrics.bootstrap_interval", "selective.CombinedScore"),
    *("serving.make_app", "corruptions.noise_settings", "interpret.grad_cam"),
)


@pytest.mark.slow_cases(*DEAR)
@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = 0
    for doc in documented(OBJECTS[name]):
        blocks = fences(doc, "python")
        if ">>>" in FENCE.sub("", doc):
            blocks.append(FENCE.sub("", doc))
        for block in blocks:
            run(block, {"__name__": "example"}, name)
        examples += len(blocks)
    assert examples, f"tfuq.{name} has no example"


# `test_tasks.py` runs the eight tasks; what those who come from elsewhere read trains networks of
# the same kinds as pages that run here.
@pytest.mark.slow_cases(
    "docs/how-to/eight-tasks.md", *(f"docs/coming-from/{name}*.md" for name in "ekluv")
)
@pytest.mark.slow_cases("docs/coming-from/tfp-layers.md", "docs/how-to/sparse-bayesian.md")
@pytest.mark.slow_cases(
    "docs/start.md",
    *(f"docs/how-to/{name}.md" for name in ("production", "train-rapidly", "unknown-inputs")),
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages(page, tmp_path, monkeypatch):
    """The blocks of a page run one after another, in one namespace; each of README's in its own."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for block in fences(page.read_text(encoding="utf-8"), "python"):
        run(block, namespace if page.parent != ROOT else {"__name__": "page"}, page.name)


def test_readme_is_one_page():
    """That its table is what was measured holds `tests/examples/test_methods_benchmark.py`."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 150 and "<!-- methods first -->" in page


def make_targets(shell):
    """What the lines of a shell block ask `make` for."""
    asked = re.findall(r"(?:^|[;&|])[ \t$]*make((?:[ \t]+[\w.=-]+)+)", shell, re.MULTILINE)
    words = " ".join(asked).split()
    return {word for word in words if not word.startswith("-") and "=" not in word}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w.-]+)\s*:(?!=)", makefile, re.MULTILINE))
    for block in fences(page.read_text(encoding="utf-8"), "bash", "sh", "shell", "console"):
        missing = make_targets(block) - targets
        assert not missing, f"{page.name}: no target {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    """Links inside the repository; pictures too."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: no {target}"


def test_a_wrong_example_is_found():
    with pytest.raises(AssertionError, match="Expected"):
        run(">>> 1 + 1\n3\n", {}, "example")
    with pytest.raises(NameError):
        run("nothing_of_the_kind", {}, "example")


def test_fences_are_found():
    text = "Example:\n\n    ```python\n    x = 1\n    ```\n\n```bash\nmake demo\n```\n"
    assert fences(text, "python") == ["x = 1\n"]
    assert fences(text, "bash") == ["make demo\n"]


def test_make_targets_are_found():
    shell = "$ make demo\ncd x && make -j2 lint test SEED=1  # make nothing\nmakefile\n"
    assert make_targets(shell) == {"demo", "lint", "test"}
