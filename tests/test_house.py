"""The house is small rooms, and CONTRIBUTING.md says where things are."""

import ast
import re
import shlex
import subprocess

import pytest
from test_layering import FLOORS, MODULES, ROOT

CONTRIBUTING = (ROOT.parent / "CONTRIBUTING.md").read_text("utf-8")
MOST_ENTRIES, MOST_PRIVATE = 32, 8  # of the root
MOST_LINES, MOST_CODE, MOST_NESTED = 450, 60, 4
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
FILES = list(MODULES.values())
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

# A module's docstring names a thing; a question or a riddle names none.
RIDDLES = {"What", "Who", "Whose", "How", "Which", "Whether", "Why", "When", "Where", "By", "From"}
RIDDLES |= {"All", "Everything"}


# --- Sizes --------------------------------------------------------------------------------------


def code_lines(function, lines):
    """Lines of a function that are neither empty, comment nor docstring."""
    first, *_ = function.body
    has_docstring = ast.get_docstring(function, clean=False) is not None
    docstring = range(first.lineno, first.end_lineno + 1) if has_docstring else ()
    numbers = range(function.lineno, function.end_lineno + 1)
    code = (lines[n - 1].strip() for n in numbers if n not in docstring)
    return sum(1 for line in code if line and not line.startswith("#"))


