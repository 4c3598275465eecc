"""Report: one page on which a person decides which answers of a model to accept."""

from tfuq._arguments import public_dir
from tfuq.report.page import html
from tfuq.report.text import to_markdown

__all__ = ["html", "to_markdown"]
__dir__ = public_dir(__all__)
