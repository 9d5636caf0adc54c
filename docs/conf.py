"""Sphinx: how the site is built (`make docs`)."""

from __future__ import annotations

import socket
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

import pyrostoch  # noqa: E402

# -- project

project = "pyrostoch"
author = "The pyrostoch developers"
copyright = "the pyrostoch developers"
version = release = pyrostoch.__version__

# -- what is read

extensions = [
    "docstrings",
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.md5", "gallery/**/*.zip"]
suppress_warnings = ["config.cache"]  # the order of the gallery is given by an object
nitpicky = False

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3

# Single backquotes in docstrings hold code or a name.
default_role = "code-or-link"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
python_use_unqualified_type_names = True
add_module_names = False


def _reachable(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True


# Links into other libraries' pages, where their inventories can be had: a build needs no network.
if _reachable("docs.pyro.ai") and _reachable("docs.pytorch.org"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
    }

# -- the gallery: examples/*.py, run while the site is built

# Lightning's example needs its extra and MNIST; it is shown, but not run.
NOT_RUN = ("lightning_mnist",)
warnings.filterwarnings("ignore", category=UserWarning, module="sphinx_gallery")
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/(?!{'|'.join(NOT_RUN)})\w+\.py$",
    "within_subsection_order": "gallery_order.Order",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "capture_repr": (),
    "plot_gallery": "True",
    "abort_on_example_error": True,
    "reference_url": {"pyrostoch": None},
    "min_reported_time": 0,
    "show_memory": False,
    "parallel": 2,
}

# -- what is written

html_theme = "furo"
html_title = f"pyrostoch {release}"
html_static_path = ["_static"]
html_css_files = ["pyrostoch.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
