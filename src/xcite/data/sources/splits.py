"""Folders that hold a training and a validation part."""

import os
from pathlib import Path

from xcite.errors import XciteError

# In the order of preference; compared without regard to case.
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "test", "testing"),
}


def split_parts(folder: Path) -> dict[str, Path]:
    """The parts "train" and "validation" of a folder; {} where its folders are classes.

    A folder called train beside one called val, or alone, is a part when it holds folders itself.
    """
    inside = {name.casefold(): folder / name for name in _folders(folder)}
    found = {
        part: next((inside[n] for n in names if n in inside and _folders(inside[n])), None)
        for part, names in PARTS.items()
    }
    if found["train"] is None or (found["validation"] is None and len(inside) > 1):
        return {}
    return {part: path for part, path in found.items() if path is not None}


def part_of(folder: Path, split: str) -> Path:
    """The part of ``folder`` that is meant by ``split``; the folder itself where it has none.

    Raises:
        XciteError: it has parts, but not this one.
    """
    parts = split_parts(folder)
    if not parts:
        return folder
    if split not in parts:
        raise XciteError(
            f"{folder} has a part {parts['train'].name!r}, but none called "
            f"{', '.join(PARTS[split])}"
        )
    return parts[split]


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError:
        return []
