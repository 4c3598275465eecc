"""The FAQ quotes messages as tfuq says them: each stands in the code, word for word."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faq.md"


def words(node):
    """The text of a string in the code; what is filled in is `...`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return "..."


@functools.cache
def said():
    """Every string that the package holds, except docstrings."""
    found = []
    for path in (ROOT / "tfuq").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in texts:
                found.append(words(node))
    return found


def is_said(quote):
    """Whether one string has all pieces of a quote in their order."""
    pieces = [piece.strip() for piece in quote.split("...") if piece.strip()]
    pattern = re.compile(".*?".join(map(re.escape, pieces)), re.DOTALL)
    return any(pattern.search(text) for text in said())


def quotes():
    """What stands in quotes in the first column of the tables."""
    return re.findall(r'^\| "(.*?)" \|', PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_each_quoted_message_is_in_the_code(counts):
    found = quotes()
    counts("messages of the FAQ", len(found))
    assert len(found) >= 20
    assert [quote for quote in found if not is_said(quote)] == []


def test_a_message_that_nobody_says_is_found():
    assert not is_said("Argument `model` must be made of cheese")
    assert not is_said("is required ... Argument `kl_weight`")
    assert is_said("Argument `kl_weight` is required")
