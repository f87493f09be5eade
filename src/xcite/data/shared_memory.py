"""Shared memory whose names tell its owner, so that what a dead one left can be removed.

Python names segments at random. Its naming is private (``multiprocessing.shared_memory``): where
another version names them otherwise, segments keep random names and nothing is removed.
"""

import contextlib
import os
import re
from multiprocessing import shared_memory
from pathlib import Path

FOLDER = Path("/dev/shm")
_RANDOM = 16  # characters that make a name unique
_OWNED = re.compile(r"xcite-(\d+)-(\d+)-(\d+)-[0-9a-f]+")  # process namespace, process, its birth


def born(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; None if it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A process that has ended but is not yet waited for owns nothing any more.
    return None if fields[0] in "ZX" else int(fields[19])


def name_segments_after(owner: int) -> None:
    """Name all further segments of this process after the process ``owner``."""
    birth = born(owner)
    if birth is None or not hasattr(shared_memory, "_SHM_NAME_PREFIX"):
        return
    prefix = f"/xcite-{_namespace()}-{owner}-{birth}-"
    shared_memory._SHM_NAME_PREFIX = prefix
    shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + _RANDOM  # type: ignore[attr-defined]


def segments_of_the_dead() -> list[Path]:
    """Segments whose owners have ended; those of other containers are not among them."""
    found = []
    with contextlib.suppress(OSError):
        for path in FOLDER.iterdir():
            match = _OWNED.fullmatch(path.name)
            if match and match[1] == _namespace() and born(int(match[2])) != int(match[3]):
                found.append(path)
    return found


def remove_segments_of_the_dead() -> int:
    """Remove `segments_of_the_dead`.

    Returns:
        How many.
    """
    removed = 0
    for path in segments_of_the_dead():
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed


def _namespace() -> str:
    """Number of the namespace in which process numbers mean something here."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"
