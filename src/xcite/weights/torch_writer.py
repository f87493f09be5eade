"""PyTorch's zip archives, written without PyTorch."""

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from xcite.weights.pickle_writer import PickleWriter
from xcite.weights.torch_files import STORAGES
from xcite.whole_files import whole_file


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], *, wrap: str | None) -> None:
    """Write a `.pth` that ``torch.load(weights_only=True)`` accepts, whole or not at all.

    Args:
        wrap: name of the level above the state dict ("model" in the official files), or None.
    """
    program = io.BytesIO()
    writer = PickleWriter(program, protocol=2)
    writer.raw(b"}")
    if wrap is not None:
        writer.raw(b"(")
        writer.text(wrap)
        writer.raw(b"}")
    writer.raw(b"(")
    for index, (name, array) in enumerate(tensors.items()):
        writer.text(name)
        _write_tensor(writer, str(index), array)
    writer.raw(b"u" if wrap is None else b"uu")
    writer.raw(b".")
    with whole_file(path) as aside, aside.open("wb") as file:
        _write_archive(file, path.stem or "archive", program.getvalue(), list(tensors.values()))


def tensor_archive(array: np.ndarray) -> bytes:
    """What ``torch.save`` makes of one tensor alone."""
    program, archive = io.BytesIO(), io.BytesIO()
    writer = PickleWriter(program, protocol=2)
    _write_tensor(writer, "0", array)
    writer.raw(b".")
    _write_archive(archive, "archive", program.getvalue(), [array])
    return archive.getvalue()


def _write_archive(file: BinaryIO, root: str, program: bytes, arrays: Sequence[np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, f"{root}/data.pkl", program)
        _write_member(archive, f"{root}/byteorder", b"little")
        for index, array in enumerate(arrays):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _write_member(archive, f"{root}/data/{index}", little.tobytes())
        _write_member(archive, f"{root}/version", b"3\n")


def _write_tensor(writer: PickleWriter, key: str, array: np.ndarray) -> None:
    kinds = {dtype: storage for storage, dtype in STORAGES.items()}
    writer.global_("torch._utils", "_rebuild_tensor_v2")
    writer.raw(b"((")
    writer.text("storage")
    writer.global_("torch", kinds[array.dtype.name])
    writer.text(key)
    writer.text("cpu")
    writer.integer(array.size)
    writer.raw(b"tQ")
    writer.integer(0)
    writer.integers(array.shape)
    strides = []
    step = 1
    for length in reversed(array.shape):
        strides.append(step)
        step *= length
    writer.integers(tuple(reversed(strides)))
    writer.raw(b"\x89")  # requires_grad
    writer.global_("collections", "OrderedDict")  # backward hooks
    writer.raw(b")RtR")


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Store a member so that its data start at a multiple of 64, as PyTorch does (for mmap)."""
    member = zipfile.ZipInfo(name)  # a fixed date: the same weights give the same file
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode()) + 4
    padding = -start % 64
    member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(member, data)
