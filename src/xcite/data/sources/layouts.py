"""Which folders and files of a data set hold its training and its validation part."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xcite.data.sources.answers import answers_beside
from xcite.data.sources.source import is_folder
from xcite.data.sources.strays import stray_file, stray_folder
from xcite.errors import XciteError

# In the order of preference; compared without regard to case.
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "test", "testing"),
}
_ALL_WORDS = {word for words in PARTS.values() for word in words}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
_KINDS = {
    "tar": (".tar", *COMPRESSED),
    "parquet": (".parquet",),
    "zip": (".zip",),
    "list": (".txt", ".csv", ".tsv", ".lst", ".jsonl"),
}
_INSIDE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # Kaggle's ImageNet
_LISTING = ("train", "labels", "metadata")  # the best first; the last is Hugging Face's
_LOOKED_AT = 2_000  # entries of a folder, to see whether pictures are in it
_WORDS = re.compile(r"[a-z]+")


@dataclass
class Place:
    """What is to be opened.

    Attributes:
        kind: "folder", or what `kind_of` says of the files.
        beside: archives that lie beside class folders and are not read.
        unread: folders and archives beside the parts of a data set, which are none.
        tables: that lie beside class folders and are not read.
        notes: what people should know.
    """

    kind: str
    paths: list[Path]
    beside: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Part:
    """Which members of an archive belong to a split.

    Attributes:
        kept: for each member; None for all.
        names: the splits that the archive has; none where it has no parts.
    """

    kept: list[bool] | None = None
    names: Sequence[str] = ()
    notes: Sequence[str] = ()


def kind_of(path: Path) -> str | None:
    """The kind of archive or list that a file's name says it is."""
    name = path.name.lower()
    return next((kind for kind, endings in _KINDS.items() if name.endswith(endings)), None)


def find_place(folder: Path, split: str) -> Place:
    """What of a folder is meant by ``split``.

    Raises:
        XciteError: it has parts, but not this one; or it cannot be read.
    """
    given, folder = folder, unwrapped(folder)
    parts = split_parts(folder)
    if parts and split not in parts:
        known = next(iter(parts.values()))[0].name
        raise XciteError(
            f"{folder} has a part {known!r}, but none called {', '.join(PARTS[split])}"
        )
    paths = parts.get(split, [folder])
    is_folder = paths[0].is_dir()
    place = _contents(paths[0]) if is_folder else Place(kind_of(paths[0]) or "list", paths)
    if folder != given:
        place.notes.append(f"{given}: the pictures are those in {folder}")
    if parts and is_folder and split == "train":
        used = [path for found in parts.values() for path in found]
        folders, files = _entries(paths[0].parent)
        archives = [path for path in files if kind_of(path) != "list"]
        place.unread = [path for path in [*folders, *archives] if path not in used]
    return place


def unwrapped(folder: Path) -> Path:
    """The folder that holds the data, where one around it holds nothing else.

    Archives are often unpacked into a folder of their own. A folder that holds pictures itself is a
    class, and so is one with a single folder of pictures in it.
    """
    if split_parts(folder):
        return folder
    folders, files = _entries(folder)
    if len(folders) != 1 or files or _holds_pictures(folder, 1) or _holds_pictures(folders[0], 1):
        return folder
    inside = unwrapped(folders[0])
    holds = inside != folders[0] or split_parts(inside) or _is_class_list(inside)
    return inside if holds else folder


def _is_class_list(folder: Path) -> bool:
    return sum(map(_holds_pictures, _entries(folder)[0])) > 1


def split_parts(folder: Path) -> dict[str, list[Path]]:
    """The folders or files of the parts "train" and "validation"; {} where there are none.

    A folder called train beside one called val, or with no folder of another kind, is a part when
    it holds folders, archives or pictures with known answers. So are archives and lists called
    train and val.
    """
    for inside in _INSIDE:
        if (folder / inside).is_dir():
            return split_parts(folder / inside)
    folders, files = _entries(folder)
    inside_names = {path.name.casefold(): path for path in folders}
    found = {}
    for part, words in PARTS.items():
        paths = [inside_names[word] for word in words if word in inside_names]
        found[part] = next(([path] for path in paths if _is_labelled(path)), [])
    if all(found.values()) or (any(found.values()) and _ALL_WORDS.issuperset(inside_names)):
        return {part: paths for part, paths in found.items() if paths}
    if not files and [path.name for path in folders] == ["data"]:
        return split_parts(folders[0]) if _of_kind(_entries(folders[0])[1], "parquet") else {}
    for kind in _KINDS:
        named = _of_kind(files, kind)
        # Kaggle's test.csv has no labels
        named = [path for path in named if not (_is_table(path) and "test" in _words(path))]
        found = {part: _best(named, words) for part, words in PARTS.items()}
        if kind == "list" and found["train"]:  # one list of all, or Paddle's extra ones beside it
            found = {
                part: sorted(paths, key=lambda path: len(path.name))[:1]
                for part, paths in found.items()
            }
        if kind == "list" and _has_classes(folders):
            continue
        if found["train"] and found["validation"]:
            return found
    return {}


