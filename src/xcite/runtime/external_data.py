"""Which other files an ONNX model names for its tensors ("external data"), read without a runtime.

A runtime opens such a file wherever the model says it lies, so a bundle is only whole when they are
known. The model is walked as protobuf's wire format; tensors' numbers are passed over, not read.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from xcite.errors import XciteError

_DEEPEST = 50  # graphs inside graphs
_LOCATION = b"location"
# message: number of a field -> the message in it (onnx.proto); others hold no tensor
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(path: Path) -> set[str]:
    """The locations that tensors of an ONNX file name, as they are written there.

    Raises:
        XciteError: unreadable, or not an ONNX file.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return set(_locations(data, 0, len(data), "model", 0))
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise XciteError(f"{path} is not a whole ONNX file; export again") from error


def _locations(data: mmap.mmap, at: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError
    inside = _FIELDS[message]
    for number, start, stop in _fields(data, at, end):
        kind = inside.get(number)
        if kind == "entry":
            key, value = b"", b""
            for field, first, last in _fields(data, start, stop):
                if field == 1:
                    key = data[first:last]
                elif field == 2:
                    value = data[first:last]
            if key == _LOCATION:
                yield value.decode("utf-8", "replace")
        elif kind is not None:
            yield from _locations(data, start, stop, kind, depth + 1)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every field that has a length."""
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            yield tag >> 3, at, at + length
            at += length
        else:
            raise ValueError
    if at != end:
        raise ValueError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError
