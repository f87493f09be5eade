"""What Python programs hold as pictures: paths, bytes, files, arrays, tensors, and many of them.

One picture is

- a path: a file; but a folder, an archive, a list or a pattern (``"photos/**/*.jpg"``) is all the
  pictures in it;
- encoded bytes (``bytes``, ``bytearray``, ``memoryview``), or a file open for reading in binary
  mode, read from where it stands;
- a Pillow picture;
- an array (H, W) or (H, W, C), or a batch of them (B, H, W, C): anything NumPy reads through
  ``__array__`` or ``__dlpack__``;
- a tensor of PyTorch or PaddlePaddle (H, W) or (C, H, W), or a batch (B, C, H, W): channels first,
  as these frameworks keep pictures.

Numbers are uint8 from 0 to 255, or floating point from 0 (black) to 1 (white), which is rounded to
8 bits. Every picture is then resized and cropped as the model's preprocessing says; images that are
normalised already belong into `Predictor.logits`. Any other iterable holds such pictures, and is
taken one by one: a list, a generator, a column of a table.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from xcite.data.decoding import MAX_PIXELS, decode
from xcite.data.given_pictures import Given, pictures_at
from xcite.data.sources import Found, open_source
from xcite.errors import XciteError
from xcite.regular_files import LARGEST_READ


class Readable(Protocol):
    """A file, open in binary mode."""

    def read(self, size: int = ..., /) -> bytes: ...


class ArrayLike(Protocol):
    """An array or tensor of any library that NumPy can read."""

    def __array__(self) -> "np.ndarray[Any, Any]": ...


if TYPE_CHECKING:
    OnePicture: TypeAlias = (
        str
        | os.PathLike[str]
        | bytes
        | bytearray
        | memoryview
        | Readable
        | Image.Image
        | np.ndarray[Any, Any]
        | ArrayLike
    )
    Pictures: TypeAlias = OnePicture | Iterable[OnePicture]

_FRAMEWORKS = ("torch", "paddle")  # whose tensors are channels first
_USUAL_CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Prepared:
    """One picture as the model will see it, or the reason why it cannot be read.

    Attributes:
        pixels: uint8 (H, W, C); None where ``error`` says what is wrong.
    """

    name: str
    pixels: np.ndarray | None
    error: str = ""


def prepared(
    given: Iterable[Given],
    seen: Callable[[np.ndarray], np.ndarray],
    *,
    channels: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Prepared]:
    """Each picture decoded, and resized and cropped by ``seen``, when its turn comes."""
    for one in given:
        try:
            if one.picture is None:
                raise XciteError(one.error or f"{one.name}: it cannot be read")
            pixels = decode(one.picture, channels=channels, max_pixels=max_pixels, origin=one.name)
            yield Prepared(one.name, seen(pixels))
        except (XciteError, MemoryError) as error:
            yield Prepared(one.name, None, str(error) or f"{one.name}: memory ran out")


def pictures_of(given: "Pictures", found: Found, *, channels: int) -> Iterator[Given]:
    """Every picture in turn; an error stands in the place of what is none.

    What has no name of its own is called "picture 3" by its place among all. Nothing is read
    before its turn comes, so a generator may be endless.

    Args:
        found: counts what is left out of folders.
        channels: of the model, to tell channels first from channels last.
    """
    single = _is_single(given) or isinstance(given, Mapping) or not isinstance(given, Iterable)
    several: Iterable[Any] = [given] if single else given  # type: ignore[assignment]
    pictures = (each for one in several for each in _of_one(one, found, channels))
    for number, each in enumerate(pictures):
        name = each.name or f"picture {number}"
        error = f"{name}: {each.error}" if each.error and not each.name else each.error
        yield Given(name, each.picture, error)


def _is_single(given: object) -> bool:
    """Whether it is taken as a whole: a picture, or pictures behind one path or in one batch."""
    whole = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(given, whole) or _is_open(given):
        return True
    return _is_array(given) and getattr(given, "ndim", 0) != 1  # of one dimension is a column


def _is_open(given: object) -> bool:
    return callable(getattr(given, "read", None))


def _is_array(given: object) -> bool:
    return hasattr(given, "__array__") or hasattr(given, "__dlpack__")


def _of_one(one: Any, found: Found, channels: int) -> Iterator[Given]:
    """The pictures of one item, without a name ("") where they have none of their own."""
    name = ""
    try:
        if isinstance(one, str | os.PathLike):
            name = os.fsdecode(one)
            yield from pictures_at(name, found, functools.partial(open_source, channels=channels))
        elif isinstance(one, bytes | bytearray | memoryview):
            yield Given(name, bytes(one))
        elif isinstance(one, Image.Image):
            yield Given(_text(getattr(one, "filename", "")), one)
        elif _is_open(one):
            name = _text(getattr(one, "name", ""))
            yield Given(name, _contents(one, name))
        elif _is_array(one):
            for pixels in _pixels(one, channels):
                yield _as_picture(pixels)
        else:
            raise XciteError(
                f"{_kind(one)} is no picture; give a path, encoded bytes, an open file, a Pillow "
                "picture, an array (H, W, C) or a tensor (C, H, W)"
            )
    except XciteError as error:
        yield Given(name, None, str(error))


def _text(name: object) -> str:
    """The name of a file; "" for one that has only a number, or none."""
    return name if isinstance(name, str) else ""


def _contents(file: Any, name: str) -> bytes:
    """What is left to read in a file.

    Raises:
        XciteError: nothing, too much, or text.
    """
    called = f"{name}: " if name else ""
    parts, length = [], 0
    while length <= LARGEST_READ:
        try:
            part = file.read(LARGEST_READ + 1 - length)
        except Exception as error:  # of whatever is behind it: an archive, a connection
            raise XciteError(f"{called}it cannot be read ({error})") from error
        if isinstance(part, str):
            raise XciteError(f"{called}it is open as text; open it in binary mode, 'rb'")
        if not part:
            break
        parts.append(bytes(part))
        length += len(part)
    if not parts:
        raise XciteError(f"{called}nothing is left to read in it; seek(0) goes back to its start")
    if length > LARGEST_READ:
        raise XciteError(f"{called}more than the {LARGEST_READ >> 20} MiB a picture may have")
    return b"".join(parts)


def as_array(given: Any) -> "np.ndarray[Any, Any]":
    """An array, or a tensor of any library, in NumPy; bfloat16 becomes float32.

    Raises:
        XciteError: it is neither, or cannot be brought to NumPy.
    """
    if isinstance(given, np.ndarray):
        return given
    if not _is_array(given):
        raise XciteError(f"{_kind(given)} is no array or tensor")
    try:
        if is_tensor(given):
            given = given.detach().cpu()
            # PyTorch has no bfloat16 for NumPy, and Paddle gives its bits as uint16.
            return np.asarray((given.float() if "bfloat16" in str(given.dtype) else given).numpy())
        if hasattr(given, "__array__"):
            given = np.asarray(given)
            return given.astype(np.float32) if given.dtype.name == "bfloat16" else given
        return np.from_dlpack(given)
    except Exception as error:  # of whatever library it is
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise XciteError(f"{_kind(given)} cannot be read as an array ({reason})") from error


def is_tensor(given: object) -> bool:
    """Whether it is PyTorch's or PaddlePaddle's, told without importing them."""
    modules = (kind.__module__.partition(".")[0] for kind in type(given).__mro__)
    return not isinstance(given, np.ndarray) and any(name in _FRAMEWORKS for name in modules)


def _kind(given: object) -> str:
    kind = type(given)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _pixels(given: Any, channels: int) -> Iterator["np.ndarray[Any, Any]"]:
    """Every picture of an array or tensor, channels last.

    Raises:
        XciteError: other dimensions, or the other order of them.
    """
    array = as_array(given)
    first = is_tensor(given)
    kind, usual, other, turn = (
        ("a tensor", "(C, H, W)", "(H, W, C)", "permute(2, 0, 1)")
        if first
        else ("an array", "(H, W, C)", "(C, H, W)", "transpose(1, 2, 0)")
    )
    if array.ndim not in (2, 3, 4):
        raise XciteError(
            f"{kind} of shape {array.shape} is no picture; give (H, W), {usual} or a batch of it"
        )
    if array.ndim > 2:
        head, tail = array.shape[-3], array.shape[-1]
        own, swapped = (head, tail) if first else (tail, head)
        possible = (*_USUAL_CHANNELS, channels)
        if own not in possible and swapped in possible:
            raise XciteError(
                f"{kind} is {usual}, and this one of shape {array.shape} looks like {other}: "
                f"use {turn}"
            )
        if first:
            array = np.moveaxis(array, -3, -1)
    yield from array if array.ndim == 4 else [array]


def _as_picture(pixels: "np.ndarray[Any, Any]") -> Given:
    try:
        return Given("", _eight_bits(pixels))
    except XciteError as error:
        return Given("", None, str(error))


def _eight_bits(pixels: "np.ndarray[Any, Any]") -> np.ndarray:
    """uint8 as it is; floating point from 0 to 1 rounded to 8 bits.

    Raises:
        XciteError: other types and values, and NaN.
    """
    if pixels.dtype == np.uint8 or not pixels.size:  # decoding refuses a picture without pixels
        return pixels.astype(np.uint8, copy=False)
    if pixels.dtype.kind != "f":
        raise XciteError(
            f"pixels of type {pixels.dtype}; give uint8 from 0 to 255 or floating point from 0 to 1"
        )
    low, high = float(pixels.min()), float(pixels.max())  # NaN if any pixel is
    if not np.isfinite([low, high]).all():
        raise XciteError("there are NaN or infinite numbers among its pixels")
    if low < 0 or high > 1:
        raise XciteError(
            f"floating-point pixels from {low:g} to {high:g}; they are read from 0 (black) to 1 "
            "(white): divide pixels by 255; normalised images go to Predictor.logits"
        )
    return np.rint(pixels.astype(np.float32, copy=False) * np.float32(255)).astype(np.uint8)
