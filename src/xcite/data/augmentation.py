"""The training transform: from an opened picture to augmented pixels."""

import numpy as np
from PIL import Image

from xcite.data import randaugment, transforms
from xcite.data.bands import Bands, Raster
from xcite.data.decoding import Opened
from xcite.preprocessing import sides
from xcite.recipe import Recipe


class Augmentation:
    """Crop, flip and colour, as a recipe says; erasing and mixing come after normalising.

    Only the crop is converted and resized, which is cheaper. With ``data.fast`` a JPEG is
    decoded no larger than the crop needs, and `transforms.fast_resize` takes Pillow's place.

    Raises:
        XciteError: ``data.fast`` without the library that it needs.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._augment = recipe.augment
        self._preprocessing = recipe.preprocessing
        self._fast = recipe.data.fast
        policy = recipe.augment.randaugment
        self._policy = randaugment.parse(policy) if policy else None
        self._fill = randaugment.fill_colour(recipe.preprocessing.mean)
        if self._fast and recipe.augment.crop == "random_resized":
            transforms.fast_resize(Image.new("L", (1, 1)), 1)  # better refused now than in a worker

    def __call__(self, opened: Opened, draws: transforms.Draws) -> np.ndarray:
        """Augment one picture: uint8 (height, width, C), a pure function of picture and draws."""
        augment = self._augment
        image = self._cropped(opened, draws)
        if augment.flip and draws.random() < augment.flip:
            image = transforms.flip(image)
        if isinstance(image, Bands):  # whose recipe has no colour operations
            return image.pixels()
        if self._policy is not None:
            image = randaugment.apply(image, randaugment.draw(draws, self._policy), self._fill)
        elif augment.color_jitter:
            jitters = transforms.draw_color_jitter(draws, augment.color_jitter)
            image = transforms.color_jitter(image, jitters)
        return transforms.pixels_of(image)

    def _cropped(self, opened: Opened, draws: transforms.Draws) -> Raster:
        preprocessing = self._preprocessing
        channels = preprocessing.channels
        if self._augment.crop == "random_resized":
            width, height = opened.size
            box = transforms.random_resized_crop_box(
                draws, height, width, self._augment.scale, self._augment.ratio
            )
            scale = self._scale(opened, (box[2], box[3]), sides(preprocessing.size))
            image = opened.pixels(channels=channels, box=box, scale=scale)
            resize = transforms.fast_resize if self._fast else transforms.resize
            return resize(image, preprocessing.size, preprocessing.interpolation)
        scale = self._scale(opened, opened.size[::-1], transforms.covered(preprocessing))
        image = transforms.resize_to_cover(
            opened.pixels(channels=channels, scale=scale), preprocessing
        )
        image = transforms.centre_crop(image, preprocessing.size)
        return transforms.padded_crop(draws, image) if self._augment.crop == "padded" else image

    def _scale(self, opened: Opened, sides: tuple[int, int], wanted: tuple[int, int]) -> int:
        """By what a JPEG may shrink while it is decoded, so that both sides keep enough pixels."""
        if not self._fast:
            return 1
        return min(
            opened.jpeg_scale(side, target) for side, target in zip(sides, wanted, strict=True)
        )
