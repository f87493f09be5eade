"""A part of a batch on its way to a device that computes beside the processor."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from xcite.data.batch import Batch


class Staged:
    """What `Engine.stage` makes of a batch: its bytes travel while an earlier step computes.

    Attributes:
        batch: as the loader made it.
        targets: float32 (B, K) on the device.
    """

    def __init__(self, batch: Batch, targets: Any, images: Callable[[], Any]) -> None:
        """``images`` queues the work that `xcite.engines.pixels.model_input` does in NumPy."""
        self.batch = batch
        self.targets = targets
        self._make = images

    def __len__(self) -> int:
        return len(self.batch)

    @cached_property
    def images(self) -> Any:
        """The batch as the model sees it, float32 (B, C, H, W) on the device."""
        return self._make()
