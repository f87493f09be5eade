"""Lists of pictures, and of class names, as text files."""

import os
from collections.abc import Iterator
from pathlib import Path

from xcite.data.sources.source import Listed, read_file
from xcite.errors import XciteError
from xcite.regular_files import open_regular

_LONGEST_LINE = 1 << 16  # bytes
_LARGEST_LABEL = 1_000_000  # a list file's typing error must not allocate a million class names


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a text file, one a line, in label order."""
    names = [line.strip() for line in _lines(Path(path))]
    names = [name for name in names if name]
    if not names:
        raise XciteError(f"{path}: no class names in it")
    return names


class ListFile(Listed):
    """``path label`` lines, as PaddleClas writes them; paths may contain spaces."""

    def __init__(
        self, path: Path, root: Path | None, classes: list[str] | None, outside_root: bool = False
    ) -> None:
        self._root = os.path.abspath(root or path.parent)
        names: list[str] = []
        labels: list[int] = []
        outside = 0
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            if "\t" in label or not name:
                name, _, label = line.strip().rpartition("\t")
            if not name or not label.isdecimal() or int(label) > _LARGEST_LABEL:
                raise XciteError(f"{path} line {number}: expected 'path label', got {line[:80]!r}")
            name = name.strip()
            leaves = _leaves(name, self._root)
            if leaves and not outside_root and not (root is None and os.path.isabs(name)):
                raise XciteError(
                    f"{path} line {number}: {name!r} lies outside {self._root}; set data.root to "
                    "a folder that holds all pictures, or data.outside_root to true"
                )
            outside += leaves
            names.append(name)
            labels.append(int(label))
        if not names:
            raise XciteError(f"{path}: no pictures listed")
        if classes is None:
            classes = [str(label) for label in range(max(labels) + 1)]
        elif max(labels) >= len(classes):
            raise XciteError(f"{path}: label {max(labels)}, but there are {len(classes)} classes")
        super().__init__(names, [classes[label] for label in labels], classes, str(path))
        if outside:
            self.notes = [f"{outside} of {len(names)} pictures of {path} lie outside {self._root}"]
        if not os.path.exists(self.name(0)):
            raise XciteError(f"{path}: no file {self.name(0)}; set data.root to where paths start")

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


def _leaves(name: str, root: str) -> bool:
    """Whether a listed path leads out of ``root``, by its spelling alone."""
    if ".." not in name and not os.path.isabs(name):
        return False
    place = os.path.normpath(os.path.join(root, name))
    return not place.startswith(root.rstrip("/") + "/")


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_regular(path) as file:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise XciteError(f"{path}: a line of more than {_LONGEST_LINE} bytes")
                yield line.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise XciteError(f"{path}: not a readable text file ({error})") from error
