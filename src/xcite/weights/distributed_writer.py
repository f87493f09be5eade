"""Folders that `torch.distributed.checkpoint.load` reads, written without PyTorch."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite.weights.distributed_files import SUFFIX, distributed_files
from xcite.weights.distributed_metadata import METADATA
from xcite.weights.pickle_writer import PickleWriter
from xcite.weights.torch_writer import tensor_archive
from xcite.whole_files import flush_folder, whole_file, whole_folder

_PIECES = f"__0_0{SUFFIX}"  # the first file of the first process
_CLASSES = "torch.distributed.checkpoint.metadata"
_VERSION = "1.0.0"  # of the layout


@dataclass(frozen=True)
class _Placed:
    """A tensor that lies whole in the file of pieces, as one archive of `torch.save`."""

    name: str
    path: tuple[str, ...]
    array: np.ndarray
    start: int
    length: int


def write_distributed(folder: Path, tensors: Mapping[str, np.ndarray], *, wrap: str | None) -> None:
    """Write the folder, whole or not at all; an earlier distributed checkpoint is replaced.

    The same tensors give the same files.

    Args:
        wrap: name of the level above the state dict, or None.

    Raises:
        XciteError: the folder is something else, or cannot be written.
    """
    above = () if wrap is None else (wrap,)
    placed = []
    with whole_folder(folder, _own, "a distributed checkpoint") as aside:
        with whole_file(aside / _PIECES) as path, path.open("wb") as file:
            for name, array in tensors.items():
                archive = tensor_archive(array)
                keys = (*above, name)
                placed.append(_Placed(".".join(keys), keys, array, file.tell(), len(archive)))
                file.write(archive)
        with whole_file(aside / METADATA) as path:
            path.write_bytes(_metadata(placed))
        flush_folder(aside)


def _own(folder: Path) -> set[str] | None:
    if not (folder / METADATA).is_file():
        return None
    return {path.name for path in distributed_files(folder)}


def _metadata(placed: list[_Placed]) -> bytes:
    """A pickle of PyTorch's class Metadata."""
    file = io.BytesIO()
    writer = PickleWriter(file, protocol=2)
    _begin(writer, _CLASSES, "Metadata")
    writer.text("state_dict_metadata")
    writer.raw(b"}(")
    for tensor in placed:
        writer.text(tensor.name)
        _write_tensor(writer, tensor.array)
    writer.raw(b"u")
    writer.text("planner_data")
    writer.raw(b"}(")
    for tensor in placed:
        writer.text(tensor.name)
        writer.raw(b"(")
        for key in tensor.path:
            writer.text(key)
        writer.raw(b"t")
    writer.raw(b"u")
    writer.text("storage_data")
    writer.raw(b"}(")
    for tensor in placed:
        _write_place(writer, tensor)
    writer.raw(b"u")
    writer.text("storage_meta")
    writer.raw(b"N")
    writer.text("version")
    writer.text(_VERSION)
    writer.raw(b"ub.")
    return file.getvalue()


def _begin(writer: PickleWriter, module: str, name: str) -> None:
    """A new object, and the beginning of its state, a dictionary; ``ub`` ends it."""
    writer.global_(module, name)
    writer.raw(b")\x81}(")


def _write_sizes(writer: PickleWriter, name: str, sizes: tuple[int, ...]) -> None:
    writer.text(name)
    writer.global_("torch", "Size")
    writer.integers(sizes)
    writer.raw(b"\x85R")


def _write_tensor(writer: PickleWriter, array: np.ndarray) -> None:
    """TensorStorageMetadata, of one piece that is all of it."""
    _begin(writer, _CLASSES, "TensorStorageMetadata")
    writer.text("properties")
    writer.global_(_CLASSES, "TensorProperties")
    writer.raw(b")\x81(")  # its state is a tuple: type, layout, gradient, order in memory, pinned
    writer.global_("torch", array.dtype.name)
    writer.global_("torch.serialization", "_get_layout")
    writer.raw(b"(")
    writer.text("torch.strided")
    writer.raw(b"tR\x89")
    writer.global_(_CLASSES, "_MEM_FORMAT_ENCODING")
    writer.integers((0,))
    writer.raw(b"R\x89tb")
    _write_sizes(writer, "size", array.shape)
    writer.text("chunks")
    writer.raw(b"](")
    _begin(writer, _CLASSES, "ChunkStorageMetadata")
    _write_sizes(writer, "offsets", (0,) * array.ndim)
    _write_sizes(writer, "sizes", array.shape)
    writer.raw(b"ubeub")


def _write_place(writer: PickleWriter, tensor: _Placed) -> None:
    """MetadataIndex, which is the key, and _StorageInfo."""
    _begin(writer, _CLASSES, "MetadataIndex")
    writer.text("fqn")
    writer.text(tensor.name)
    _write_sizes(writer, "offset", (0,) * tensor.array.ndim)
    writer.text("index")
    writer.integer(0)
    writer.raw(b"ub")
    _begin(writer, "torch.distributed.checkpoint.filesystem", "_StorageInfo")
    writer.text("relative_path")
    writer.text(_PIECES)
    writer.text("offset")
    writer.integer(tensor.start)
    writer.text("length")
    writer.integer(tensor.length)
    writer.raw(b"ub")
