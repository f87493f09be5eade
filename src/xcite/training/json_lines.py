"""Files of one JSON object a line, which survive a kill to the last whole line."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from xcite.errors import XciteError


def append(path: Path, text: str, *, flush: bool = False) -> None:
    """Add text to the end of a file, all or nothing; with ``flush`` it is on disk afterwards.

    Raises:
        XciteError: the file cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        before = os.fstat(handle).st_size
        try:
            rest = text.encode(errors="replace")
            while rest:
                rest = rest[os.write(handle, rest) :]
            if flush:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)  # a next line must not follow half of this one
            raise
        finally:
            os.close(handle)
    except OSError as error:
        raise XciteError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file; lines that are none, such as one cut off by a crash, are left out.

    Raises:
        XciteError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value of a file is a finite number between two bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high


def is_count(value: object) -> bool:
    """Whether a value of a file is a whole number from 0 that a program can reach."""
    return isinstance(value, int) and is_number(value, 0, 2**53)
