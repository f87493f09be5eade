"""Weights from everywhere, to everywhere, without executing anything a file says."""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

__all__ = ["Metadata", "WeightFile", "open_weights", "save_weights"]

if TYPE_CHECKING:
    from xcite.weights.metadata import Metadata
    from xcite.weights.opening import WeightFile, open_weights, save_weights
else:
    __getattr__ = lazy_modules(
        __name__,
        Metadata="metadata",
        WeightFile="opening",
        open_weights="opening",
        save_weights="opening",
    )
