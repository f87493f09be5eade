"""Models that run: bundles and programs, opened models, their classes and answers."""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

__all__ = ["Answer", "BundleInfo", "OpenedModel", "Predictor", "UnreadablePicture", "open_model"]

if TYPE_CHECKING:
    from xcite.runtime.answers import Answer, UnreadablePicture
    from xcite.runtime.bundle import BundleInfo
    from xcite.runtime.opening import OpenedModel, open_model
    from xcite.runtime.predictor import Predictor
else:
    __getattr__ = lazy_modules(
        __name__,
        Answer="answers",
        BundleInfo="bundle",
        OpenedModel="opening",
        Predictor="predictor",
        UnreadablePicture="answers",
        open_model="opening",
    )
