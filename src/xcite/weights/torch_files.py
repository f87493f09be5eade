"""PyTorch's `.pth` files, zip and older, read without PyTorch."""

import io
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xcite.errors import XciteError
from xcite.weights import foreign_files
from xcite.weights.file_sections import open_section
from xcite.weights.inert_objects import Inert
from xcite.weights.pickle_globals import (
    NUMPY_GLOBALS,
    ArrayRecord,
    Global,
    PickleError,
    checked_shape,
    shown,
)
from xcite.weights.pickles import read_pickle
from xcite.weights.stored import ITEM_SIZES, StoredTensor, read_numbers, stored_type

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DIRECTORY_LIMIT = 16 * 2**20  # bytes of a zip directory; 3,000 tensors need about 0.3 MB
PICKLE_LIMIT = 64 * 2**20  # bytes of data.pkl: names and shapes only

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_PARAMETER = "torch.nn.parameter.Parameter"
_UNTYPED = "torch.storage.UntypedStorage"
_BYTES = "untyped"  # the storage of types without a storage class: the tensor says its type
_QUANTISED = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage")


class OtherArchive(PickleError):
    """A zip archive that `torch.save` did not write."""


class _StorageType:
    """Stands for torch.FloatStorage and the like, which appear only as a label."""

    def __init__(self, dtype: str):
        self.dtype = dtype

    def __call__(self, *_: Any) -> Any:
        raise PickleError("a storage type is called")


@dataclass(frozen=True)
class _Storage:
    """A flat run of numbers in the file: ``count`` of them."""

    key: str
    dtype: str
    count: int


class _Contents:
    """Where each storage's bytes are."""

    def __init__(self, path: Path):
        self.path = path
        self.offsets: dict[str, int] = {}  # storage key -> position in the file
        self.sizes: dict[str, int] = {}  # bytes
        self.checksums: dict[str, int] = {}
        self.big_endian = False

    def storage(self, reference: Any) -> _Storage:
        """The storage a persistent id names: ("storage", type, key, location, count, ...)."""
        if not isinstance(reference, tuple) or not 5 <= len(reference) <= 6:
            raise PickleError("a storage is referred to in an unknown way")
        word, kind, key, _, count = reference[:5]
        if isinstance(kind, Inert) and kind.name == _UNTYPED:
            kind = _StorageType(_BYTES)
        if word != "storage" or not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise PickleError("a storage is referred to in an unknown way")
        if type(count) is not int or not 0 <= count < 2**48:
            raise PickleError("a storage's size is not a count")
        if len(reference) == 6 and reference[5] is not None:
            raise PickleError(
                "a storage is a view of another, which PyTorch has not written since 0.4"
            )
        return _Storage(key, kind.dtype, count)

    def rebuild(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
    ) -> "_TensorRecord":
        """torch._utils._rebuild_tensor_v2, after checking that the view stays in its storage."""
        if not isinstance(storage, _Storage):
            raise PickleError("a tensor without a storage")
        dimensions = checked_shape(shape)
        steps = checked_shape(strides)
        if len(steps) != len(dimensions) or type(offset) is not int or offset < 0:
            raise PickleError("a tensor's strides do not fit its shape")
        count = 1
        for size in dimensions:
            count *= size
        last = offset + sum((n - 1) * step for n, step in zip(dimensions, steps, strict=True))
        # Fewer numbers stored than claimed: an expanded view, which would grow when read.
        if count and (last >= storage.count or count > storage.count):
            raise PickleError(f"a tensor of shape {dimensions} reaches beyond its storage")
        return _TensorRecord(self, storage, offset, dimensions, steps)

    def rebuild_typed(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
    ) -> "_TensorRecord | Inert":
        """torch._utils._rebuild_tensor_v3: a storage of bytes, and the type of its numbers."""
        kind = rest[2] if len(rest) > 2 else None
        if not isinstance(storage, _Storage) or not isinstance(kind, Inert):
            raise PickleError("a tensor without a storage or a type")
        dtype = kind.name.removeprefix("torch.")
        if dtype not in ITEM_SIZES or storage.dtype != _BYTES:
            return Inert(f"a {dtype} tensor")
        count, left = divmod(storage.count, ITEM_SIZES[dtype])
        if left:
            raise PickleError(f"a storage of {dtype} has {storage.count} bytes")
        return self.rebuild(_Storage(storage.key, dtype, count), offset, shape, strides)

    def check(self, storage: _Storage) -> None:
        """Refuse a storage whose bytes are not all there."""
        present = self.sizes.get(storage.key)
        needed = storage.count * _item_size(storage.dtype)
        if present is None:
            raise PickleError(f"storage {storage.key[:40]!a} is missing")
        if present != needed:
            raise PickleError(
                f"storage {storage.key[:40]!a} has {present} bytes, its tensors claim {needed}"
            )

    def read(self, storage: _Storage) -> np.ndarray:
        """All numbers of a storage."""
        kind = stored_type(storage.dtype)
        stored = kind.newbyteorder(">" if self.big_endian else "<")
        flat = read_numbers(self.path, self.offsets[storage.key], storage.count, stored)
        checksum = self.checksums.get(storage.key)
        if checksum is not None and zlib.crc32(flat.view(np.uint8).data) != checksum:
            raise XciteError(f"{self.path}: a checksum is wrong; it is damaged, fetch it again")
        return flat.astype(kind, copy=False)


