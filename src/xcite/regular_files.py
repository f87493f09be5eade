"""Files that are files: a FIFO, socket or device in a list is refused before it is opened."""

import os
import stat
from typing import BinaryIO

from xcite.errors import XciteError

LARGEST_READ = 1 << 30  # bytes; no encoded picture comes near
_NOT_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # not on Windows
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; links are followed.

    Raises:
        XciteError: it is something else, whose opening or reading could block or act.
        OSError: it cannot be opened.
    """
    _refuse_others(path, os.stat(path))
    # Between the look and the opening it may be replaced, so the opening must not block either.
    descriptor = os.open(path, os.O_RDONLY | _NOT_BLOCKING)
    try:
        _refuse_others(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a regular file, to its end or at most ``size``.

    Raises:
        XciteError: no regular file, or more than `LARGEST_READ` bytes.
        OSError: it cannot be read.
    """
    most = LARGEST_READ if size is None else size
    with open_regular(path) as file:
        if most > LARGEST_READ or (size is None and os.fstat(file.fileno()).st_size > most):
            raise XciteError(f"{path}: more than the {LARGEST_READ >> 20} MiB a picture may have")
        file.seek(offset)
        return file.read(most)


def _refuse_others(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise XciteError(f"{os.fspath(path)}: {kind}, not a file; it was not opened")
