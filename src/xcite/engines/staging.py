"""A part of a batch on its way to the device."""

from collections.abc import Callable
from typing import Any

from xcite.data.batch import Batch


class Staged:
    """What `Engine.stage` makes of a batch.

    Attributes:
        batch: as the loader made it.
    """

    def __init__(self, batch: Batch, images: Callable[[], Any], targets: Callable[[], Any]) -> None:
        self.batch = batch
        self._images = images
        self._targets = targets

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def images(self) -> Any:
        """The batch as the model sees it, float32 (B, C, H, W) on the device."""
        return self._images()

    @property
    def targets(self) -> Any:
        """float32 (B, K) on the device."""
        return self._targets()
