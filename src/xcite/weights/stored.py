"""Tensors that still lie in a file: shape and type are known, the numbers are read on demand.

So a file's names and shapes are checked before anything large is allocated, and the numbers pass
through memory one tensor at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite.errors import XciteError

# Names follow NumPy; bfloat16, which NumPy lacks, is stored as the upper half of a float32.
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weights file.

    Attributes:
        shape: as the file claims; the reader has checked that the bytes for it are present.
        dtype: a key of `ITEM_SIZES`.
        load: reads the stored numbers; bfloat16 arrives as uint16.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers as stored."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    def read(self) -> np.ndarray:
        """The numbers: floats as float32, integers (BatchNorm's counters) as int64."""
        numbers = self.load()
        if self.dtype == "bfloat16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        if self.dtype.startswith("float"):
            return numbers.astype(np.float32, copy=False)
        return numbers.astype(np.int64, copy=False)


def read_numbers(path: Path, offset: int, count: int, kind: np.dtype) -> np.ndarray:
    """Read ``count`` numbers that start ``offset`` bytes into a file, straight to their place.

    Raises:
        XciteError: when the file ends before they do.
    """
    numbers = np.empty(count, kind)
    rest = numbers.view(np.uint8).data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while rest:
                done = file.readinto(rest)
                if not done:
                    raise XciteError(f"{path} ends too early; it is damaged, fetch it again")
                rest = rest[done:]
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    return numbers


def read_section(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read a C-ordered little-endian array that starts ``offset`` bytes into a file."""
    kind = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
    return read_numbers(path, offset, math.prod(shape), kind).reshape(shape)
