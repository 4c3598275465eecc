"""Docstrings as Keras writes them (Markdown, `Args:`) to what autodoc reads (reStructuredText).

Runs before napoleon, which then reads the sections.
"""

import inspect
import re

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```[ ]*$", re.MULTILINE | re.DOTALL)
SESSION = re.compile(r"(?:^ *>>> .*\n(?:^ *\S.*\n?)*)+", re.MULTILINE)
FORMULA = re.compile(r"^(Formula[^\n]*):\n((?:    [^\n]*\n|\n(?=    ))+)", re.MULTILINE)
NAMES = re.compile(r"^(    \w[\w, ]*,)\n    (?=\w+[,:])", re.MULTILINE)  # several arguments at once
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\[([^\]\n]+)\]\((https?://[^)\s]+)\)")
KNOWN = {
    "args", "arguments", "attributes", "call arguments", "example", "examples", "fields", "note",
    "raises", "references", "returns", "call returns", "warns", "yields", "see also",
}  # fmt: skip
CONVERTED = {}  # what napoleon was given, by kind and name
ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")  # as Sphinx writes it
HEADING = re.compile(r"^([A-Z][^\n`>]{0,90}):$", re.MULTILINE)


def escaped(text):
    """Plain text in which no character is markup."""
    links = []

    def kept(match):
        links.append(f"`{match[1]} <{match[2]}>`__")
        return f"\0{len(links) - 1}\0"

    text = LINK.sub(kept, text).replace("\\", "\\\\")
    text = re.sub(r"([*|])", r"\\\1", text)
    text = re.sub(r"(?<=\w)_(?!\w)", r"\_", text)
    return re.sub("\0(\\d+)\0", lambda match: links[int(match[1])], text)


def literal(match):
    inside = re.sub(r"\s*\n\s*", " ", match[2]).strip()
    # A literal that touches a letter needs a separation that is not seen.
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    start, end = ("\\ " if each.isalnum() else "" for each in (before, after))
    return f"{start}``{inside}``{end}"


def paragraphs(text):
    """Text without blocks of code: single backticks are code, headings of our own are rubrics."""
    parts, last = [], 0
    for match in CODE.finditer(text):
        parts += [escaped(text[last : match.start()]), literal(match)]
        last = match.end()
    text = "".join(parts) + escaped(text[last:])
    return HEADING.sub(heading, text)


def heading(match):
    if match[1].lower() in KNOWN:
        return match[0]
    return f".. rubric:: {match[1]}\n"


def code_block(match):
    indent, language, body = match[1], match[2] or "text", match[3]
    lines = [line[len(indent) :] if line.startswith(indent) else line for line in body.split("\n")]
    inside = "\n".join(f"{indent}    {line}" if line.strip() else "" for line in lines)
    return f"\n{indent}.. code-block:: {language}\n\n{inside.rstrip()}\n\n"


def session(match):
    return "\n" + match[0].rstrip("\n") + "\n\n"


def formula(match):
    return f".. rubric:: {match[1]}\n\n.. code-block:: text\n\n{match[2].rstrip()}\n\n"


def converted(text):
    """The whole docstring."""
    while NAMES.search(text):
        text = NAMES.sub(r"\1 ", text)
    parts, last = [], 0
    blocks = list(FENCE.finditer(text))
    taken = [(match.start(), match.end(), code_block(match)) for match in blocks]
    for pattern, block in ((SESSION, session), (FORMULA, formula)):
        for match in pattern.finditer(text):
            if not any(start < match.end() and match.start() < end for start, end, _ in taken):
                taken.append((match.start(), match.end(), block(match)))
    for start, end, block in sorted(taken):
        parts += [paragraphs(text[last:start]), block]
        last = end
    return "".join(parts) + paragraphs(text[last:])


def convert(app, what, name, thing, options, lines):
    lines[:] = converted("\n".join(lines) + "\n").split("\n")
    CONVERTED[what, name] = list(lines)


def signature(app, what, name, thing, options, given, returned):
    """A class is called as `__init__` says: Keras' layers have a `__new__` that takes anything.

    Of a union with an alias of types the alias alone is shown.
    """
    if what == "class" and inspect.isfunction(thing.__init__):
        found = inspect.signature(thing.__init__)
        own = list(found.parameters.values())[1:]
        found = found.replace(parameters=own, return_annotation=found.empty)
        from sphinx.util.inspect import stringify_signature  # tests read this file without Sphinx

        return stringify_signature(found), returned
    return tuple(each and ALIAS.sub(r"\1", each) for each in (given, returned))


def keep_properties(app, what, name, thing, options, lines):
    """Napoleon takes what stands before a colon for a property's type."""
    if what in ("attribute", "data", "property"):
        lines[:] = CONVERTED[what, name]


def of_tfuq(app, what, name, thing, skip, options):
    """Leaves out what Keras and named tuples bring along."""
    if (getattr(thing, "__doc__", None) or "").startswith("Alias for field"):
        return True
    function = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
    module = getattr(function, "__module__", None)
    return True if module and not module.startswith("tfuq") else None


def setup(app):
    app.connect("autodoc-process-docstring", convert, priority=400)
    app.connect("autodoc-process-docstring", keep_properties, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", of_tfuq)
    return {"parallel_read_safe": True}
