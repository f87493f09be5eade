"""What the globals of a pickle stand for: functions of this package, records, NumPy arrays.

Nothing of another program is imported or made. A pickle may name what is in a table like
`NUMPY_GLOBALS`, and usual company (`inert_objects`), of which only the name is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.weights.inert_objects import Inert
from xcite.weights.stored import ITEM_SIZES, StoredTensor

MAX_DIMENSIONS = 16

Global = Callable[..., Any]
Globals = Mapping[tuple[str, str], Global | Inert]


class PickleError(XciteError):
    """The file is damaged, hostile or of an unknown kind; says why, without the file's name."""


@dataclass(frozen=True)
class LongText:
    """A long text whose characters are bytes: how protocol 2 writes an array's numbers.

    Kept as bytes, and the same object goes to the array: the numbers lie in memory once.
    """

    raw: bytearray


@dataclass
class ArrayRecord:
    """An array in the making: NumPy's pickles create an empty one, then set its state.

    Attributes:
        left: what the array holds if no weights have that type, such as "NumPy type 'U7'".
    """

    tensor: StoredTensor | None = None
    left: str | None = None

    def set_state(self, state: Any) -> None:
        """State of `numpy.ndarray.__setstate__`: (version, shape, dtype, fortran, numbers)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("an array's state is not what NumPy writes")
        _, shape, dtype, fortran, raw = state
        if isinstance(dtype, Inert):
            self.left = dtype.name
        else:
            self.tensor = array_tensor(raw, dtype, shape, bool(fortran))


@dataclass
class DtypeRecord:
    """A NumPy number type; its state says the byte order."""

    name: str
    big_endian: bool = False

    def set_state(self, state: Any) -> None:
        """State of `numpy.dtype.__setstate__`: (version, byte order, ...)."""
        plain = isinstance(state, tuple) and 2 <= len(state) <= 9
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise PickleError("a number type's state is not what NumPy writes")
        self.big_endian = state[1] == ">"


class FieldsRecord(Inert):
    """An object of another program whose fields are kept as plain data; its class is never made.

    Attributes:
        fields: what the pickle sets as its state, a dictionary of the fields by name.
        state: a state of another form, such as a tuple.
    """

    __slots__ = ("fields", "state")

    def __init__(self, name: str):
        super().__init__(name)
        self.fields: dict[Any, Any] = {}
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        if isinstance(state, dict):
            self.fields = state
        else:
            self.state = state


def array_tensor(raw: Any, dtype: Any, shape: Any, fortran: bool) -> StoredTensor:
    """A tensor over bytes that are present, after checking that they are exactly enough."""
    if not isinstance(dtype, DtypeRecord):
        raise PickleError("an array's number type is not a NumPy type")
    if isinstance(raw, LongText):
        raw = raw.raw
    if not isinstance(raw, bytes | bytearray):
        raise PickleError("an array holds objects instead of numbers")
    dimensions = checked_shape(shape)
    count = 1
    for size in dimensions:
        count *= size
    if count * ITEM_SIZES[dtype.name] != len(raw):
        raise PickleError(f"an array of shape {dimensions} comes with {len(raw)} bytes")
    # Paddle has no NumPy type for bfloat16 and writes its 16 bits as uint16.
    kind = "bfloat16" if dtype.name == "uint16" else dtype.name
    numpy_type = np.dtype(dtype.name).newbyteorder(">" if dtype.big_endian else "<")

    def load() -> np.ndarray:
        flat = np.frombuffer(raw, numpy_type)
        # A view of the bytes as read, unless they are a constant or of the other byte order.
        native = flat.astype(numpy_type.newbyteorder("="), copy=not flat.flags.writeable)
        return native.reshape(dimensions, order="F" if fortran else "C")

    return StoredTensor(dimensions, kind, load)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape if it is a tuple of a few sizes."""
    if not isinstance(shape, tuple | list) or len(shape) > MAX_DIMENSIONS:
        raise PickleError("a tensor's shape is not a short tuple")
    if not all(type(size) is int and 0 <= size < 2**48 for size in shape):
        raise PickleError("a tensor's shape holds something other than sizes")
    return tuple(shape)


def shown(value: Any) -> str:
    """A stranger's value for a message: short, on one line, without control characters."""
    if isinstance(value, str | float | bool | None):
        return ascii(value)[:80]
    if isinstance(value, int):
        return str(value) if abs(value) < 2**64 else "a huge number"
    return value.name if isinstance(value, Inert) else type(value).__name__


def checked_key(key: Any) -> Any:
    """A dictionary's key, or an `Inert` for one whose hash a stranger could make expensive.

    A tuple is hashed through all that it holds, which can be exponentially much, and large numbers
    can be made to collide. No weights lie under such keys.
    """
    if isinstance(key, str | bytes | float | Inert | None):
        return key
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**63 else Inert("int")
    if isinstance(key, tuple | LongText):
        return Inert(type(key).__name__)
    raise PickleError(f"a dictionary's key is {shown(key)}")


# --- the globals of NumPy's pickles -----------------------------------------------------------


def ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """`collections.OrderedDict`, as a dictionary."""
    result: dict[Any, Any] = {}
    if not isinstance(items, list | tuple):
        raise PickleError("an OrderedDict is built from something other than a list")
    for item in items:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise PickleError("an OrderedDict's item is not a pair")
        result[checked_key(item[0])] = item[1]
    return result


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> ArrayRecord:
    if kind is not _ndarray:
        raise PickleError("an array of an unknown class")
    return ArrayRecord()


def _ndarray(*_: Any) -> Any:
    raise PickleError("numpy.ndarray is called directly")


def _default_dict(factory: Any = None, *_: Any) -> dict[Any, Any]:
    """`collections.defaultdict` and `Counter`, as a dictionary; items follow one by one."""
    return dict(factory) if isinstance(factory, dict) else {}


_CODES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "i8": "int64", "i4": "int32",
    "i2": "int16", "i1": "int8", "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
    "b1": "bool", "c8": "complex64", "c16": "complex128",
}  # fmt: skip


def _dtype(code: Any, *_: Any) -> DtypeRecord | Inert:
    if isinstance(code, str) and code.lstrip("<|=") in _CODES:
        return DtypeRecord(_CODES[code.lstrip("<|=")])
    return Inert(f"NumPy type {shown(code)}")  # texts, objects, dates, records


def _encode(text: Any, encoding: Any = "latin1") -> bytes | bytearray:
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"text encoding {shown(encoding)} is not NumPy's")
    if isinstance(text, LongText):
        return text.raw
    if not isinstance(text, str):
        raise PickleError("something other than text is encoded")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise PickleError("an array's text holds characters that are not bytes") from error


def _scalar(dtype: Any, raw: Any = None) -> Any:
    if isinstance(dtype, Inert):
        return Inert(dtype.name)
    return array_tensor(raw, dtype, (), False).load().item()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> ArrayRecord:
    if isinstance(dtype, Inert):
        return ArrayRecord(left=dtype.name)
    return ArrayRecord(array_tensor(raw, dtype, shape, order == "F"))


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise PickleError("a tuple is built from something other than a sequence")
    return tuple(items)


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise PickleError("bytes are built from arguments")
    return b""


NUMPY_GLOBALS: dict[tuple[str, str], Global] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "tuple"): _tuple,
    ("__builtin__", "tuple"): _tuple,
    ("builtins", "bytes"): _empty_bytes,
    ("__builtin__", "bytes"): _empty_bytes,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "Counter"): _default_dict,
    # numpy.core became numpy._core in NumPy 2; files of both are about.
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
