"""Which kind of source a path names."""

import os
from collections.abc import Sequence
from pathlib import Path

from xcite.data.formats import is_picture
from xcite.data.sources.digits import Digits
from xcite.data.sources.folder import ImageFolder
from xcite.data.sources.layouts import (
    COMPRESSED,
    PARTS,
    Place,
    find_place,
    kind_of,
    split_parts,
    unwrapped,
)
from xcite.data.sources.listing import Listed
from xcite.data.sources.lists import ListFile
from xcite.data.sources.parquet import ParquetShards
from xcite.data.sources.patterns import expand
from xcite.data.sources.source import Source
from xcite.data.sources.tar import TarShards
from xcite.data.sources.unpacked import unpacked_tar
from xcite.data.sources.zip import ZipArchives
from xcite.errors import XciteError


def open_source(
    spec: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    split: str = "train",
    outside_root: bool = False,
    columns: str | None = None,
) -> Source:
    """List the pictures that ``spec`` names.

    Args:
        spec: a folder with one folder of pictures per class; a ``.tar`` file, a folder of them or a
            pattern such as ``shards/train-*.tar`` or ``train-{0000..0146}.tar`` (the class is the
            folder inside the archive, WebDataset's ``.cls`` or the name of a class tar); a ``.zip``
            of class folders; Hugging Face's ``.parquet`` shards; a text file of ``path label``
            lines or a CSV; a folder that has a training and a validation part of these; or
            "digits", scikit-learn's 1,797 handwritten ones. A path that exists wins over a pattern.
        root: folder that a list file's paths start from; its own folder if empty.
        classes: class names in label order, as a model knows them; a class that is not among them
            is an error. If empty they come from the data: sorted as text, or by value where all are
            whole numbers.
        channels: of the digits, 3 or 1; encoded pictures are converted when decoded.
        split: "train" or "validation": which part of data that have both, or of the digits.
        outside_root: allow paths of a list file or names of archive members that lead out of their
            root: with ``..``, or absolute ones beside a ``root``. An absolute path in a list file
            without a root is what its writer meant, and links on disk are the user's own.
        columns: of a CSV with a header or of parquet, which hold path and label, as "image,label".

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
    if split not in PARTS:
        raise XciteError(f"data have the splits {' and '.join(PARTS)}, not {split!r}")
    place = _place(spec, split)
    source = _opened(place, spec, split, names, root, outside_root, _columns(columns))
    source.notes = [*source.notes, *place.notes]
    for path in place.unread:
        source.found.leave_out("other folders" if path.is_dir() else "archives", path.name)
    if place.beside:
        if place.kind != "folder":  # whose listing counts them
            source.found.leave_out("archives", place.beside[0].name, len(place.beside))
        source.found.warnings.append(
            f"{spec}: {len(place.beside)} archives ({place.beside[0].name}, ...) were not read; "
            f"the pictures are from the {'class folders' if place.kind == 'folder' else 'others'}"
        )
    if place.tables:
        source.found.warnings.append(
            f"{place.tables[0]} was not read, the classes are the names of the folders; give the "
            "table itself if it says what the pictures show"
        )
    return source


def has_split(
    spec: str | os.PathLike[str],
    split: str,
    *,
    root: str | os.PathLike[str] | None = None,
    outside_root: bool = False,
    columns: str | None = None,
) -> bool:
    """Whether ``spec`` has a part "train" or "validation" of its own.

    Folders are looked into, not listed; an archive or a list is listed. For the rest see
    `open_source`.
    """
    spec = os.fspath(spec)
    if spec == "digits":
        return split in PARTS
    paths = expand(spec)
    if paths[0].is_dir():
        return split in split_parts(unwrapped(paths[0]))
    if kind_of(paths[0]) == "parquet":
        return False
    source = open_source(spec, root=root, outside_root=outside_root, columns=columns)
    return isinstance(source, Listed) and split in source.parts


def _place(spec: str, split: str) -> Place:
    paths = expand(spec)
    if len(paths) == 1 and paths[0].is_dir():
        return find_place(paths[0], split)
    kinds = {kind_of(path) for path in paths}
    if len(paths) > 1 and (len(kinds) > 1 or not kinds & {"tar", "zip", "parquet"}):
        raise XciteError(
            f"{spec}: matches {len(paths)} files such as {paths[0].name} and {paths[-1].name}; "
            "several files must all be tars, zips or parquet shards"
        )
    return Place(kinds.pop() or "list", paths)


def _opened(
    place: Place,
    spec: str,
    split: str,
    classes: list[str] | None,
    root: str | os.PathLike[str] | None,
    outside_root: bool,
    columns: list[str],
) -> Listed:
    paths = [str(path) for path in place.paths]
    if place.kind == "folder":
        return ImageFolder(place.paths[0], classes)
    if place.kind == "tar":
        packed = [path.lower().endswith(COMPRESSED) for path in paths]
        tars = [
            str(unpacked_tar(Path(path))) if is_packed else path
            for path, is_packed in zip(paths, packed, strict=True)
        ]
        shown = [os.path.abspath(path) for path in paths] if any(packed) else ()
        return TarShards(spec, tars, classes, outside_root, split, shown)
    if place.kind == "zip":
        return ZipArchives(spec, paths, classes, outside_root, split)
    if place.kind == "parquet":
        return ParquetShards(spec, paths, classes, columns)
    if is_picture(place.paths[0].name):
        raise XciteError(
            f"{spec}: a single picture; give a folder of class folders, an archive or a list "
            "(`xcite predict` says what is on a picture)"
        )
    start = Path(root).expanduser() if root else None
    return ListFile(place.paths[0], start, classes, outside_root, columns, split)


def _columns(columns: str | None) -> list[str]:
    if not columns:
        return []
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or not all(names):
        raise XciteError(f"data.columns is {columns!r}; write it as image,label")
    return names
