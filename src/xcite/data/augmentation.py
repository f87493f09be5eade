"""The training transform: from an opened picture to augmented pixels."""

import numpy as np
from PIL import Image

from xcite.data import randaugment, transforms
from xcite.data.decoding import Opened
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
        """Augment one picture: uint8 (size, size, C), a pure function of picture and draws."""
        augment = self._augment
        image = self._cropped(opened, draws)
        if augment.flip and draws.random() < augment.flip:
            image = transforms.flip(image)
        if self._policy is not None:
            image = randaugment.apply(image, randaugment.draw(draws, self._policy), self._fill)
        elif augment.color_jitter:
            jitters = transforms.draw_color_jitter(draws, augment.color_jitter)
            image = transforms.color_jitter(image, jitters)
        return transforms.pixels_of(image)

    def _cropped(self, opened: Opened, draws: transforms.Draws) -> Image.Image:
        preprocessing = self._preprocessing
        size, channels = preprocessing.size, preprocessing.channels
        if self._augment.crop == "random_resized":
            width, height = opened.size
            box = transforms.random_resized_crop_box(
                draws, height, width, self._augment.scale, self._augment.ratio
            )
            scale = opened.jpeg_scale(min(box[2:]), size) if self._fast else 1
            image = opened.pixels(channels=channels, box=box, scale=scale)
            resize = transforms.fast_resize if self._fast else transforms.resize
            return resize(image, size, preprocessing.interpolation)
        short = transforms.shorter_side(preprocessing)
        scale = opened.jpeg_scale(min(opened.size), short) if self._fast else 1
        image = opened.pixels(channels=channels, scale=scale)
        image = transforms.centre_crop(transforms.resize_shorter_side(image, preprocessing), size)
        return transforms.padded_crop(draws, image) if self._augment.crop == "padded" else image