def _item_size(dtype: str) -> int:
    return 1 if dtype == _BYTES else ITEM_SIZES[dtype]


@dataclass(frozen=True)
class _TensorRecord:
    contents: _Contents
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def tensor(self) -> StoredTensor:
        self.contents.check(self.storage)
        return StoredTensor(self.shape, self.storage.dtype, self._load)

    def _load(self) -> np.ndarray:
        flat = self.contents.read(self.storage)
        strides = tuple(step * flat.itemsize for step in self.strides)
        # `rebuild` has checked that the view stays inside the storage.
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        whole = view.size == flat.size and view.flags.c_contiguous
        return view if whole else view.copy()


def _parameter(record: Any, *_: Any) -> "_TensorRecord | ArrayRecord | Inert":
    """A parameter, with attributes or without, is its tensor; so is one of another device."""
    if not isinstance(record, _TensorRecord | ArrayRecord | Inert):
        raise PickleError("a parameter without a tensor")
    return record


def _size(items: Any = ()) -> tuple[int, ...]:
    return checked_shape(items)


def _globals(contents: _Contents) -> dict[tuple[str, str], Global | Inert]:
    rebuilders: tuple[Global, ...] = (contents.rebuild, contents.rebuild_typed, _parameter)

    def subclass(rebuilder: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        """torch._tensor._rebuild_from_type_v2: a tensor with attributes, or of a subclass."""
        if not isinstance(arguments, tuple):
            raise PickleError("a tensor is rebuilt without arguments")
        plain = isinstance(kind, Inert) and kind.name in ("torch.Tensor", _PARAMETER)
        if not plain or rebuilder not in rebuilders:
            return Inert(shown(kind))
        return rebuilder(*arguments)

    return {
        **NUMPY_GLOBALS,
        ("torch._utils", "_rebuild_tensor"): contents.rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): contents.rebuild,
        ("torch._utils", "_rebuild_tensor_v3"): contents.rebuild_typed,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _parameter,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): subclass,
        ("torch", "Size"): _size,
        ("torch", "Tensor"): Inert("torch.Tensor"),
        ("torch.nn.parameter", "Parameter"): Inert(_PARAMETER),
        ("torch.storage", "UntypedStorage"): Inert(_UNTYPED),
        **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
        **{("torch", name): _StorageType(_BYTES) for name in _QUANTISED},
    }


def is_zip(start: bytes) -> bool:
    """Whether a file with this beginning is a zip archive."""
    return start.startswith(b"PK\x03\x04")


