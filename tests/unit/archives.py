"""Tar archives for tests, of names and bytes."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Members = Iterable[tuple[str, bytes]]


def tar(path: Path, members: Members, mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w") -> None:
    """Write an archive, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            add(archive, name, data)


def tar_bytes(members: Members) -> bytes:
    """The bytes of an archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            add(archive, name, data)
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add one member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
