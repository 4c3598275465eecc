"""Sphinx: the site that `make docs` builds from the pages of this folder."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE / "inventories"), str(HERE.parent)]

import matplotlib  # noqa: E402
from make import PROJECTS  # noqa: E402, of inventories

import tfuq  # noqa: E402

matplotlib.use("agg")
project = "tfuq"
author = "the authors of tfuq"
copyright = "the authors of tfuq, Apache-2.0"
version = release = tfuq.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "shared_arguments",  # this and the next four are in _extensions
    "keras_docstrings",
    "public_names",
    "navigation",
    "links",
]
exclude_patterns = ["_build", "**/GALLERY_HEADER.rst", "tutorials/scripts/**.ipynb"]
# A page says its Python once; what Pygments cannot read in a log is no fault of the page.
suppress_warnings = ["misc.highlighting_failure", "config.cache"]

myst_heading_anchors = 3
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88  # of longer ones each parameter has a line
# Aliases of types stay as signatures have them: what they stand for takes five lines.
TYPES = ("ArrayLike", "Arrays", "Data", "ModelLike", "Output", "PathLike", "Tensor")
autodoc_type_aliases = {name: name for name in TYPES}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    ("Call returns", "returns_style"),
    ("Fields", "params_style"),
]

# From files of the repository: nothing is asked of the network.
intersphinx_mapping = {name: (site, f"inventories/{name}.inv") for name, site in PROJECTS.items()}

html_theme = "furo"  # has a dark mode and a search
html_title = f"tfuq {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/version.html",  # in _templates
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_css_files = ["tables.css"]
html_favicon = "_static/favicon.svg"
html_show_sphinx = False
smartquotes = False  # they would make one dash of the two of an option
default_role = "code"  # a tutorial marks code as a docstring does
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "capture_repr": ("_repr_html_",),  # tables, but not "Text(0.5, 0.98, ...)"
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials/scripts",
    "filename_pattern": r"/\d\d_",  # the others are shown; their data are not in the clone
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}
