"""What a source of pictures is, and what all listings share.

A source is a listing and a way to read one picture's bytes. It holds no open file, so it can be
sent to worker processes.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from xcite.data.decoding import SUFFIXES
from xcite.errors import XciteError
from xcite.regular_files import read_regular


@dataclass
class Found:
    """What a listing met besides the pictures that it lists.

    Attributes:
        left_out: how many of each kind were left out, by the kind in words ("hidden files").
        examples: one name of each kind.
        warnings: what is probably not what was meant.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, kind: str, example: str, count: int = 1) -> None:
        """Count what is left out."""
        self.left_out[kind] = self.left_out.get(kind, 0) + count
        self.examples.setdefault(kind, example)


class Source(Protocol):
    """Labelled pictures in a fixed order.

    Attributes:
        class_names: in the order of the labels.
        labels: int64 (n,).
        notes: what people should know about the listing.
        found: what was left out, and what looks wrong.
    """

    class_names: list[str]
    labels: np.ndarray
    notes: Sequence[str]
    found: Found

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """The encoded picture, or its pixels uint8 (H, W, C); XciteError if unreadable."""

    def name(self, index: int) -> str:
        """What a message calls the picture."""

    def fingerprint(self) -> str:
        """Hash of the listing: names, labels, classes; not of the place or the pixels."""

    def files(self) -> Iterable[str]:
        """Paths of the files that hold the pictures, in their order."""


class Subset:
    """Some pictures of another source, in the order of ``indices``; the classes stay all of its."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.class_names = source.class_names
        self.labels = source.labels[self.indices]
        self.notes = source.notes
        self.found = source.found

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def files(self) -> Iterable[str]:
        files = list(self.source.files())
        if len(files) != len(self.source):  # archives of many pictures
            return files
        return [files[index] for index in self.indices.tolist()]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.indices.tobytes())
        return digest.hexdigest()


class Names:
    """Many strings in little memory: a million paths need no million Python objects."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])

    def update(self, digest: "hashlib._Hash") -> None:
        """Add all names to a hash."""
        digest.update(self._ends.tobytes())
        digest.update(self._bytes)


class Listed:
    """What listings of encoded pictures share."""

    class_names: list[str]
    labels: np.ndarray
    notes: Sequence[str] = ()
    found: Found

    def __init__(
        self, names: Iterable[str], found: Sequence[str | int], classes: list[str] | None, spec: str
    ) -> None:
        self.found = Found()
        self._names = Names(names)
        if not len(self._names):
            raise XciteError(f"{spec}: no pictures found ({', '.join(SUFFIXES[:4])}, ...)")
        self.class_names = classes or sorted({str(name) for name in found})
        for name in self.class_names:
            if not name.isascii() and name.encode(errors="replace").decode() != name:
                raise XciteError(f"{spec}: the class name {name!r} is not UTF-8; rename it")
        position = {name: label for label, name in enumerate(self.class_names)}
        unknown = sorted({str(name) for name in found} - set(position))
        if unknown:
            raise XciteError(
                f"{spec}: class {unknown[0]!r} is not among the {len(position)} expected ones "
                f"({', '.join(self.class_names[:5])}{', ...' if len(position) > 5 else ''})"
            )
        self.labels = np.array([position[str(name)] for name in found], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        raise NotImplementedError

    def files(self) -> Iterable[str]:
        return map(self.name, range(len(self)))

    def fingerprint(self) -> str:
        return fingerprint(self._names, self.labels, self.class_names)


def read_file(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file; that no more files can be opened is no fault of this one, so OSError."""
    try:
        return read_regular(path, offset, size)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise XciteError(f"{path}: {error.strerror or error}") from error


def state(path: str) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise XciteError(f"{path}: {error.strerror or error}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def fingerprint(names: Names, labels: np.ndarray, class_names: list[str]) -> str:
    """Hash of a listing."""
    digest = hashlib.sha256()
    names.update(digest)
    digest.update(labels.tobytes())
    Names(class_names).update(digest)
    return digest.hexdigest()
