"""How a picture becomes a model's input in evaluation; it travels with the weights."""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_CHANNELS = 1024

Side = Annotated[int, Field(ge=1, le=8192)]
Size = Side | Annotated[tuple[Side, Side], Field(strict=False)]
"""Of an input in pixels: the side of a square, or height and width."""


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def in_pixels(size: Size) -> str:
    """In words: "224", "32 x 48"."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


class Preprocessing(BaseModel):
    """Resize so that ``size / crop_ratio`` is covered, crop the centre, normalise.

    The pixels themselves are made by `xcite.data.transforms.evaluation_pixels` alone: training,
    evaluation, export, prediction and the server all call it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Size = Field(224, description="side of a square input in pixels, or [height, width]")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="input side / resized shorter side")
    interpolation: str = Field("bicubic", pattern="^(bicubic|bilinear)$")
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @model_validator(mode="after")
    def _one_mean_and_deviation_a_channel(self) -> "Preprocessing":
        if not 0 < len(self.mean) == len(self.std) <= MOST_CHANNELS:
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; both need one a "
                f"channel: 1 for greyscale, 3 for RGB, at most {MOST_CHANNELS}"
            )
        if not all(math.isfinite(m) for m in self.mean):
            raise ValueError("mean must be finite")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError("std must be above 0")
        return self

    @model_validator(mode="after")
    def _square_as_one_number(self) -> "Preprocessing":
        if not isinstance(self.size, int) and self.size[0] == self.size[1]:
            object.__setattr__(self, "size", self.size[0])
        return self

    @classmethod
    def assumed(cls, channels: int) -> "Preprocessing":
        """What is assumed of a model that does not say: ImageNet's of RGB, else 0.5 and 0.5."""
        return cls() if channels == 3 else cls(mean=(0.5,) * channels, std=(0.5,) * channels)

    def at(self, size: Size) -> "Preprocessing":
        """The same for an input of another size."""
        return Preprocessing.model_validate(self.model_dump() | {"size": size})

    @property
    def channels(self) -> int:
        """1: pictures are read as greyscale; 3: as RGB; see `xcite.data.decoding` for others."""
        return len(self.mean)

    @property
    def height(self) -> int:
        """Of the input in pixels."""
        return sides(self.size)[0]

    @property
    def width(self) -> int:
        """Of the input in pixels."""
        return sides(self.size)[1]
