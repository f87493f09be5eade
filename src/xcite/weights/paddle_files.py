"""PaddlePaddle's `.pdparams` files, read and written without PaddlePaddle."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xcite.weights.inert_objects import Inert
from xcite.weights.pickle_globals import ArrayRecord, PickleError
from xcite.weights.pickle_writer import PickleWriter
from xcite.weights.pickles import read_pickle
from xcite.weights.stored import StoredTensor
from xcite.whole_files import whole_file

NAME_TABLE = "StructuredToParameterName@@"  # key in the file -> name of the parameter
SLICE_TABLE = "UnpackBigParamInfor@@"  # (sic) big tensors cut into pieces, protocols 2 and 3


def read_paddle(path: Path, aside: Counter[str]) -> Any:
    """The object `paddle.save` or `pickle.dump` wrote, arrays as records to `resolve`.

    Raises:
        PickleError: damaged or hostile.
    """
    with path.open("rb") as file:
        loaded = read_pickle(file, path.stat().st_size, aside=aside)
    if not isinstance(loaded, dict):
        return loaded
    loaded.pop(NAME_TABLE, None)
    return _joined(loaded)


def resolve(value: Any) -> Any:
    """An array, or paddle's (name, array), as a `StoredTensor`; anything else as it is."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    if isinstance(value, ArrayRecord):
        return value.tensor or Inert(value.left or "an array without numbers")
    return value


def _joined(loaded: dict[Any, Any]) -> dict[Any, Any]:
    """Put tensors that were cut into pieces together again."""
    table = loaded.pop(SLICE_TABLE, None)
    if table is None:
        return loaded
    if not isinstance(table, dict):
        raise PickleError("the table of cut tensors is damaged")
    for name, entry in table.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("slices"), list):
            raise PickleError("the table of cut tensors is damaged")
        shape = entry.get("OriginShape")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise PickleError("the table of cut tensors is damaged")
        pieces = []
        for piece in entry["slices"]:
            tensor = resolve(loaded.pop(piece, None)) if isinstance(piece, str) else None
            if not isinstance(tensor, StoredTensor):
                raise PickleError("a piece of a cut tensor is missing")
            pieces.append(tensor)
        count = 1
        for size in shape:
            count *= size
        stored = sum(piece.nbytes for piece in pieces)
        whole = StoredTensor(shape, pieces[0].dtype if pieces else "float32", lambda: np.empty(0))
        alike = all(piece.dtype == whole.dtype for piece in pieces)
        if whole.nbytes != stored or not alike:
            raise PickleError(f"the pieces of a cut tensor do not make up its shape {shape}")

        def load(pieces: list[StoredTensor] = pieces, shape: tuple[int, ...] = shape) -> np.ndarray:
            return np.concatenate([piece.load().ravel() for piece in pieces]).reshape(shape)

        loaded[name] = ArrayRecord(StoredTensor(shape, whole.dtype, load))
    return loaded


def write_paddle(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a `.pdparams` that ``paddle.load`` accepts, whole or not at all.

    It is the state dict `paddle.save` writes: NumPy arrays and a table of parameter names, here
    equal to the keys. NumPy's module has its name from before NumPy 2, which every NumPy reads.
    """
    with whole_file(path) as aside, aside.open("wb") as file:
        writer = PickleWriter(file, protocol=3)
        writer.raw(b"}(")
        for name, array in tensors.items():
            writer.text(name)
            _write_array(writer, array)
        writer.text(NAME_TABLE)
        writer.raw(b"}(")
        for name in tensors:
            writer.text(name)
            writer.text(name)
        writer.raw(b"uu.")


def _write_array(writer: PickleWriter, array: np.ndarray) -> None:
    numbers = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    writer.global_("numpy.core.multiarray", "_reconstruct")
    writer.raw(b"(")
    writer.global_("numpy", "ndarray")
    writer.integers((0,))
    writer.raw(b"C\x01btR")
    writer.raw(b"(")
    writer.integer(1)
    writer.integers(array.shape)
    writer.global_("numpy", "dtype")
    writer.raw(b"(")
    writer.text(array.dtype.newbyteorder("<").str[1:])
    writer.raw(b"\x89\x88tR(")  # align=False, copy=True
    writer.integer(3)
    writer.text("<")
    writer.raw(b"NNN")
    writer.integer(-1)
    writer.integer(-1)
    writer.integer(0)
    writer.raw(b"tb\x89")  # the type's state; not Fortran order
    writer.raw(b"B" + len(numbers).to_bytes(4, "little"))
    writer.raw(numbers)
    writer.raw(b"tb")
