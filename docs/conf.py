"""The documentation site: `make docs`, or `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import xcite
from xcite.recipe_sections import Section

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
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def describe_fields(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """A section of a recipe says what its fields mean in the fields themselves."""
    if what == "class" and issubclass(thing, Section):
        for key, field in thing.model_fields.items():
            kind = stringify_annotation(field.annotation, "smart").replace("~", "")
            usual = "" if isinstance(field.default, Section) else f", usually ``{field.default!r}``"
            meaning = f": {field.description}" if field.description else ""
            lines += [f"* **{key}** (``{kind}``{usual}){meaning}"]
        lines += [""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", describe_fields)