def choose_part(names: Sequence[str], split: str, spec: str) -> Part:
    """Which of an archive's members are meant by ``split``, going by a folder called train or val.

    Args:
        names: "train/cat/1.png" and the like; the last folder is the class.

    Raises:
        XciteError: the archive has parts, but not this one.
    """
    folders = {name.rpartition("/")[0]: name.split("/")[:-1] for name in names}
    for depth in range(max(map(len, folders.values()), default=1) - 1):
        at = {
            name: parts[depth].casefold()
            for name, parts in folders.items()
            if len(parts) > depth + 1
        }
        words = {
            part: next((word for word in PARTS[part] if word in at.values()), None)
            for part in PARTS
        }
        if words["train"] is None or words["validation"] is None:
            continue
        kept = [at.get(name.rpartition("/")[0]) == words[split] for name in names]
        return Part(kept, tuple(PARTS), [f"{spec}: of its parts, {words[split]} is read"])
    return Part()


def _contents(folder: Path) -> Place:
    """What there is to be read in a folder that is one part."""
    folders, files = _entries(folder)
    archives = [path for path in files if kind_of(path) not in (None, "list")]
    if archives and any(map(_holds_pictures, folders)):
        return Place("folder", [folder], archives)
    for kind in ("tar", "parquet", "zip"):
        if named := _of_kind(files, kind):
            others = [path for path in archives if path not in named]
            return Place(kind, named, others)
    if not files and [path.name for path in folders] == ["data"]:
        files = _entries(folders[0])[1]
        if named := _of_kind(files, "parquet"):
            return Place("parquet", named)
    lists = _best([p for p in _of_kind(files, "list") if _lists_pictures(p)], _LISTING)
    if len(lists) == 1 and not _has_classes(folders):
        return Place("list", lists)
    return Place("folder", [folder], tables=[path for path in files if _is_table(path)])


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files that may be data, sorted by name."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_folder(entry):
                    if stray_folder(entry.name) is None:
                        folders.append(folder / entry.name)
                elif not entry.name.startswith(".") and kind_of(Path(entry.name)) is not None:
                    files.append(folder / entry.name)
    except OSError as error:
        raise XciteError(f"{folder}: {error.strerror or error}") from error
    return sorted(folders), sorted(files)


def _of_kind(files: Sequence[Path], kind: str) -> list[Path]:
    return [path for path in files if kind_of(path) == kind]


def _words(path: Path) -> set[str]:
    return set(_WORDS.findall(path.name.casefold()))


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".jsonl")


def _lists_pictures(path: Path) -> bool:
    """Whether a list beside a folder of pictures says what they show, going by its name."""
    first, *others = _LISTING
    return first in _words(path) or (_is_table(path) and not _words(path).isdisjoint(others))


def _best(files: Sequence[Path], words: Sequence[str]) -> list[Path]:
    """The files that have the first of ``words`` in their names that any has."""
    named = ([path for path in files if word in _words(path)] for word in words)
    return next((paths for paths in named if paths), [])


def _is_labelled(folder: Path) -> bool:
    """Whether a folder may be a part of a data set, and not a class."""
    folders, files = _entries(folder)
    answers = any(kind_of(path) != "list" or _lists_pictures(path) for path in files)
    return bool(folders) or answers or answers_beside(folder) is not None


def _has_classes(folders: Sequence[Path]) -> bool:
    """Whether there are two folders with pictures that are not called as parts."""
    return sum(_holds_pictures(f) for f in folders if f.name.casefold() not in _ALL_WORDS) > 1


def _holds_pictures(folder: Path, depth: int = 3) -> bool:
    """Whether there is a picture among the first entries of a folder and of those in it."""
    inside = []
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
                if is_folder(entry):
                    inside.append(Path(entry.path))
                elif stray_file(entry.name) is None:
                    return True
    except OSError:
        return False
    return depth > 1 and any(_holds_pictures(path, depth - 1) for path in inside[:20])
