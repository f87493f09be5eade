"""Files and folders that appear whole or not at all: written aside, flushed, then renamed."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
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


@contextlib.contextmanager
def whole_folder(
    path: str | os.PathLike[str], own: Callable[[Path], Collection[str] | None], kind: str
) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` on success and vanishes on failure.

    An earlier folder of the kind is replaced, and what lies in it beside its own files is kept; any
    other is refused, unless it is empty.

    Args:
        own: names of the files that make a folder one of the kind; None for any other folder.
        kind: what messages call it, such as "a bundle".

    Raises:
        XciteError: ``path`` is not ours to replace, or cannot be written.
    """
    target = Path(path)
    try:
        empty = target.is_dir() and not any(target.iterdir())
        if target.exists() and not empty and own(target) is None:
            raise XciteError(f"{target} exists and is not {kind}; choose another place")
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise XciteError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield aside
        aside.chmod(0o777 & ~_UMASK)
        if target.exists():
            _replace_folder(target, aside, own(target) or ())
        else:
            aside.rename(target)
    except OSError as error:
        raise XciteError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_folder(target: Path, by: Path, own: Collection[str]) -> None:
    """Put a folder in another one's place, which stays as it was if that fails."""
    old = by.with_suffix(".old")
    target.rename(old)
    try:
        by.rename(target)
    except OSError:
        old.rename(target)
        raise
    for path in old.iterdir():
        if path.name not in own and not (target / path.name).exists():
            path.rename(target / path.name)
    shutil.rmtree(old, ignore_errors=True)


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