def read_torch_zip(
    path: Path, aside: Counter[str], start: int = 0, length: int | None = None
) -> Any:
    """The object `torch.save` wrote to a zip archive, tensors as records to `resolve`.

    The archive is the whole file, or ``length`` bytes of it from ``start``.

    Members are never unpacked to disk, must be stored without compression (PyTorch stores them so;
    a bomb needs compression) and may not claim more bytes than the file has.

    Raises:
        PickleError: damaged or hostile.
    """
    size = path.stat().st_size - start if length is None else length
    with open_section(path, start, size) as file:
        members = _members(file, size)
        named = {member.filename: member for member in members}
        pickles = [name for name in named if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not pickles or any(name.endswith("/constants.pkl") for name in named):
            raise OtherArchive(foreign_files.zip_contents(list(named)))
        if len(named) != len(members) or len(pickles) != 1:
            raise PickleError("the zip archive is not one that PyTorch writes")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
                name = member.filename[:80]
                raise PickleError(f"zip member {name!a} is compressed or encrypted")
        if sum(member.file_size for member in members) > size:
            raise PickleError("the zip members claim more bytes than the file has")
        root = pickles[0].removesuffix("data.pkl")
        contents = _Contents(path)
        for name, member in named.items():
            if name.startswith(f"{root}data/"):
                key = name.removeprefix(f"{root}data/")
                contents.offsets[key] = start + _member_start(file, member, size)
                contents.sizes[key] = member.file_size
                contents.checksums[key] = member.CRC
        order = named.get(f"{root}byteorder")
        if order is not None:
            contents.big_endian = _member_bytes(file, order, size, 16) == b"big"
        program = _member_bytes(file, named[pickles[0]], size, PICKLE_LIMIT)
    file_of_program = io.BytesIO(program)
    known = _globals(contents)
    return read_pickle(file_of_program, len(program), known, contents.storage, aside)


def archive_names(path: Path) -> list[str]:
    """The names in a zip archive's directory; [] for another file, or one that is damaged."""
    try:
        with path.open("rb") as file:
            if is_zip(file.read(4)):
                return [member.filename for member in _members(file, path.stat().st_size)]
    except (OSError, PickleError):
        pass
    return []


def _members(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    _check_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise PickleError("the zip directory is damaged") from error


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse an oversized directory before the zip library reads it whole."""
    file.seek(max(0, size - 65_557 - 76))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise PickleError("the zip directory is missing: the file is cut short or damaged")
    claimed = struct.unpack("<I", tail[end + 12 : end + 16])[0]
    wide = tail.rfind(b"PK\x06\x06", 0, end)
    if wide >= 0 and end - wide >= 56:
        claimed = max(
            0 if claimed == 0xFFFFFFFF else claimed,
            struct.unpack("<Q", tail[wide + 40 : wide + 48])[0],
        )
    if claimed > min(DIRECTORY_LIMIT, size):
        raise PickleError(f"the zip directory claims {claimed} bytes")
    file.seek(0)


def _member_start(file: BinaryIO, member: zipfile.ZipInfo, size: int) -> int:
    """Position of a member's first byte, after checking its local header."""
    if member.compress_size != member.file_size:
        raise PickleError(f"zip member {member.filename[:80]!a} has two sizes")
    if not 0 <= member.header_offset <= size - 30:
        raise PickleError("a zip member lies outside the file")
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise PickleError("a zip member's header is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    start = member.header_offset + 30 + name + extra
    if start + member.file_size > size:
        raise PickleError("a zip member lies outside the file")
    return start


def _member_bytes(file: BinaryIO, member: zipfile.ZipInfo, size: int, limit: int) -> bytes:
    start = _member_start(file, member, size)
    if member.file_size > limit:
        raise PickleError(f"zip member {member.filename[:80]!a} is too large")
    file.seek(start)
    data = file.read(member.file_size)
    if zlib.crc32(data) != member.CRC:
        raise PickleError("a checksum is wrong: the file is damaged")
    return data


def read_torch_legacy(path: Path, aside: Counter[str]) -> Any:
    """The object `torch.save` wrote before PyTorch 1.6: pickles, then the storages one by one.

    Raises:
        PickleError: damaged or hostile.
    """
    size = path.stat().st_size
    contents = _Contents(path)
    named = _globals(contents)
    storages: dict[str, _Storage] = {}

    def remembered(reference: Any) -> _Storage:
        storage = contents.storage(reference)
        known = storages.setdefault(storage.key, storage)
        if known != storage:
            raise PickleError("a storage is described in two ways")
        return storage

    with path.open("rb") as file:
        if read_pickle(file, size, {}) != LEGACY_MAGIC:
            raise PickleError("not a PyTorch file")
        if read_pickle(file, size, {}) != 1001:
            raise PickleError("an unknown version of PyTorch's older format")
        system = read_pickle(file, size, {})
        if isinstance(system, dict):
            contents.big_endian = system.get("little_endian") is False
        result = read_pickle(file, size, named, remembered, aside)
        keys = read_pickle(file, size, {})
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise PickleError("the list of storages is damaged")
        order = ">" if contents.big_endian else "<"
        for key in keys:
            head = file.read(8)
            if key not in storages or key in contents.offsets or len(head) != 8:
                raise PickleError("the storages end too early or do not fit the tensors")
            count = struct.unpack(f"{order}q", head)[0]
            length = count * _item_size(storages[key].dtype)
            start = file.tell()
            if not 0 <= length <= size - start:
                raise PickleError("the data end too early")
            contents.offsets[key] = start
            contents.sizes[key] = length
            file.seek(start + length)
    return result


def resolve(value: Any) -> Any:
    """A tensor record as a `StoredTensor`, anything else as it is."""
    if isinstance(value, ArrayRecord):
        return value.tensor or Inert(value.left or "an array without numbers")
    if not isinstance(value, _TensorRecord):
        return value
    if value.storage.dtype == _BYTES:
        return Inert("a quantised tensor")
    return value.tensor()
