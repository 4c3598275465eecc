"""Command `tfuq serve`: an exported model over HTTP, each answer with its decision and reasons."""

import sys

from tfuq.serving import serve


def run(arguments):
    """Serves until it is told to end."""
    options = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("command", "json", "quiet", "debug")
    }
    out = sys.__stdout__  # what is printed meanwhile goes elsewhere; the address is for programs

    def say(line):
        print(line, file=out, flush=True)

    return serve(options.pop("model"), say=say, **options), True


def text_of(figures):
    """The figures for a person."""
    return f"answered {figures['answered']} requests, refused {figures['refused']}"
