"""Links of names: a public name between backticks leads to its page, here or elsewhere.

`tfuq.layers.VBLLDense`, `layers.VBLLDense` and, of classes whose name is unique, `VBLLDense`; of
Keras, TensorFlow, NumPy and SciPy the names in `docs/inventories`. A link that leads nowhere warns.
"""

import collections
import functools
import importlib
import pathlib
import re

from docutils import nodes
from public_names import MODULES, ROOT_NAMES
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import restify

INVENTORIES = pathlib.Path(__file__).parents[1] / "inventories"
CLASS = re.compile(r"[A-Z]\w*")


@functools.cache
def targets():
    """Each way to write a name, and the name that has a page."""
    found, short = {f"tfuq.{name}": f"tfuq.{name}" for name in ROOT_NAMES}, collections.Counter()
    for module in MODULES:
        for name in importlib.import_module(f"tfuq.{module}").__all__:
            full = f"tfuq.{module}.{name}"
            found[full] = found[f"{module}.{name}"] = full
            short[name] += 1
            if CLASS.fullmatch(name):
                found.setdefault(name, full)
    elsewhere = importlib.import_module("make")
    for path in INVENTORIES.glob("*.inv"):
        found.update({name: name for name in elsewhere.read(path)})
    return {name: full for name, full in found.items() if short[name] < 2}


class LinkNames(SphinxTransform):
    """Wraps a literal in a link if it is a name that has a page."""

    default_priority = 400

    def apply(self):
        for literal in list(self.document.findall(nodes.literal)):
            full = targets().get(literal.astext().removesuffix("()"))
            parent = literal.parent
            if full is None or isinstance(parent, (nodes.reference, nodes.title, pending_xref)):
                continue
            options = {"refdomain": "py", "reftype": "obj", "reftarget": full, "refwarn": True}
            link = pending_xref("", refdoc=self.env.docname, refexplicit=True, **options)
            link += literal.deepcopy()
            parent.replace(literal, link)


def public_bases(app, name, thing, options, bases):
    """`keras.layers.Dense` for `keras.src.layers.core.dense.Dense`; what is private is left out."""
    for index, base in reversed(list(enumerate(bases))):
        module, last = base.__module__, base.__qualname__
        if module.startswith("keras.src."):
            public = f"keras.{module.split('.')[2]}.{last}"
            bases[index] = f":py:obj:`{public}`" if public in targets() else f"``{public}``"
        elif module.startswith("tfuq") and f"tfuq.{module.split('.')[1]}.{last}" not in targets():
            del bases[index]
        else:
            bases[index] = restify(base)
    if not bases:
        bases.append("``object``")


def setup(app):
    app.add_transform(LinkNames)
    app.connect("autodoc-process-bases", public_bases)
    return {"parallel_read_safe": True}
