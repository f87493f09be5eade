"""What a `Predictor` says of a picture: its classes, or why there are none."""

from collections.abc import Iterable

from xcite.errors import XciteError


class Answer(list[tuple[str, float]]):
    """The most probable classes of one picture, the most probable first: (name, probability).

    Attributes:
        picture: what the picture is called: its path, the name of its file, or "picture 3".
    """

    def __init__(self, classes: Iterable[tuple[str, float]] = (), *, picture: str = "") -> None:
        super().__init__(classes)
        self.picture = picture


class UnreadablePicture(XciteError):
    """One picture that could not be read; the message names it and says why.

    Attributes:
        picture: what the picture is called, as in `Answer.picture`.
    """

    def __init__(self, message: str, *, picture: str = "") -> None:
        super().__init__(message)
        self.picture = picture
