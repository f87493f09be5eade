"""Safetensors files: Xcite's own and timm's."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xcite.errors import XciteError
from xcite.weights.checksums import take_checksums, verify, with_checksums
from xcite.weights.stored import StoredTensor, read_section
from xcite.whole_files import whole_file

HEADER_LIMIT = 16 * 2**20  # bytes; a checkpoint of the largest model needs about 0.4 MB
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U32": "uint32",
    "U16": "uint16", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Names to tensors, and the file's metadata.

    Where the file carries checksums (`write_safetensors` adds them), the metadata are verified at
    once and every tensor when it is loaded.

    The library judges the header (sizes, offsets without gaps or overlaps, the file's length).
    The numbers are then read tensor by tensor: the library's memory map would keep the file's pages
    resident beside the arrays.

    Raises:
        XciteError: damaged or oversized header, truncated data, unknown number type; loading a
            tensor: its numbers differ from their checksum.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file_size = path.stat().st_size
        if length > min(HEADER_LIMIT, file_size - 8):
            raise XciteError(
                f"{path}: the safetensors header claims {length} bytes; the file has {file_size} "
                f"and at most {HEADER_LIMIT} are accepted"
            )
        header_text = file.read(length)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        # The library quotes what it found, which may be all of the header.
        raise XciteError(f"{path} is not a sound safetensors file: {str(error)[:300]}") from error
    header = json.loads(header_text)
    metadata = header.pop("__metadata__", None) or {}
    sums = take_checksums(path, metadata)
    tensors = {}
    for name, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise XciteError(f"{path}: {name} has type {entry['dtype']}, which weights never have")
        shape = tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]

        def load(
            name: str = name,
            offset: int = offset,
            shape: tuple[int, ...] = shape,
            dtype: str = dtype,
        ) -> np.ndarray:
            numbers = read_section(path, offset, shape, dtype)
            if sums is not None:
                verify(path, name, numbers, dtype, sums)
            return numbers

        tensors[name] = StoredTensor(shape, dtype, load)
    return tensors, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with checksums, whole or not at all.

    Raises:
        XciteError: the folder cannot be written or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # The library writes an array's memory as it lies: a transposed view must be laid out first.
    laid_out = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()
    }
    with whole_file(path) as aside:
        try:
            save_file(laid_out, aside, metadata=with_checksums(metadata or {}, laid_out))
        except SafetensorError as error:
            raise XciteError(f"cannot write {path}: {error}") from error
