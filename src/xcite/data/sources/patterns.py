"""Paths that stand for many: ``~``, shell patterns, and WebDataset's ``{0000..1023}``."""

import glob
import os
import re
from pathlib import Path

from xcite.errors import XciteError

_MOST = 100_000  # files
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def expand(spec: str) -> list[Path]:
    """The paths that ``spec`` means, at least one; what exists under that very name wins.

    Raises:
        XciteError: nothing there, or a file of a range is missing.
    """
    plain = os.path.expanduser(spec)
    if os.path.lexists(plain):
        return [Path(plain)]
    if _BRACES.search(plain):
        paths = [Path(name) for name in _braced(plain, spec)]
        found = [one for path in paths for one in _globbed(path)]
        missing = [path for path in paths if not _globbed(path)]
        if missing:
            raise XciteError(
                f"{spec}: {len(missing)} of {len(paths)} are missing, {missing[0]} first"
            )
        return found
    if any(sign in plain for sign in "*?["):
        if found := _globbed(Path(plain)):
            return found
        raise XciteError(f"{spec}: no file matches this pattern")
    raise XciteError(
        f"{spec}: no such folder, archive or list file; "
        "data.train and data.validation also take a pattern of archives or 'digits'"
    )


def _globbed(path: Path) -> list[Path]:
    if os.path.lexists(path):
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path)))]


def _braced(text: str, spec: str) -> list[str]:
    """All texts that braces stand for, as in a shell."""
    texts = [text]
    while braces := _BRACES.search(texts[0]):
        inside = braces[1]
        values = inside.split(",")
        if span := _RANGE.fullmatch(inside):
            first, last = int(span[1]), int(span[2])
            if last - first >= _MOST or last < first:
                raise XciteError(f"{spec}: the range {inside} is empty or beyond all measure")
            width = len(span[1]) if span[1].startswith("0") else 0
            values = [f"{number:0{width}}" for number in range(first, last + 1)]
        elif len(values) == 1:
            return texts  # braces that are part of a name
        if len(values) * len(texts) > _MOST:
            raise XciteError(f"{spec}: more than {_MOST:,} files")
        texts = [one.replace(braces[0], value, 1) for one in texts for value in values]
    return texts
