"""Packages whose modules and names are there when they are first used, and not before."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any


def lazy_modules(package: str, **names: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``: imports its submodules, and ``names`` from theirs.

    So ``import xcite`` is light, and still reaches ``xcite.weights.convert``.

    Args:
        package: the package's ``__name__``.
        names: public names to the submodules that hold them.
    """

    def attribute(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        # Tools ask modules for many names of this kind; none of them is a file.
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


def visible_names(namespace: Mapping[str, Any]) -> list[str]:
    """A package's ``__dir__``: what is loaded, what its ``__all__`` offers, and its submodules."""
    modules = (module.name for module in pkgutil.iter_modules(namespace["__path__"]))
    return sorted({*namespace, *namespace.get("__all__", ()), *modules})
