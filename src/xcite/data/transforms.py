"""What is done to pixels, in training and in evaluation.

Each operation is a pure function of (picture, argument) and each draw a pure function of a
generator, so both can be checked by themselves. Boxes are (top, left, height, width) in pixels.
"""

import math
from functools import cache
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from xcite.data.bands import Bands, Raster
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing, Size, sides

Box = tuple[int, int, int, int]

_INTERPOLATION = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_TRIES = 10
# A picture longer than this is cut to it before resizing: its resized copy alone could fill the
# memory, and the centre crop keeps only the middle.
_LONGEST = 64


class Draws(Protocol):
    """The part of `numpy.random.Generator` that augmentation draws from."""

    def random(self) -> float: ...
    def uniform(self, low: float, high: float) -> float: ...
    def normal(self, mean: float, deviation: float) -> float: ...
    def integers(self, *arguments: Any, **options: Any) -> Any: ...
    def permutation(self, x: int) -> Any: ...


# --- evaluation ---------------------------------------------------------------------------------


def evaluation_pixels(picture: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize and centre-crop one picture: uint8 (H, W, C) to uint8 (height, width, C).

    What is cut out is as large as it can be, or ``crop_ratio`` of that. For a square the shorter
    side becomes ``size / crop_ratio`` with Pillow's antialiased filter, exactly as torchvision and
    PASSL do it.
    """
    image = resize_to_cover(to_image(picture), preprocessing)
    return pixels_of(centre_crop(image, preprocessing.size))


def normalise(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (B, H, W, C) to float32 (B, C, H, W): v / 255, minus mean, divided by std.

    Three vectorised passes over 16 pictures of 224 x 224 take 2 ms; table look-ups take 13.

    Raises:
        XciteError: the pictures' channels are not the preprocessing's.
    """
    require_channels(pixels, preprocessing)
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images /= np.float32(255)
    images -= np.array(preprocessing.mean, np.float32)[:, None, None]
    images /= np.array(preprocessing.std, np.float32)[:, None, None]
    return images


def require_channels(pixels: np.ndarray, preprocessing: Preprocessing) -> None:
    """Raise XciteError where pictures (B, H, W, C) have other channels than the preprocessing."""
    channels = pixels.shape[-1]
    if channels != preprocessing.channels:
        raise XciteError(
            f"the pictures have {channels} channels but preprocessing.mean and std have "
            f"{preprocessing.channels} values; make them agree"
        )


def covered(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width that a resized picture covers, before the centre crop, in pixels."""
    ratio = preprocessing.crop_ratio
    return math.floor(preprocessing.height / ratio), math.floor(preprocessing.width / ratio)


def resize_to_cover(image: Raster, preprocessing: Preprocessing) -> Raster:
    """Resize in its proportions so that it just covers `covered`, the longer way truncated."""
    down, across = covered(preprocessing)
    width, height = image.size
    longest = _LONGEST * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = image.size
    # multiply before dividing: with the ratio first, some sizes lose a pixel
    if width * down <= height * across:
        size = across, across * height // width
    else:
        size = down * width // height, down
    return image.resize(size, _INTERPOLATION[preprocessing.interpolation])


def centre_crop(image: Raster, size: Size) -> Raster:
    """Cut ``size`` from the centre; a smaller picture is padded with black."""
    height, width = sides(size)
    across, down = image.size
    if across < width or down < height:
        missing_x, missing_y = max(0, width - across), max(0, height - down)
        left, top = -(missing_x // 2), -(missing_y // 2)
        image = image.crop((left, top, left + across + missing_x, top + down + missing_y))
        across, down = image.size
    # Python rounds ties to even, as the references do
    top, left = round((down - height) / 2), round((across - width) / 2)
    return image.crop((left, top, left + width, top + height))


# --- training geometry --------------------------------------------------------------------------


def random_resized_crop_box(
    draws: Draws,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box of random area (share ``scale`` of the picture) and random width / height ``ratio``."""
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = draws.uniform(*scale) * width * height
        aspect = math.exp(draws.uniform(*log_ratio))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(draws.integers(0, height - box_height, endpoint=True))
            left = int(draws.integers(0, width - box_width, endpoint=True))
            return top, left, box_height, box_width
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize(image: Raster, size: Size, interpolation: str = "bicubic") -> Raster:
    """Resize to ``size`` pixels, antialiased."""
    return image.resize(sides(size)[::-1], _INTERPOLATION[interpolation])


def fast_resize(image: Raster, size: Size, interpolation: str = "bicubic") -> Raster:
    """The same seven times as fast: SIMD, with weights of 16 bits where Pillow's have 22.

    Fewer than one pixel in a hundred (bilinear: in ten, its values are often halves) is a level or
    two off Pillow 12. Pillow 13 resizes down before across, which with bicubic moves pixels beside
    the sharpest edges further. Every processor gives the same pixels.

    Raises:
        XciteError: the library is not installed.
    """
    resizer, options = _fast_resizer(interpolation)

    def resized(band: Image.Image) -> Image.Image:
        result = Image.new(band.mode, sides(size)[::-1])
        resizer.resize_pil(band, result, options)
        return result

    return image.each(resized) if isinstance(image, Bands) else resized(image)


@cache
def _fast_resizer(interpolation: str) -> tuple[Any, Any]:
    try:
        from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
    except ImportError as error:
        raise XciteError(
            "data.fast needs cykooz.resizer: pip install 'xcite[fast]', or set data.fast=false"
        ) from error
    # Catmull and Rom's spline is what Pillow calls bicubic
    kind = FilterType.catmull_rom if interpolation == "bicubic" else FilterType.bilinear
    return Resizer(), ResizeOptions(resize_alg=ResizeAlg.convolution(kind))


def flip(image: Raster) -> Raster:
    """Left becomes right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def padded_crop(draws: Draws, image: Raster) -> Raster:
    """Shift by up to 1/8 of the side in either direction; uncovered pixels are black.

    At 32 pixels this is the usual crop of CIFAR pictures with 4 pixels of padding.
    """
    width, height = image.size
    margin_x, margin_y = width // 8, height // 8
    top = int(draws.integers(0, 2 * margin_y, endpoint=True)) - margin_y
    left = int(draws.integers(0, 2 * margin_x, endpoint=True)) - margin_x
    return image.crop((left, top, left + width, top + height))


# --- colour -------------------------------------------------------------------------------------

_JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def draw_color_jitter(draws: Draws, strength: float) -> list[tuple[int, float]]:
    """Order and factors of brightness (0), contrast (1) and saturation (2)."""
    # torchvision permutes four, the fourth is hue, which the recipe leaves alone
    order = [int(which) for which in draws.permutation(4) if which < 3]
    factors = [draws.uniform(max(0.0, 1 - strength), 1 + strength) for _ in _JITTERS]
    return [(which, factors[which]) for which in order]


def color_jitter(image: Image.Image, jitters: list[tuple[int, float]]) -> Image.Image:
    """Apply brightness, contrast and saturation in the drawn order."""
    for which, factor in jitters:
        image = _JITTERS[which](image).enhance(factor)
    return image


# --- erasing ------------------------------------------------------------------------------------


def random_erasing_box(
    draws: Draws, height: int, width: int, probability: float = 0.25
) -> Box | None:
    """The box to be replaced by noise, of 2 % to a third of the area; None: nothing is erased."""
    if draws.random() > probability:
        return None
    log_ratio = math.log(0.3), math.log(1 / 0.3)
    for _ in range(_TRIES):
        area = draws.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(draws.uniform(*log_ratio))
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if box_width < width and box_height < height:
            top = int(draws.integers(0, height - box_height, endpoint=True))
            left = int(draws.integers(0, width - box_width, endpoint=True))
            return top, left, box_height, box_width
    return None


# --- between Pillow and NumPy -------------------------------------------------------------------


def to_image(pixels: np.ndarray) -> Raster:
    """uint8 (H, W, C) as a Pillow picture of mode L or RGB, or as bands."""
    if pixels.shape[2] not in (1, 3):
        return Bands.of(pixels)
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def pixels_of(image: Raster) -> np.ndarray:
    """A Pillow picture of mode L or RGB, or bands, as uint8 (H, W, C)."""
    if isinstance(image, Bands):
        return image.pixels()
    return np.array(image).reshape(image.height, image.width, -1)
