"""A stretch of a file as a file of its own: how several are kept one behind the other."""

import io
from pathlib import Path
from typing import BinaryIO, cast


class _Section(io.RawIOBase):
    """Bytes ``start`` to ``start + length`` of a file, counted from 0."""

    def __init__(self, path: Path, start: int, length: int):
        self._file = path.open("rb", buffering=0)
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("a position before the section's beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        done = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._position += done
        return done

    def close(self) -> None:
        self._file.close()
        super().close()


def open_section(path: Path, start: int, length: int) -> BinaryIO:
    """Open ``length`` bytes of a file from ``start``; what lies outside cannot be read."""
    return cast(BinaryIO, io.BufferedReader(_Section(path, start, length)))
