"""Tensors that still lie in a file: shape and type are known, the numbers are read on demand.

So a file's names and shapes are checked before anything large is allocated, and the numbers pass
through memory one tensor at a time.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite.errors import XciteError

# float8 type -> bits of the exponent, and its bias. "fn" has no infinities, "uz" no negative zero
# either, whose bits are NaN there. Names and layouts are those of PyTorch.
_FLOAT8 = {
    "float8_e4m3fn": (4, 7), "float8_e5m2": (5, 15),
    "float8_e4m3fnuz": (4, 8), "float8_e5m2fnuz": (5, 16),
}  # fmt: skip

# Names follow NumPy; bfloat16, which NumPy lacks, is stored as the upper half of a float32.
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, **dict.fromkeys(_FLOAT8, 1),
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip


def stored_type(dtype: str) -> np.dtype:
    """NumPy's type for the stored bits of a key of `ITEM_SIZES`."""
    return np.dtype("u2" if dtype == "bfloat16" else "u1" if dtype in _FLOAT8 else dtype)


@functools.cache
def float8_values(dtype: str) -> np.ndarray:
    """What each of the 256 bytes means, float32."""
    exponent_bits, bias = _FLOAT8[dtype]
    mantissa_bits = 7 - exponent_bits
    bits = np.arange(256)
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent = (bits & 0x7F) >> mantissa_bits
    fraction = (bits & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + fraction) * np.exp2(exponent - bias)
    values = sign * np.where(exponent == 0, fraction * np.exp2(1 - bias), normal)
    if dtype.endswith("uz"):
        values[0x80] = np.nan
    elif dtype.endswith("fn"):
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[[0x7C, 0xFC]] = np.inf, -np.inf
        values[(bits & 0x7F) > 0x7C] = np.nan
    return values.astype(np.float32)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weights file.

    Attributes:
        shape: as the file claims; the reader has checked that the bytes for it are present.
        dtype: a key of `ITEM_SIZES`; or what stands in a tensor's place, in words.
        load: reads the stored numbers; bfloat16 arrives as uint16, float8 as uint8.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers as stored."""
        return math.prod(self.shape) * ITEM_SIZES.get(self.dtype, 0)

    def read(self) -> np.ndarray:
        """The numbers: floats as float32, integers (BatchNorm's counters) as int64."""
        numbers = self.load()
        if self.dtype == "bfloat16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        if self.dtype in _FLOAT8:
            return np.asarray(float8_values(self.dtype)[numbers])
        if self.dtype.startswith("float"):
            return numbers.astype(np.float32, copy=False)
        return numbers.astype(np.int64, copy=False)


def no_tensor(kind: str) -> StoredTensor:
    """Stands for something other than numbers under a tensor's name; ``kind`` says what it is."""

    def refuse() -> np.ndarray:
        raise XciteError(f"{kind} is no tensor")

    return StoredTensor((), kind, refuse)


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
    kind = stored_type(dtype).newbyteorder("<")
    return read_numbers(path, offset, math.prod(shape), kind).reshape(shape)
