"""RandAugment with the 15 operations of timm's increasing set, bit for bit.

Strings such as ``rand-m9-mstd0.5-inc1`` are timm's: magnitude 9 with a standard deviation of 0.5,
two operations per picture, each carried out with probability 1/2.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from xcite.data.transforms import Draws
from xcite.errors import XciteError

Fill = int | tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One of the 15: its argument from a magnitude, and what it does to a picture.

    Attributes:
        argument: of (magnitude / 10, sign) with magnitude in 0..10; None where there is none.
        signed: whether a sign is drawn.
        apply: (picture, argument, fill colour) to picture.
    """

    name: str
    argument: Callable[[float, int], Any] | None
    signed: bool
    apply: Callable[[Image.Image, Any, Fill], Image.Image]


@dataclass(frozen=True)
class Policy:
    """How operations are drawn."""

    magnitude: float = 9.0
    deviation: float = 0.5
    layers: int = 2
    probability: float = 0.5


def parse(text: str) -> Policy:
    """Read timm's notation: ``rand``, then m (magnitude), mstd, n (layers), p, and inc1.

    Raises:
        XciteError: not of that form, or not of the increasing set.
    """
    head, *parts = text.split("-")
    values: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"(m|mstd|n|p|inc)(\d+(?:\.\d+)?)", part)
        if found is None:
            raise XciteError(f"augment.randaugment {text!r}: cannot read {part!r}")
        values[found[1]] = float(found[2])
    if head != "rand" or values.pop("inc", None) != 1:
        raise XciteError(f"augment.randaugment {text!r}: only 'rand-m..-mstd..-inc1' is supported")
    policy = Policy(
        magnitude=values.get("m", 10.0),
        deviation=values.get("mstd", 0.0),
        layers=int(values.get("n", 2)),
        probability=values.get("p", 0.5),
    )
    if policy.magnitude > 10 or policy.deviation > 10 or not 1 <= policy.layers <= 15:
        raise XciteError(f"augment.randaugment {text!r}: m and mstd go to 10, n from 1 to 15")
    return policy


def draw(draws: Draws, policy: Policy) -> list[tuple[Operation, Any]]:
    """The operations to carry out, with their arguments, in order."""
    # which ones first, with replacement; then whether and how strongly each
    chosen = [
        OPERATIONS[int(draws.integers(0, len(OPERATIONS) - 1, endpoint=True))]
        for _ in range(policy.layers)
    ]
    result = []
    for operation in chosen:
        if draws.random() > policy.probability:
            continue
        magnitude = policy.magnitude
        if policy.deviation:
            magnitude = draws.normal(policy.magnitude, policy.deviation)
        level = min(10.0, max(0.0, magnitude)) / 10
        sign = -1 if operation.signed and draws.random() > 0.5 else 1
        argument = operation.argument(level, sign) if operation.argument else None
        result.append((operation, argument))
    return result


def apply(image: Image.Image, operations: list[tuple[Operation, Any]], fill: Fill) -> Image.Image:
    """Carry out drawn operations on a picture of mode RGB or L."""
    for operation, argument in operations:
        image = operation.apply(image, argument, fill)
    return image


def fill_colour(mean: tuple[float, ...]) -> Fill:
    """What uncovered pixels become: the mean colour in 8 bits, so nearly 0 after normalising.

    A plain number for one channel, as Pillow wants it.
    """
    colour = tuple(min(255, round(255 * value)) for value in mean)
    return colour if len(colour) > 1 else colour[0]


def _point(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, bits: int, fill: Fill) -> Image.Image:
    # not ImageOps.posterize, which refuses the 0 bits that magnitude 10 asks for
    mask = 256 - (1 << (8 - bits))
    return _point(image, [value & mask for value in range(256)])


def _solarize(image: Image.Image, threshold: int, fill: Fill) -> Image.Image:
    return _point(image, [v if v < threshold else 255 - v for v in range(256)])


def _solarize_add(image: Image.Image, add: int, fill: Fill) -> Image.Image:
    return _point(image, [min(255, v + add) if v < 128 else v for v in range(256)])


def _affine(image: Image.Image, data: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        data,
        resample=Image.Resampling.BICUBIC,
        fillcolor=fill,
    )


def _rotate(image: Image.Image, degrees: float, fill: Fill) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def _enhance_factor(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level * 0.9))


def _enhance(kind: Any) -> Callable[[Image.Image, Any, Fill], Image.Image]:
    return lambda image, factor, fill: kind(image).enhance(factor)


OPERATIONS = (
    Operation("AutoContrast", None, False, lambda image, _, fill: ImageOps.autocontrast(image)),
    Operation("Equalize", None, False, lambda image, _, fill: ImageOps.equalize(image)),
    Operation("Invert", None, False, lambda image, _, fill: ImageOps.invert(image)),
    Operation("Rotate", lambda level, sign: sign * (level * 30.0), True, _rotate),
    Operation("PosterizeIncreasing", lambda level, _: 4 - int(level * 4), False, _posterize),
    Operation(
        "SolarizeIncreasing",
        lambda level, _: 256 - min(256, int(level * 256)),
        False,
        _solarize,
    ),
    Operation("SolarizeAdd", lambda level, _: min(128, int(level * 110)), False, _solarize_add),
    Operation("ColorIncreasing", _enhance_factor, True, _enhance(ImageEnhance.Color)),
    Operation("ContrastIncreasing", _enhance_factor, True, _enhance(ImageEnhance.Contrast)),
    Operation("BrightnessIncreasing", _enhance_factor, True, _enhance(ImageEnhance.Brightness)),
    Operation("SharpnessIncreasing", _enhance_factor, True, _enhance(ImageEnhance.Sharpness)),
    Operation(
        "ShearX",
        lambda level, sign: sign * (level * 0.3),
        True,
        lambda image, k, fill: _affine(image, (1, k, 0, 0, 1, 0), fill),
    ),
    Operation(
        "ShearY",
        lambda level, sign: sign * (level * 0.3),
        True,
        lambda image, k, fill: _affine(image, (1, 0, 0, k, 1, 0), fill),
    ),
    Operation(
        "TranslateXRel",
        lambda level, sign: sign * (level * 0.45),
        True,
        lambda image, share, fill: _affine(image, (1, 0, share * image.width, 0, 1, 0), fill),
    ),
    Operation(
        "TranslateYRel",
        lambda level, sign: sign * (level * 0.45),
        True,
        lambda image, share, fill: _affine(image, (1, 0, 0, 0, 1, share * image.height), fill),
    ),
)
"""In timm's order, which the draws refer to."""
