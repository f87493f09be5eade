"""Folders of `torch.distributed.checkpoint`: tensors in pieces, put together without PyTorch."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.weights import torch_files
from xcite.weights.distributed_metadata import METADATA, CutTensor, Piece, read_metadata
from xcite.weights.file_sections import open_section
from xcite.weights.inert_objects import Inert
from xcite.weights.pickle_globals import PickleError, checked_shape
from xcite.weights.safetensors_files import DTYPES, HEADER_LIMIT
from xcite.weights.stored import ITEM_SIZES, StoredTensor, read_section, stored_type

SUFFIX = ".distcp"
_OFFSETS = "DCP_SHARDING_INFO"  # in a safetensors header: where each piece begins in its tensor


def is_part(path: Path) -> bool:
    """Whether a file is one of such a folder, by its name."""
    return path.name == METADATA or path.suffix == SUFFIX


def distributed_files(folder: Path) -> list[Path]:
    """The files of such a folder, its `.metadata` first."""
    pieces = sorted(file for file in folder.iterdir() if file.suffix == SUFFIX and file.is_file())
    return [folder / METADATA, *pieces]


def distributed_below(folder: Path) -> Path | None:
    """The one folder in ``folder`` that is a distributed checkpoint; None where there is none.

    Accelerate keeps the model in ``pytorch_model_fsdp_0`` and its optimiser in ``optimizer_0``,
    which does not count.

    Raises:
        XciteError: there are several.
    """
    inner = sorted(path for path in folder.iterdir() if (path / METADATA).is_file())
    found = [path for path in inner if not path.name.startswith("optimizer")]
    if len(found) > 1:
        names = ", ".join(ascii(path.name[:80])[1:-1] for path in found[:12])
        raise XciteError(f"{folder} holds several distributed checkpoints: {names}; name one")
    return found[0] if found else None


def distributed_folder(folder: Path) -> Path | None:
    """The folder, by its name, if `torch.distributed.checkpoint.save` wrote it; None otherwise.

    Raises:
        XciteError: it has pieces of such a checkpoint, but not what puts them together.
    """
    if (folder / METADATA).is_file():
        return folder if folder.name.strip(".") else folder.resolve()
    names = [path.name for path in folder.iterdir()]
    if not any(name.endswith(SUFFIX) for name in names):
        return None
    if any(name.startswith("__") and name.endswith(METADATA) for name in names):
        raise XciteError(
            f"{folder} was written by processes that did not speak to one another "
            "(use_collectives=False); load it with PyTorch and save it again"
        )
    raise XciteError(
        f"{folder} has pieces of a distributed checkpoint but no {METADATA}; it was not copied, as "
        "its name begins with a dot, or saving did not come to its end"
    )


def read_distributed(folder: Path) -> tuple[dict[str, Any], int]:
    """Nested dictionaries of tensors as they were saved, and the bytes of the files they lie in.

    Raises:
        PickleError: damaged or hostile.
        OSError: it cannot be read.
    """
    sizes: dict[str, int] = {}
    blocks = _Blocks(folder)
    root: dict[str, Any] = {}
    for cut in read_metadata(folder):
        for piece in cut.pieces:
            _check_place(folder, cut, piece, sizes)
        level = root
        for key in cut.path[:-1]:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise PickleError("two things are saved under one name")
        if cut.path[-1] in level:
            raise PickleError("two things are saved under one name")
        level[cut.path[-1]] = _tensor(folder, cut, blocks)
    return root, sum(sizes.values())


def _check_place(folder: Path, cut: CutTensor, piece: Piece, sizes: dict[str, int]) -> None:
    """Refuse a piece whose bytes are not all there."""
    if piece.file not in sizes:
        path = folder / piece.file
        if not path.is_file():
            raise PickleError(f"{piece.file} is not in the folder; copy all of it")
        sizes[piece.file] = path.stat().st_size
    needed = math.prod(piece.sizes) * ITEM_SIZES.get(cut.dtype, 0)
    if piece.start + piece.length > sizes[piece.file] or needed > piece.length:
        raise PickleError(
            f"{piece.file} is too short for what {METADATA} says; it is damaged, copy it again"
        )


def _tensor(folder: Path, cut: CutTensor, blocks: "_Blocks") -> StoredTensor | Inert:
    if cut.dtype not in ITEM_SIZES:
        return Inert(f"a {cut.dtype} tensor")

    def load() -> np.ndarray:
        read = ((piece, _read_piece(folder, cut, piece, blocks)) for piece in cut.pieces)
        if len(cut.pieces) == 1:
            return next(numbers for _, numbers in read)
        whole = np.empty(cut.shape, stored_type(cut.dtype))
        for piece, numbers in read:
            box = zip(piece.offsets, piece.sizes, strict=True)
            whole[tuple(slice(offset, offset + size) for offset, size in box)] = numbers
        return whole

    return StoredTensor(cut.shape, cut.dtype, load)


def _read_piece(folder: Path, cut: CutTensor, piece: Piece, blocks: "_Blocks") -> np.ndarray:
    """The numbers of one piece: an archive of `torch.save`, or in a block of safetensors."""
    path = folder / piece.file
    try:
        with open_section(path, piece.start, piece.length) as file:
            zipped = torch_files.is_zip(file.read(4))
        if not zipped:
            return blocks.read(cut, piece)
        saved = torch_files.read_torch_zip(path, Counter(), piece.start, piece.length)
        tensor = torch_files.resolve(saved)
        if not isinstance(tensor, StoredTensor):
            raise PickleError("a piece is no tensor")
        _same_kind(tensor.shape, tensor.dtype, cut, piece)
        return tensor.load()
    except PickleError as error:
        raise XciteError(f"{path} is refused: {error}") from error
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error


def _same_kind(shape: tuple[int, ...], dtype: str | None, cut: CutTensor, piece: Piece) -> None:
    if (shape, dtype) != (piece.sizes, cut.dtype):
        raise PickleError(
            f"a piece of {cut.name[:80]!a} is not of the shape and type that {METADATA} says"
        )


class _Blocks:
    """Files whose tensors lie in one safetensors block, which may begin behind other objects.

    Such a block runs to the end of its file, and every piece in it is said to begin where it does.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.read_headers: dict[str, tuple[int, int, dict[str, Any]]] = {}

    def read(self, cut: CutTensor, piece: Piece) -> np.ndarray:
        path = self.folder / piece.file
        if piece.file not in self.read_headers:
            self.read_headers[piece.file] = (piece.start, *_header(path, piece.start))
        start, data, header = self.read_headers[piece.file]
        try:
            entry = header[cut.name]
            shape, dtype = checked_shape(entry["shape"]), DTYPES.get(entry["dtype"])
            first, last = entry["data_offsets"]
            told = header[_OFFSETS][cut.name]["saved_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise PickleError("its safetensors header does not describe a piece") from error
        _same_kind(shape, dtype, cut, piece)
        count = math.prod(shape) * ITEM_SIZES[cut.dtype]
        placed = type(first) is type(last) is int and first >= 0 and last - first == count
        if not placed or piece.start != start or told != list(piece.offsets):
            raise PickleError("its safetensors header does not describe a piece")
        if data + last > path.stat().st_size:
            raise PickleError("the data end too early")
        return read_section(path, data + first, shape, cut.dtype)


def _header(path: Path, start: int) -> tuple[int, dict[str, Any]]:
    """Where the numbers of a safetensors block begin, and its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, size - start - 8):
            raise PickleError("a piece is neither an archive of torch.save nor safetensors")
        text = file.read(length)
    try:
        header = json.loads(text)
        header[_OFFSETS] = json.loads(header["__metadata__"][_OFFSETS])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PickleError("a piece is neither an archive of torch.save nor safetensors") from error
    return start + 8 + length, header
