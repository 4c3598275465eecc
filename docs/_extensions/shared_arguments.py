"""Shared arguments, written out: on the site "As in `fit`." is replaced by what `fit` says.

In the code an argument that many functions share is described once, and the others refer to it.
Runs before `keras_docstrings`, on docstrings as they are written.
"""

import functools
import importlib
import inspect
import re
import textwrap

MODULES = "layers losses metrics optimizers callbacks training convert ensembles predictive "
MODULES += "selective ood corruptions preprocessing datasets interpret plots report export serving"
SECTION = re.compile(r"^Args:\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)
ENTRY = re.compile(r"^    ((?:\*{0,2}\w+, *\n? *)*\*{0,2}\w+):(?= |\n)", re.MULTILINE)
REFERENCE = re.compile(r"As (?:in|for) (?:the (constructor)|`([\w.]+)`)(?:[.;](?:\s+|$)|$)")
DEPTH = 4  # references lead to references


@functools.cache
def public():
    """Each public class and function by its full name, `selective.aurc` and, if unique, `aurc`."""
    found, seen = {}, {}
    for module in MODULES.split():
        for name in importlib.import_module(f"tfuq.{module}").__all__:
            thing = getattr(importlib.import_module(f"tfuq.{module}"), name)
            found[f"tfuq.{module}.{name}"] = found[f"{module}.{name}"] = thing
            seen.setdefault(name, []).append(thing)
    return {**found, **{name: things[0] for name, things in seen.items() if len(things) == 1}}


def entries(text):
    """Of the lines below `Args:`, pairs of names and what is said of them."""
    starts = list(ENTRY.finditer(text))
    ends = [*(each.start() for each in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):
        names = re.split(r",\s*", start[1])
        yield names, textwrap.dedent(" " * 8 + text[start.end() : end].strip()).strip()


def said_of(thing, name, owner, depth):
    """What the docstring of a class or function says of an argument, written out, or None."""
    section = SECTION.search((inspect.getdoc(thing) or "") + "\n")
    for names, said in entries(section[1]) if section else ():
        if name in names:
            return written_out_entry(name, said, owner, depth)
    return None


def target(match, owner):
    """The class or function that a reference names, and the class to which it belongs, if any."""
    if match[1]:
        return owner, owner
    name = match[2]
    if owner is not None and inspect.isfunction(getattr(owner, name, None)):
        return getattr(owner, name), owner
    if owner is not None and inspect.ismethod(getattr(owner, name, None)):
        return getattr(owner, name), owner
    if name in public():
        thing = public()[name]
        return thing, thing if inspect.isclass(thing) else None
    first, _, last = name.rpartition(".")
    owner = public().get(first)
    return getattr(owner, last, None), owner


def written_out_entry(name, said, owner, depth=DEPTH):
    """What is said of an argument, with a reference at its beginning replaced."""
    joined = re.sub(r"\s*\n\s*", " ", said)
    match = REFERENCE.match(joined)
    if not match or not depth:
        return said
    thing, owner = target(match, owner)
    found = thing is not None and said_of(thing, name, owner, depth - 1)
    rest = joined[match.end() :]
    return f"{found} {rest[:1].upper()}{rest[1:]}".strip() if found else said


def written_out(text, owner=None):
    """A docstring with its shared arguments written out; `owner` is the class it belongs to."""
    section = SECTION.search(text)
    if not section or not REFERENCE.search(re.sub(r"\s*\n\s*", " ", section[1])):
        return text
    lines = []
    for names, said in entries(section[1]):
        one = [(name, written_out_entry(name, said, owner)) for name in names]
        if all(each == said for _, each in one):
            one = [(", ".join(names), said)]
        for name, each in one:
            lines.append(f"{name}: " + re.sub(r"\s*\n\s*", " ", each))
    body = "".join(f"    {line}\n" for line in lines)
    blank = "\n" if section[1].endswith("\n\n") else ""
    return text[: section.start(1)] + body + blank + text[section.end(1) :]


def write_out(app, what, name, thing, options, lines):
    owner = thing if inspect.isclass(thing) else public().get(name.rpartition(".")[0])
    lines[:] = written_out("\n".join(lines) + "\n", owner).split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", write_out, priority=300)
    return {"parallel_read_safe": True}
