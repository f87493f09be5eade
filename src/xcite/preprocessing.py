"""How a picture becomes a model's input in evaluation; it travels with the weights."""

from pydantic import BaseModel, ConfigDict, Field

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

    @property
    def channels(self) -> int:
        """1: pictures are read as greyscale; 3: as RGB."""
        return len(self.mean)
