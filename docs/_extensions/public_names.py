"""A page for each public name, and one for each module with a table of its names."""

import importlib
import inspect
import pathlib
import re

from keras_docstrings import paragraphs

MODULES = (
    "layers", "losses", "metrics", "optimizers", "callbacks", "training", "convert", "ensembles",
    "predictive", "selective", "ood", "corruptions", "preprocessing", "datasets", "interpret",
    "plots", "report", "export", "serving", "distribute", "cli",
)  # fmt: skip
ROOT_NAMES = ("lr_range_test", "kl_weight_for")


def first_line(thing):
    text = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    return paragraphs(text.strip()).strip()


def title(text):
    return f"{text}\n{'=' * len(text)}\n\n"


def directive(thing):
    """How autodoc documents it; a constant has its value alone."""
    if inspect.isclass(thing):
        return "autoclass", "   :members:\n   :inherited-members:\n   :show-inheritance:\n"
    return ("autofunction", "") if callable(thing) else ("autodata", "")


def page(module, name):
    kind, options = directive(getattr(importlib.import_module(module), name))
    return f":orphan:\n\n{title(name)}.. currentmodule:: {module}\n\n.. {kind}:: {name}\n{options}"


def table(module, names, folder):
    thing = importlib.import_module(module)
    rows = [".. list-table::", "   :widths: 35 65", "   :header-rows: 1", ""]
    rows += ["   * - name", "     - what it is"]
    for name in names:
        rows.append(f"   * - :doc:`{name} <{folder}/{name}>`")
        rows.append(f"     - {first_line(getattr(thing, name))}")
    return "\n".join(rows) + "\n"


def write(path, text):
    """Only where it has changed, so that Sphinx reads no page twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def generate(app):
    folder = pathlib.Path(app.srcdir) / "api" / "names"
    write_module(folder, "tfuq", ROOT_NAMES)
    for short in MODULES:
        module = importlib.import_module(f"tfuq.{short}")
        write_module(folder, f"tfuq.{short}", sorted(module.__all__, key=str.lower))


def write_module(folder, module, names):
    short = module.removeprefix("tfuq.")
    about = re.sub(
        r"\n{2,}.*", "", inspect.getdoc(importlib.import_module(module)), flags=re.DOTALL
    )
    text = title(module) + paragraphs(about) + "\n\n" + table(module, names, short)
    write(folder / f"{short}.rst", text)
    for name in names:
        write(folder / short / f"{name}.rst", page(module, name))


def setup(app):
    app.connect("builder-inited", generate)
    return {"parallel_read_safe": True}
