"""The `.metadata` of `torch.distributed.checkpoint`: which pieces make which tensor, and where.

It is a pickle of PyTorch's own classes, of which the fields are read as plain data.
Source: torch/distributed/checkpoint (metadata.py, filesystem.py, _nested_dict.py).
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcite.weights.inert_objects import Inert
from xcite.weights.pickle_globals import (
    FieldsRecord,
    Global,
    PickleError,
    checked_shape,
    ordered_dict,
    shown,
)
from xcite.weights.pickles import read_pickle

METADATA = ".metadata"
METADATA_LIMIT = 64 * 2**20  # bytes of `.metadata`
# A piece takes about 70 instructions. The largest model with both of its moments has 70,000 pieces
# where 32 processes wrote it, as in the paper's training.
MAX_INSTRUCTIONS = 8_000_000
MAX_PIECES = 120_000
MAX_CUTS = 4  # dimensions along which one tensor is cut; FSDP with tensor parallelism needs 2
MAX_PATH = 64  # keys that lead to one tensor

_CLASSES = {
    **dict.fromkeys(
        ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.checkpoint.metadata"),
        "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata "
        "TensorProperties StorageMeta",
    ),
    "torch.distributed._shard.sharded_tensor.metadata": "TensorProperties",  # until PyTorch 2.2
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed._shard.checkpoint.filesystem": "_StorageInfo",
}
_GLOBALS: dict[tuple[str, str], Global | Inert] = {
    ("torch", "Size"): lambda items=(): checked_shape(items),
    ("collections", "OrderedDict"): ordered_dict,
    **{
        (module, name): functools.partial(FieldsRecord, name)
        for module, names in _CLASSES.items()
        for name in names.split()
    },
}
_PLAIN = re.compile(r"\w[\w.-]{0,200}", re.ASCII)


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and the bytes of a file that hold it.

    Attributes:
        offsets: of its first number in the tensor.
        sizes: how many numbers along each dimension.
        file: plain name of a file in the folder.
        start, length: the bytes of it, as the metadata claim.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class CutTensor:
    """A tensor and the pieces that cover it exactly.

    Attributes:
        name: the key under which its pieces are stored.
        path: keys that lead to it in the nested dictionaries that were saved.
        dtype: PyTorch's name of the number type, such as "bfloat16".
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]


def read_metadata(folder: Path) -> list[CutTensor]:
    """The tensors of a folder; what else was saved (numbers, texts, objects) is left aside.

    Raises:
        PickleError: damaged or hostile, or pieces that do not cover their tensor exactly.
        OSError: it cannot be read.
    """
    path = folder / METADATA
    size = path.stat().st_size
    if size > METADATA_LIMIT:
        raise PickleError(f"its {METADATA} has {size} bytes; at most {METADATA_LIMIT} are read")
    with path.open("rb") as file:
        root = read_pickle(file, size, _GLOBALS, instructions=MAX_INSTRUCTIONS)
    tensors = _field(root, "Metadata", "state_dict_metadata", dict)
    stored = _stored(_field(root, "Metadata", "storage_data", dict))
    paths = root.fields.get("planner_data")
    found = []
    count = 0
    for name, entry in tensors.items():
        if not isinstance(name, str) or _is(entry, "BytesStorageMetadata"):
            continue
        count += len(_field(entry, "TensorStorageMetadata", "chunks", list))
        if count > MAX_PIECES:
            raise PickleError(f"it has more than {MAX_PIECES} pieces")
        shape = checked_shape(entry.fields.get("size"))
        pieces = _pieces(name, shape, entry.fields["chunks"], stored)
        if not _cover(shape, pieces):
            raise PickleError(f"the pieces of {_called(name)} leave gaps or overlap")
        keys = _path(name, paths.get(name) if isinstance(paths, dict) else None)
        found.append(CutTensor(name, keys, shape, _dtype(entry), tuple(pieces)))
    return found


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, FieldsRecord) and value.name == kind


def _field(value: Any, kind: str, field: str, type_: type) -> Any:
    """The field of an object of PyTorch's class ``kind``."""
    found = value.fields.get(field) if _is(value, kind) else None
    if not isinstance(found, type_):
        raise PickleError(f"its {METADATA} is not as torch.distributed.checkpoint writes it")
    return found


