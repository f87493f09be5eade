"""What Pillow keeps for a whole process, set only while a picture is decoded."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

from PIL import Image


class PillowScope:
    """Within it Pillow's own bomb limit follows ours, and its remarks are not printed.

    What matters becomes an error; remarks on bombs and odd EXIF data would only fill the log.
    Threads may be inside together: the first one sets, the last one puts back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._warnings = warnings.catch_warnings()
        self._limit: int | None = None

    @contextlib.contextmanager
    def __call__(self, max_pixels: int) -> Iterator[None]:
        """Args:
        max_pixels: as many are allowed at least. Pillow refuses twice as many by itself, which
            bounds what it sets up before its caller can look at the size.
        """
        with self._lock:
            if not self._inside:
                self._limit = Image.MAX_IMAGE_PIXELS
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif|pillow_jxl)\b")
            self._inside += 1
            if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._warnings.__exit__(None, None, None)
                    Image.MAX_IMAGE_PIXELS = self._limit


pillow_scope = PillowScope()
