"""Where pictures come from: folders, tar shards read in place, list files, the built-in digits.

A source is a listing and a way to read one picture's bytes. It holds no open file, so it can be
sent to worker processes.
"""

import errno
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from xcite.data.decoding import SUFFIXES
from xcite.data.tar_members import tar_members
from xcite.errors import XciteError
from xcite.regular_files import open_regular, read_regular

_LONGEST_LINE = 1 << 16  # bytes
_LARGEST_LABEL = 1_000_000  # a list file's typing error must not allocate a million class names


class Source(Protocol):
    """Labelled pictures in a fixed order.

    Attributes:
        class_names: in the order of the labels.
        labels: int64 (n,).
        notes: what people should know about the listing.
    """

    class_names: list[str]
    labels: np.ndarray
    notes: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """The encoded picture, or its pixels uint8 (H, W, C); XciteError if unreadable."""

    def name(self, index: int) -> str:
        """What a message calls the picture."""

    def fingerprint(self) -> str:
        """Hash of the listing: names, labels, classes; not of the place or the pixels."""

    def files(self) -> Iterable[str]:
        """Paths of the files that hold the pictures, in their order."""


def open_source(
    spec: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    split: str = "train",
    outside_root: bool = False,
) -> Source:
    """List the pictures that ``spec`` names.

    Args:
        spec: a folder with one folder of pictures per class; a ``.tar`` file, a folder of them or a
            pattern such as ``shards/train-*.tar`` (the class is the folder inside the archive); a
            text file of ``path label`` lines; or "digits", scikit-learn's 1,797 handwritten ones.
        root: folder that a list file's paths start from; its own folder if empty.
        classes: class names in label order, as a model knows them; a class that is not among them
            is an error. If empty they come from the data.
        channels: of the digits, 3 or 1; encoded pictures are converted when decoded.
        split: "train" or "validation" of the digits; other sources are one split each.
        outside_root: allow paths of a list file or names of tar members that lead out of their
            root: with ``..``, or absolute ones beside a ``root``. An absolute path in a list file
            without a root is what its writer meant, and links on disk are the user's own.

    Raises:
        XciteError: nothing there, no pictures, unknown classes, or a damaged archive.
    """
    spec = os.fspath(spec)
    names = list(classes) if classes else None
    if names and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise XciteError(f"class {twice!r} is named twice")
    if spec == "digits":
        return Digits(split, channels, names)
    if any(sign in spec for sign in "*?["):
        shards = sorted(glob.glob(spec))
        if not shards:
            raise XciteError(f"{spec}: no file matches this pattern")
        return TarShards(spec, shards, names, outside_root)
    path = Path(spec)
    if path.is_dir():
        shards = sorted(str(shard) for shard in path.glob("*.tar"))
        return TarShards(spec, shards, names, outside_root) if shards else ImageFolder(path, names)
    if path.suffix == ".tar" and path.is_file():
        return TarShards(spec, [spec], names, outside_root)
    if path.is_file():
        return ListFile(path, Path(root) if root else None, names, outside_root)
    raise XciteError(
        f"{spec}: no such folder, list file or .tar; "
        "data.train and data.validation also take a pattern of .tar files or 'digits'"
    )


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a text file, one a line, in label order."""
    names = [line.strip() for line in _lines(Path(path))]
    names = [name for name in names if name]
    if not names:
        raise XciteError(f"{path}: no class names in it")
    return names


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


class _Listed:
    """What listings of encoded pictures share."""

    class_names: list[str]
    labels: np.ndarray
    notes: Sequence[str] = ()

    def __init__(
        self, names: Iterable[str], found: Sequence[str | int], classes: list[str] | None, spec: str
    ) -> None:
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
        return _fingerprint(self._names, self.labels, self.class_names)


class ImageFolder(_Listed):
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
        return _read(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


class ListFile(_Listed):
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
        return _read(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])


class TarShards(_Listed):
    """Uncompressed tar archives, read in place by offset; the class is the member's folder.

    Nothing is ever extracted, so member names are only names.
    """

    def __init__(
        self,
        spec: str,
        shards: Sequence[str],
        classes: list[str] | None,
        outside_root: bool = False,
    ) -> None:
        self._shards = [os.path.abspath(shard) for shard in shards]
        self._states = [_state(shard) for shard in self._shards]
        names: list[str] = []
        found: list[str] = []
        places: list[tuple[int, int, int]] = []
        for shard, path in enumerate(self._shards):
            for member, offset, size in tar_members(path):
                folder, _, file = member.rpartition("/")
                if file.startswith(".") or not file.lower().endswith(SUFFIXES):
                    continue
                if not outside_root and (member.startswith("/") or ".." in member.split("/")):
                    raise XciteError(
                        f"{path}: the name {member!r} leads out of the archive; if you trust it, "
                        "set data.outside_root to true"
                    )
                class_name = folder.rpartition("/")[2]
                if class_name in ("", ".", ".."):
                    raise XciteError(
                        f"{path}: {member!r} lies in no class folder; "
                        "members must be named <class>/<picture>"
                    )
                names.append(member)
                found.append(class_name)
                places.append((shard, offset, size))
        super().__init__(names, found, classes, spec)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def read(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self._places[index])
        data = _read(self._shards[shard], offset, size)
        if len(data) != size:
            raise XciteError(f"{self.name(index)}: the archive has become shorter since listing")
        if _state(self._shards[shard]) != self._states[shard]:
            raise XciteError(f"{self.name(index)}: the archive has changed since it was listed")
        return data

    def name(self, index: int) -> str:
        return f"{self._shards[int(self._places[index, 0])]}:{self._names[index]}"

    def files(self) -> Iterable[str]:
        return self._shards


class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; one in five is held out.

    The split is stratified and always the same; it does not depend on a run's seed.
    """

    notes: Sequence[str] = ()

    def __init__(self, split: str, channels: int, classes: list[str] | None) -> None:
        if split not in ("train", "validation"):
            raise XciteError(f"digits have the splits train and validation, not {split!r}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise XciteError(
                "the digits come with scikit-learn: pip install 'xcite[demo]'"
            ) from error
        values, digits = load_digits(return_X_y=True)  # (1797, 64) floats 0..16, (1797,)
        held_out = np.zeros(len(digits), bool)
        rng = np.random.default_rng(0)
        for digit in range(10):
            members = rng.permutation(np.flatnonzero(digits == digit))
            held_out[members[: round(len(members) / 5)]] = True
        chosen = np.flatnonzero(held_out == (split == "validation"))
        pixels = np.round(values[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        self.class_names = [str(digit) for digit in range(10)]
        if classes is not None and classes != self.class_names:
            raise XciteError(f"digits: the classes are 0 to 9, not {', '.join(classes[:5])}, ...")
        self.labels = digits[chosen].astype(np.int64)
        self._pixels = np.repeat(pixels, channels, axis=3)
        self._numbers = chosen
        self._split = split

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return self._pixels[index]

    def name(self, index: int) -> str:
        return f"digits:{self._split}/{self._numbers[index]}"

    def files(self) -> Iterable[str]:
        return ()

    def fingerprint(self) -> str:
        names = Names(str(number) for number in self._numbers)
        return _fingerprint(names, self.labels, self.class_names)


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


def _read(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Bytes of a file; that no more files can be opened is no fault of this one, so OSError."""
    try:
        return read_regular(path, offset, size)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise XciteError(f"{path}: {error.strerror or error}") from error


def _state(path: str) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise XciteError(f"{path}: {error.strerror or error}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


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


def _fingerprint(names: Names, labels: np.ndarray, class_names: list[str]) -> str:
    digest = hashlib.sha256()
    names.update(digest)
    digest.update(labels.tobytes())
    Names(class_names).update(digest)
    return digest.hexdigest()
