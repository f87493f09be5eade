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

    def left_out_in_words(self) -> str:
        """Such as "3 .txt files (cat/notes.txt), 1 hidden files (.x)"; "" if nothing is."""
        kinds = (
            f"{count:,} {kind} ({self.examples[kind]})" for kind, count in self.left_out.items()
        )
        return ", ".join(kinds)

    def copy(self) -> "Found":
        """One that can be added to."""
        return Found(dict(self.left_out), dict(self.examples), list(self.warnings))


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

    @classmethod
    def of_arrays(cls, text: np.ndarray, ends: np.ndarray) -> "Names":
        """What `arrays` gave."""
        names = cls(())
        names._ends, names._bytes = ends, text.tobytes()
        return names

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8, the encoded names in a row; int64 (n,), where each of them ends."""
        return np.frombuffer(self._bytes, np.uint8), self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])

    def update(self, digest: "hashlib._Hash") -> None:
        """Add all names to a hash."""
        digest.update(self._ends.tobytes())
        digest.update(self._bytes)


def evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` indices below ``count`` at even distances, the first and the last included."""
    indices: list[int] = np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()
    return indices


def common_folder(source: Source) -> str:
    """What the names of all pictures begin with, up to the end of a folder; "" for nothing.

    So names that are cut there stay the same when the folder is moved.
    """
    shared = _folder(source.name(0))
    for index in range(len(source)):
        name = source.name(index)
        while not name.startswith(shared):
            shared = _folder(shared[:-1])
    return shared


def _folder(path: str) -> str:
    return path[: max(path.rfind("/"), path.rfind(os.sep)) + 1]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; no link into a circle or a locked place is."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def read_file(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file; that no more files can be opened is no fault of this one, so OSError."""
    try:
        return read_regular(path, offset, size)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise XciteError(f"{path}: {error.strerror or error}") from error


State = tuple[int, int, int]


def state(path: str) -> State:
    """What changes when a file is replaced or written to, or a folder gains or loses a name."""
    try:
        return state_of(os.stat(path))
    except OSError as error:
        raise XciteError(f"{path}: {error.strerror or error}") from error


def state_of(about: os.stat_result) -> State:
    """`state` of what was asked about already."""
    return about.st_ino, about.st_size, about.st_mtime_ns


def identity(about: os.stat_result) -> tuple[int, int]:
    """What is the same for two paths to one folder."""
    return about.st_dev, about.st_ino


def fingerprint(names: Names, labels: np.ndarray, class_names: list[str]) -> str:
    """Hash of a listing."""
    digest = hashlib.sha256()
    names.update(digest)
    digest.update(labels.tobytes())
    Names(class_names).update(digest)
    return digest.hexdigest()
