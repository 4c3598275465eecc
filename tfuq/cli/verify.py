"""Command `tfuq verify`: whether an export is whole, and who signed it."""

from tfuq.cli._inputs import existing
from tfuq.export.loading import checked_export, size_of
from tfuq.export.signing import signature_of


def run(arguments):
    """Checks the files of an export, of which nothing is loaded."""
    path = existing("PATH", arguments.path)
    about = checked_export(path, arguments.key)
    is_signed = signature_of(path).is_file()
    signed = "by the key" if arguments.key else "not checked" if is_signed else "no"
    return {
        "path": str(path),
        **size_of(path),
        "signed": signed,
        "versions": about["versions"],
        "rule": None if about["rule"] is None else about["rule"]["says"],
    }, True


def text_of(figures):
    """The figures for a person."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    rule = figures["rule"] or "none"
    return (
        f"{figures['path']} is whole: {figures['files']} files, {figures['bytes']} bytes\n"
        f"signed     {figures['signed']}\nwritten by {versions}\nrule       {rule}"
    )
