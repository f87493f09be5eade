"""Whatever gives logits: an engine's model, its moving average, or a bundle."""

from typing import Protocol

import numpy as np

from xcite.engines.interface import Engine


class Classifier(Protocol):
    """What evaluation and prediction need of a model."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 (B, K) of normalised float32 images (B, C, H, W)."""


class EngineClassifier:
    """An engine's model, or its moving average, as a `Classifier`."""

    def __init__(self, engine: Engine, *, ema: bool = False, classes: int | None = None) -> None:
        """``classes``: how many of the first outputs are asked for; None for all."""
        self.engine = engine
        self.ema = ema
        self.classes = classes

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.engine.predict(images, ema=self.ema)[:, : self.classes]
