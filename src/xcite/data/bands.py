"""Pictures of any number of channels: Pillow has no mode for them, so each is a grey picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image


class Bands:
    """Channels of equal size that are cut, resized and turned alike.

    What `xcite.data.transforms` uses of `PIL.Image.Image` is here under the same names, so that the
    geometry of training and evaluation is written once.

    Attributes:
        bands: one picture of mode L a channel.
    """

    def __init__(self, bands: Sequence[Image.Image]) -> None:
        self.bands = tuple(bands)

    @classmethod
    def of(cls, pixels: np.ndarray) -> Bands:
        """The bands of uint8 (H, W, C)."""
        planes = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))  # (C, H, W)
        return cls([Image.fromarray(plane) for plane in planes])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.bands[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, C)."""
        return np.stack([np.asarray(band) for band in self.bands], axis=2)

    def each(self, action: Callable[[Image.Image], Image.Image]) -> Bands:
        """What ``action`` makes of every band."""
        return Bands([action(band) for band in self.bands])

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        return self.each(lambda band: band.crop(box))

    def resize(self, size: tuple[int, int], method: Image.Resampling) -> Bands:
        return self.each(lambda band: band.resize(size, method))

    def transpose(self, method: Image.Transpose) -> Bands:
        return self.each(lambda band: band.transpose(method))


Raster = Image.Image | Bands
"""A decoded picture: mode L or RGB, or bands."""
