"""Pictures in no class folders: a folder of any depth, walked in order."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from xcite.data.formats import SUFFIXES, is_picture
from xcite.data.sources import Found, Names
from xcite.data.sources.source import fingerprint, identity, is_folder, read_file
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.errors import XciteError

UNLABELLED = ["unlabelled"]  # the classes of pictures whose labels nobody asks for


def pictures_below(
    folder: str, found: Found, wanted: Callable[[str], bool] = is_picture
) -> Iterator[str]:
    """Paths of pictures in a folder and those below it, by name, one after the other.

    Only the names of the folders on the way are held in memory. Links are followed, but no folder
    inside itself.

    Args:
        found: counts what is left out: files of other kinds, hidden ones, unreadable folders.
        wanted: whether a file of this name is a picture.

    Raises:
        XciteError: ``folder`` itself cannot be read.
    """
    try:
        around = [identity(os.stat(place)) for place in Path(os.path.realpath(folder)).parents]
        pending = [(identity(os.stat(folder)), folder, _entries(folder))]
    except OSError as error:
        raise XciteError(f"{folder}: {error.strerror or error}") from error
    while pending:
        _, place, entries = pending[-1]
        name, is_folder = next(entries, (None, False))
        if name is None:
            pending.pop()
            continue
        path = os.path.join(place, name)
        stray = stray_folder(name) if is_folder else stray_file(name)
        if not is_folder and wanted(name) and not name.startswith("."):
            yield path
        elif stray is not None:
            found.leave_out(stray, path)
        else:
            try:
                itself = identity(os.stat(path))
                if itself in around or any(itself == above for above, *_ in pending):
                    found.leave_out("links to a folder they lie in", path)
                else:
                    pending.append((itself, path, _entries(path)))
            except OSError:
                found.leave_out("folders that cannot be read", path)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Each name in a folder and whether it is a folder, sorted; of a million, little but names."""
    with os.scandir(folder) as entries:
        names, folders = [], set()
        for entry in entries:
            names.append(entry.name)
            if is_folder(entry):
                folders.add(entry.name)
    names.sort()
    return ((name, name in folders) for name in names)


class LoosePictures:
    """All pictures below a folder as a source whose labels say nothing: they are all 0."""

    notes: Sequence[str] = ()

    def __init__(self, folder: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.found = Found()
        self._root = os.path.abspath(folder)
        paths = pictures_below(self._root, self.found)
        self._names = Names(os.path.relpath(path, self._root) for path in paths)
        if not len(self._names):
            raise XciteError(f"{folder}: no pictures found ({', '.join(SUFFIXES[:4])}, ...)")
        self.class_names = list(class_names)
        self.labels = np.zeros(len(self._names), np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])

    def files(self) -> Iterable[str]:
        return map(self.name, range(len(self)))

    def fingerprint(self) -> str:
        return fingerprint(self._names, self.labels, self.class_names)
