"""Files that appear whole or not at all: written aside, flushed to disk, then renamed."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xcite.errors import XciteError

# Asked once, because asking changes it for a moment in all threads.
os.umask(_UMASK := os.umask(0))


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` that replaces it on success and vanishes on failure.

    Raises:
        XciteError: when the folder cannot be written or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        os.close(handle)
    except OSError as error:
        raise XciteError(f"cannot write {target}: {error.strerror or error}") from error
    aside = Path(name)
    try:
        yield aside
        with aside.open("r+b") as written:  # Windows flushes only what may be written
            os.fsync(written.fileno())
        # mkstemp makes private files; what we publish follows the umask
        aside.chmod(0o666 & ~_UMASK)
        aside.replace(target)
        flush_folder(target.parent)
    except OSError as error:
        raise XciteError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to disk, so that a renamed file is still so after a power cut."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush folders
            raise
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
