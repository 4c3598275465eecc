"""docs/_extensions: docstrings as Keras writes them become reStructuredText."""

import ast
import importlib.util
import pathlib

import pytest

FILE = pathlib.Path(__file__).parents[1] / "docs" / "_extensions" / "keras_docstrings.py"


@pytest.fixture(scope="module")
def converted():
    spec = importlib.util.spec_from_file_location("keras_docstrings", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.converted


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Of `x` and |y|.\n", "Of ``x`` and \\|y\\|.\n"),
        ("`a`, b, `c` and `d`s\n", "``a``, b, ``c`` and ``d``\\ s\n"),
        ("Of `a\nb`.\n", "Of ``a b``.\n"),
        ("2 * 3, w_ and [a](https://b.c)\n", "2 \\* 3, w\\_ and `a <https://b.c>`__\n"),
        (
            "Formula (x):\n    a = `b`\n",
            ".. rubric:: Formula (x)\n\n.. code-block:: text\n\n    a = `b`",
        ),
        ("Args:\n    a, b,\n    c: As in `d`.\n", "Args:\n    a, b, c: As in ``d``.\n"),
        ("```python\na = `1`\n```\n", ".. code-block:: python\n\n    a = `1`"),
        (">>> a * b\n3\n\nThen `c`.\n", ">>> a * b\n3\n\n\nThen ``c``.\n"),
        ("Other heading:\n\ntext\n", ".. rubric:: Other heading\n\n\ntext\n"),
    ],
)
def test_each_form(converted, text, expected):
    assert converted(text).strip() == expected.strip()


def test_the_site_has_a_page_for_each_module_with_public_names():
    names = (FILE.parents[2] / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    modules = {name.split(".")[1] for name in names if name.count(".") == 2}
    found = {}
    tree = ast.parse((FILE.parent / "public_names.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    assert modules == set(found["MODULES"])
    alone = {name.split(".")[1] for name in names if name.count(".") == 1} - modules
    assert alone - {"__version__"} == set(found["ROOT_NAMES"])
