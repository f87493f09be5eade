"""Which kind of source a path names."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from xcite.data.sources.digits import Digits
from xcite.data.sources.folder import ImageFolder
from xcite.data.sources.lists import ListFile
from xcite.data.sources.source import Source
from xcite.data.sources.splits import part_of, split_parts
from xcite.data.sources.tar import TarShards
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
            pattern such as ``shards/train-*.tar`` (the class is the folder inside the archive); a
            text file of ``path label`` lines; or "digits", scikit-learn's 1,797 handwritten ones.
        root: folder that a list file's paths start from; its own folder if empty.
        classes: class names in label order, as a model knows them; a class that is not among them
            is an error. If empty they come from the data.
        channels: of the digits, 3 or 1; encoded pictures are converted when decoded.
        split: "train" or "validation": which part of a folder that has both, or of the digits.
        outside_root: allow paths of a list file or names of tar members that lead out of their
            root: with ``..``, or absolute ones beside a ``root``. An absolute path in a list file
            without a root is what its writer meant, and links on disk are the user's own.
        columns: of a CSV with a header, which hold path and label, as "image,label".

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
    path = Path(spec).expanduser()
    if not os.path.exists(path) and any(sign in spec for sign in "*?["):
        shards = sorted(glob.glob(str(path)))
        if not shards:
            raise XciteError(f"{spec}: no file matches this pattern")
        return TarShards(spec, shards, names, outside_root)
    if path.is_dir():
        path = part_of(path, split)
        shards = sorted(str(shard) for shard in path.glob("*.tar"))
        return TarShards(spec, shards, names, outside_root) if shards else ImageFolder(path, names)
    if path.suffix == ".tar" and path.is_file():
        return TarShards(spec, [str(path)], names, outside_root)
    if path.is_file():
        return ListFile(path, Path(root).expanduser() if root else None, names, outside_root)
    raise XciteError(
        f"{spec}: no such folder, list file or .tar; "
        "data.train and data.validation also take a pattern of .tar files or 'digits'"
    )


def has_split(spec: str | os.PathLike[str], split: str) -> bool:
    """Whether ``spec`` has a part "train" or "validation" of its own; nothing is listed for it."""
    spec = os.fspath(spec)
    if spec == "digits":
        return split in ("train", "validation")
    return split in split_parts(Path(spec).expanduser())
