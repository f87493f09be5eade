"""The bodies of answers, as the API describes them."""

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Seen(BaseModel):
    """The part of the upright picture the model saw, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


class Attention(BaseModel):
    """Where the classifier looked: last class-attention layer, mean over its heads."""

    rows: int
    columns: int
    values: list[float] = Field(description="row-major, the largest is 1")
    seen: Seen


class PictureAnswer(BaseModel):
    """The answer to one file: predictions, the most probable first, or an error in words."""

    file: str
    predictions: list[Prediction] | None = None
    attention: Attention | None = None
    error: str | None = None


class Answers(BaseModel):
    """One entry per file, in the order sent."""

    pictures: list[PictureAnswer]


class Problem(BaseModel):
    """Why a request was refused, in words; with the files' own errors where there are any."""

    error: str
    pictures: list[PictureAnswer] | None = None
