"""Weights from everywhere, to everywhere, without executing anything a file says."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcite.weights.metadata import Metadata
    from xcite.weights.opening import WeightFile, open_weights, save_weights

__all__ = ["Metadata", "WeightFile", "open_weights", "save_weights"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'xcite.weights' has no attribute {name!r}")
    module = "metadata" if name == "Metadata" else "opening"
    return getattr(importlib.import_module(f"xcite.weights.{module}"), name)
