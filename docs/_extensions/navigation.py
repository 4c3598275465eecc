"""What only the site needs, added to pages that are also read as they stand: tables of contents."""

import pathlib
import re

PAGES = pathlib.Path(__file__).parents[1]
METHODS = ["which-method"] if (PAGES / "which-method.md").exists() else []
# Pages that stand outside `docs/`, whole.
INCLUDED = {"benchmarks": "../benchmarks/README.md", "changes": "../CHANGELOG.md"}
CONTENTS = {
    "index": [
        ("Start", ["start"]),
        ("Learn", ["tutorials/index", "how-to/index", *METHODS, "explanation/index"]),
        ("Look up", ["api/index", "features", "coming-from/index", "faq", "glossary"]),
        (
            "Trust",
            ["reliability", "compatibility", "benchmarks", "references", "versions", "changes"],
        ),
        ("More", ["gallery/README", "examples", "adr/index"]),
    ],
    "tutorials/index": [("", ["scripts/index"])],
    "how-to/index": [("", ["*"])],
    "explanation/index": [("", ["*"])],
    "coming-from/index": [("", ["*"])],
    "adr/index": [("", ["0*"])],
    "api/index": [("", ["names/*"])],
}


def tree(caption, entries):
    title = [f":caption: {caption}"] if caption else []
    lines = ["", "```{toctree}", ":hidden:", ":maxdepth: 1", ":glob:", *title, "", *entries, "```"]
    return "\n".join(lines) + "\n"


def on_the_site(text):
    """Links to files beside `docs/`: to the page that includes them, or none."""
    text = re.sub(r"\((?:\.\./)+benchmarks/README\.md(?:#[\w-]*)?\)", "(/benchmarks.md)", text)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+examples/serving/README\.md\)", r"\1", text)


def add(app, docname, source):
    source[0] = on_the_site(source[0])
    if docname in INCLUDED:
        source[0] = f"```{{include}} {INCLUDED[docname]}\n:relative-docs: docs/\n```\n"
    source[0] += "".join(tree(*each) for each in CONTENTS.get(docname, ()))


def setup(app):
    app.connect("source-read", add)
    return {"parallel_read_safe": True}
