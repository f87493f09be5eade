"""Folders of class folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.source import Listed, read_file
from xcite.errors import XciteError


class ImageFolder(Listed):
    """One folder per class, pictures anywhere below it; sorted by class, then path."""

    def __init__(self, folder: Path, classes: list[str] | None) -> None:
        self._root = os.path.abspath(folder)
        names: list[str] = []
        found: list[str] = []
        for class_name in sorted(_visible_folders(self._root)):
            members = sorted(_pictures_below(self._root, class_name))
            if not members:
                raise XciteError(
                    f"{folder}: class folder {class_name!r} holds no pictures; "
                    "fill or remove it, or give the parent folder of the classes"
                )
            names += members
            found += [class_name] * len(members)
        super().__init__(names, found, classes, str(folder))

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


def _visible_folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        raise XciteError(f"{root}: {error.strerror}") from error


def _pictures_below(root: str, folder: str) -> Iterable[str]:
    for place, folders, files in os.walk(os.path.join(root, folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, root)
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield os.path.join(inside, file)