def nesting(node, level=0):
    """How many blocks stand in each other at most; `elif` stands beside its `if`."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, SCOPES):
            is_elif = isinstance(node, ast.If) and node.orelse == [child]
            deeper = isinstance(child, BLOCKS) and not (is_elif and isinstance(child, ast.If))
            deepest = max(deepest, nesting(child, level + deeper))
    return deepest


def too_wide(name, source):
    """`(what, size)` of all in a file that is longer or deeper than the rule allows."""
    lines, tree = source.splitlines(), ast.parse(source)
    sizes = [(f"{name}, lines", len(lines), MOST_LINES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{name}:{node.name}"
            sizes.append((f"{place}, lines of code", code_lines(node, lines), MOST_CODE))
            sizes.append((f"{place}, levels of nesting", nesting(node), MOST_NESTED))
    return [(what, size) for what, size, most in sizes if size > most]


def test_files_and_functions_are_short_and_flat():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
    found = dict(fault for name, source in sources.items() for fault in too_wide(name, source))
    assert found == {}


@pytest.mark.parametrize(
    "source, fault",
    [
        ("x = 1\n" * 451, ("a.py, lines", 451)),
        ("def f():\n    '''Doc.'''\n" + "    x = 1\n" * 60, ("a.py:f, lines of code", 61)),
        (
            "def f():\n if a:\n  for b in c:\n   while d:\n    with e:\n     if g: pass",
            ("a.py:f, levels of nesting", 5),
        ),
        ("def f():\n" + "    # why\n\n" * 60 + "    x = 1", None),
        ("def f():\n    if a: pass\n" + "    elif b: pass\n" * 9 + "    else: pass", None),
    ],
)
def test_wide_code_is_found(source, fault):
    assert too_wide("a.py", source) == [fault] * (fault is not None)


def test_the_root_is_small():
    entries = {path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    private = {name for name in entries if name.startswith("_")} - {"__init__.py", "__main__.py"}
    assert len(entries) <= MOST_ENTRIES and len(private) <= MOST_PRIVATE


# --- CONTRIBUTING.md ----------------------------------------------------------------------------


def table(heading):
    """Cells of the first table under a heading, without its head; what is `code` as the code."""
    section = CONTRIBUTING.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


FEATURES = table("Where do I find ...?")


def defined(tree):
    """Names that the top of a module defines; of a class also `Class.method`."""
    for node in tree.body:
        if isinstance(node, SCOPES):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{n.name}" for n in node.body if isinstance(n, SCOPES))
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def test_contributing_quotes_the_floors():
    quoted = {int(floor): set(re.findall(r"\w+", names)) for floor, names in table("The house")}
    assert quoted == dict(enumerate(FLOORS))


def test_many_features_are_listed_once():
    names = [feature for feature, *_ in FEATURES]
    assert len(names) == len(set(names)) >= 30


@pytest.mark.parametrize("feature, file, name", FEATURES, ids=[row[0] for row in FEATURES])
def test_the_feature_is_where_contributing_says(feature, file, name):
    path = ROOT / file
    assert path.is_file(), f"{feature}: no file {file}"
    assert name in set(defined(ast.parse(path.read_text("utf-8")))), f"{feature}: not in {file}"


# --- One home for an idea -----------------------------------------------------------------------

ADR = (ROOT.parent / "docs/adr/0011-a-house-with-rooms.md").read_text("utf-8")
HOMES = re.findall(r"^\| ([\w ]+) \| .* \| `(grep .*?)` \| (.*) \|$", ADR, re.MULTILINE)


def shown(command):
    """Files of `tfuq/` of which a command of the table shows lines."""
    found = subprocess.run(
        shlex.split(command.replace(r"\|", "|")), cwd=ROOT.parent, capture_output=True, text=True
    )
    assert found.returncode < 2, found.stderr
    return set(re.findall(r"^tfuq/(.*?):", found.stdout, re.MULTILINE))


@pytest.mark.parametrize("idea, command, files", HOMES, ids=[row[0] for row in HOMES])
def test_an_idea_is_where_the_decision_says(idea, command, files):
    assert shown(command) == set(re.findall(r"`(.*?)`", files))


def test_each_idea_has_its_command():
    assert len(HOMES) >= 8


# --- Words --------------------------------------------------------------------------------------


def names_a_thing(docstring):
    """Whether the first sentence begins with a name, and ends: as far as a test can say."""
    first = docstring.strip().split("\n\n")[0]
    begins = re.match(r"[A-Z`][\w`.-]*|tfuq", first)
    return bool(begins) and begins.group() not in RIDDLES and first.endswith((".", ":"))


def test_module_docstrings_name_a_thing():
    files = {path.relative_to(ROOT).as_posix(): path for path in FILES}
    docstrings = {n: ast.get_docstring(ast.parse(p.read_text("utf-8"))) for n, p in files.items()}
    riddles = {name for name, docstring in docstrings.items() if not names_a_thing(docstring or "")}
    assert riddles == set()


@pytest.mark.parametrize(
    "docstring", ["What a model says.", "How it fares.", "", "a rule.", "Rule"]
)
def test_docstrings_that_name_nothing_are_found(docstring):
    assert not names_a_thing(docstring)


# --- Errors -------------------------------------------------------------------------------------

# Names whose values are texts or numbers wherever errors show them.
SHORT = {"name", "key", "field", "figure"}
LONG = {"model", "self.model", "data", "probs", "labels", "x", "y", "scores", "images"}


def shown_whole(source):
    """What an error shows as it is, though it may be an array, a model or a data set: its lines."""
    for node in ast.walk(ast.parse(source)):
        parts = ast.walk(node) if isinstance(node, ast.Raise) else ()
        for part in (part for part in parts if isinstance(part, ast.FormattedValue)):
            named = isinstance(part.value, (ast.Name, ast.Attribute, ast.Subscript))
            text = ast.unparse(part.value)
            is_short = text in SHORT or text.endswith("name")
            if named and (text in LONG or (part.conversion == ord("r") and not is_short)):
                yield f"{part.lineno}: {text}"


def test_errors_show_no_whole_arrays_or_models():
    found = {path.name: [*shown_whole(path.read_text("utf-8"))] for path in FILES}
    assert not {name: lines for name, lines in found.items() if lines}


def test_errors_that_show_all_are_found():
    assert [*shown_whole('raise ValueError(f"{probs!r} {self.loss!r} {model} {a.name!r}")')] == [
        "1: probs",
        "1: self.loss",
        "1: model",
    ]
    assert not [*shown_whole('raise ValueError(f"{shown(probs)} {count}")\nf"{probs!r}"')]
