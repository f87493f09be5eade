"""The documentation site: `make docs`, or `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import xcite

project = "Xcite"
author = "The Xcite authors"
version = release = xcite.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Xcite {release}"

myst_heading_anchors = 4  # as the hosts of repositories make them
myst_enable_extensions = ["colon_fence"]

smartquotes = False  # would turn --set into a dash
default_role = "py:obj"  # a name in backticks is a link where the name is documented
autoclass_content = "both"  # the arguments of __init__ are described there
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