def _called(name: str) -> str:
    return ascii(name[:80])[1:-1]


def _stored(entries: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...]], FieldsRecord]:
    """Where pieces lie, by tensor and offsets."""
    found = {}
    for index, info in entries.items():
        name = _field(index, "MetadataIndex", "fqn", str)
        offset = index.fields.get("offset")
        if offset is not None:  # an object other than a tensor has none
            found[name, checked_shape(offset)] = info
    return found


def _pieces(
    name: str,
    shape: tuple[int, ...],
    chunks: list[Any],
    stored: dict[tuple[str, tuple[int, ...]], FieldsRecord],
) -> list[Piece]:
    """The pieces that hold numbers: where there are more processes than rows, some hold none."""
    pieces = []
    for chunk in chunks:
        offsets = checked_shape(_field(chunk, "ChunkStorageMetadata", "offsets", tuple))
        sizes = checked_shape(chunk.fields.get("sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise PickleError(f"a piece of {_called(name)} has other dimensions than the tensor")
        if 0 in sizes:
            continue
        info = stored.get((name, offsets))
        if info is None:
            raise PickleError(f"the piece of {_called(name)} at {offsets} is in no file")
        file = _field(info, "_StorageInfo", "relative_path", str)
        start, length = info.fields.get("offset"), info.fields.get("length")
        if _PLAIN.fullmatch(file) is None:
            raise PickleError(f"a piece lies in {shown(file)}, which is no plain name of a file")
        if (
            type(start) is not int
            or type(length) is not int
            or min(start, length) < 0
            or start + length >= 2**48
        ):
            raise PickleError(f"a piece of {_called(name)} is at no place in a file")
        packed = info.fields.get("transform_descriptors")
        if packed:
            how = packed[0] if isinstance(packed, list | tuple) else packed
            raise PickleError(
                f"its pieces are packed ({shown(how)}), which is not read; load it with PyTorch "
                "and save it without extensions"
            )
        pieces.append(Piece(offsets, sizes, file, start, length))
    return pieces


def _cover(shape: tuple[int, ...], pieces: Sequence[Piece]) -> bool:
    """Whether every number of the tensor lies in exactly one piece.

    A box is known by its corners, counted with alternating signs: those of boxes that meet cancel
    where they touch. So the corners of all pieces together are those of the tensor exactly when
    the pieces fill it, each place once. It takes one look at each piece.
    """
    if 0 in shape:
        return not pieces
    cut = [
        d
        for d, size in enumerate(shape)
        if any(piece.offsets[d] != 0 or piece.sizes[d] != size for piece in pieces)
    ]
    if len(cut) > MAX_CUTS:
        raise PickleError(f"a tensor is cut along more than {MAX_CUTS} dimensions")
    corners: Counter[tuple[int, ...]] = Counter()
    boxes = [([p.offsets[d] for d in cut], [p.sizes[d] for d in cut], 1) for p in pieces]
    boxes.append(([0] * len(cut), [shape[d] for d in cut], -1))
    for offsets, sizes, sign in boxes:
        ends = [((o, 1), (o + s, -1)) for o, s in zip(offsets, sizes, strict=True)]
        for corner in itertools.product(*ends):
            value = sign
            for _, factor in corner:
                value *= factor
            corners[tuple(place for place, _ in corner)] += value
    return not any(corners.values())


def _path(name: str, keys: Any) -> tuple[str, ...]:
    """The keys that were joined to a name; without them the name is the only one."""
    if keys is None:
        return (name,)
    plain = isinstance(keys, tuple | list) and 0 < len(keys) <= MAX_PATH
    if not plain or not all(isinstance(key, str) or type(key) is int for key in keys):
        raise PickleError(f"the place of {_called(name)} among the others is no list of keys")
    return tuple(str(key) for key in keys)


def _dtype(entry: FieldsRecord) -> str:
    properties = entry.fields.get("properties")
    state = properties.state if isinstance(properties, FieldsRecord) else None
    kind = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(kind, Inert) or not kind.name.startswith("torch."):
        raise PickleError(f"its {METADATA} is not as torch.distributed.checkpoint writes it")
    return kind.name.removeprefix("torch.")
