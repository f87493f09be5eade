"""How a picture becomes a model's input in evaluation; it travels with the weights."""

import math

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(BaseModel):
    """Resize the shorter side to ``size / crop_ratio``, crop the centre square, normalise.

    The pixels themselves are made by `xcite.data.transforms.evaluation_pixels` alone: training,
    evaluation, export, prediction and the server all call it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(224, ge=1, le=8192, description="side of the square input in pixels")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="input side / resized shorter side")
    interpolation: str = Field("bicubic", pattern="^(bicubic|bilinear)$")
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @model_validator(mode="after")
    def _one_mean_and_deviation_a_channel(self) -> "Preprocessing":
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; both need one "
                "(greyscale) or three (RGB)"
            )
        if not all(math.isfinite(m) for m in self.mean):
            raise ValueError("mean must be finite")
        if not all(0 < s < math.inf for s in self.std):
            raise ValueError("std must be above 0")
        return self

    @property
    def channels(self) -> int:
        """1: pictures are read as greyscale; 3: as RGB."""
        return len(self.mean)
