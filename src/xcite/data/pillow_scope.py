"""What Pillow keeps for a whole process, set only while a picture is decoded."""

import re
import threading
import warnings
from types import TracebackType
from typing import Any

from PIL import Image

# What matters becomes an error; remarks on bombs and odd EXIF data would only fill the log.
_UNHEARD: Any = ("ignore", None, Warning, re.compile(r"(PIL|pillow_heif|pillow_jxl)\b"), 0)
_lock = threading.Lock()
_inside = 0
_before: tuple[Any, int | None] = ([], None)  # of the first one inside


class PillowScope:
    """Within it Pillow's own bomb limit follows ours, and its remarks are not printed.

    Threads may be inside together: the first one sets, the last one puts back. It is entered for
    every picture, which `warnings.catch_warnings` would make ten times as dear.
    """

    def __init__(self, max_pixels: int) -> None:
        """Args:
        max_pixels: as many are allowed at least. Pillow refuses twice as many by itself, which
            bounds what it sets up before its caller can look at the size.
        """
        self._max_pixels = max_pixels

    def __enter__(self) -> None:
        global _inside, _before
        with _lock:
            if not _inside:
                _before = warnings.filters, Image.MAX_IMAGE_PIXELS
                warnings.filters = [_UNHEARD, *warnings.filters]
            _inside += 1
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and limit < self._max_pixels:
                Image.MAX_IMAGE_PIXELS = self._max_pixels

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _inside
        with _lock:
            _inside -= 1
            if not _inside:
                warnings.filters, Image.MAX_IMAGE_PIXELS = _before
