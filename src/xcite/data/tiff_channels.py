"""TIFF whose channels Pillow has no mode for: any number of them, 8 or 16 bits or float32.

Pillow decodes such a file all the same when it is told of a grey picture that lies in the same
bytes: samples that follow each other are columns of a wider one, samples in planes are pictures of
their own. So every compression of libtiff works, and no size is believed that was not checked.
"""

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import TiffImagePlugin

from xcite.errors import XciteError

# Tags of the first directory.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_OFFSETS, _TURN, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 317, 322, 323, 324, 325
_EXTRA, _KIND = 338, 339
_READ = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL, _OFFSETS, _TURN, _SAMPLES),
    *(_ROWS, _COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS),
    *(_TILE_COUNTS, _EXTRA, _KIND),
)
_SHORTS = (_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL, _SAMPLES, _PLANAR, _PREDICTOR, _KIND)

_UNSIGNED, _FLOAT = 1, 3
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_DIFFERENCES = 2  # a predictor: each sample less the one before it in its row
# None, LZW, Deflate (two numbers), PackBits, LZMA, Zstandard: whatever the samples mean.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
_MOST_BYTES = 16  # a permitted pixel: 16 channels of 8 bits in the largest picture, more in others
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0")  # what Pillow reads
_TYPES: dict[tuple[int, int], type[np.number]] = {
    (8, _UNSIGNED): np.uint8,
    (16, _UNSIGNED): np.uint16,
    (32, _FLOAT): np.float32,
}


@dataclass(frozen=True)
class TiffChannels:
    """The first picture of a TIFF file, not decoded.

    Attributes:
        size: width and height in pixels, as stored.
        samples: channels.
        bits: of a sample, the most of all channels.
        alpha: whether one of the channels is transparency.
        orientation: EXIF's number, 1 where the picture stands upright.
        beyond_pillow: whether Pillow refuses the file or reads it wrongly.
    """

    size: tuple[int, int]
    samples: int
    bits: int
    alpha: bool
    orientation: int
    beyond_pillow: bool
    _data: bytes
    _order: str
    _tags: dict[int, tuple[int, ...]]

    def pixels(self, origin: str, max_pixels: int) -> np.ndarray:
        """uint8 (H, W, samples): 16 bits are scaled, floating point is taken as 0 to 1.

        Raises:
            XciteError: numbers or a compression that is not read, or more than memory is meant for.
        """
        bits, kind = set(self._tags.get(_BITS, (1,))), set(self._tags.get(_KIND, (_UNSIGNED,)))
        form = _TYPES.get((max(bits), max(kind))) if len(bits) == len(kind) == 1 else None
        if form is None:
            raise XciteError(
                f"{origin}: {self.samples} channels of {max(bits)} bits, sample format "
                f"{max(kind)}; save as unsigned 8 or 16 bits or as float32"
            )
        if self._one(_COMPRESSION) not in _COMPRESSIONS or self._one(_PREDICTOR) > _DIFFERENCES:
            raise XciteError(
                f"{origin}: {self.samples} channels under compression {self._one(_COMPRESSION)}, "
                f"predictor {self._one(_PREDICTOR)}; save as LZW or Deflate, or uncompressed"
            )
        width, height = self.size
        if width * height * self.samples * np.dtype(form).itemsize > _MOST_BYTES * max_pixels:
            raise XciteError(
                f"{origin}: {width} x {height} pixels of {self.samples} channels are more than "
                "are allowed; raise data.max_pixels if the picture is meant"
            )
        if self._one(_PLANAR) == 2 and self.samples > 1:
            planes = [self._grey(plane, 1, form) for plane in self._planes()]
            values = np.concatenate(planes, axis=2)
        else:
            values = self._grey(self._tags, self.samples, form)
        eight = to_eight_bits(values, origin)
        return 255 - eight if self._one(_PHOTOMETRIC) == _WHITE_IS_ZERO else eight

    def _one(self, tag: int) -> int:
        return (self._tags.get(tag) or (1,))[0]

    def _planes(self) -> list[dict[int, tuple[int, ...]]]:
        """Tags of each channel as a picture of its own."""
        where, counts = (
            (_TILE_OFFSETS, _TILE_COUNTS) if _TILE_OFFSETS in self._tags else (_OFFSETS, _COUNTS)
        )
        parts = len(self._tags[where]) // self.samples
        return [
            self._tags
            | {tag: self._tags[tag][i * parts : (i + 1) * parts] for tag in (where, counts)}
            for i in range(self.samples)
        ]

    def _grey(
        self, tags: dict[int, tuple[int, ...]], samples: int, form: type[np.number]
    ) -> np.ndarray:
        """(H, W, samples) of a picture whose samples follow each other."""
        width, height = self.size
        changed = {
            _WIDTH: (width * samples,),
            _BITS: (tags[_BITS][0],),
            _PHOTOMETRIC: (_BLACK_IS_ZERO,),
            _SAMPLES: (1,),
            _PLANAR: (1,),
            _PREDICTOR: (1,),
            _KIND: (tags.get(_KIND, (_UNSIGNED,))[0],),
        }
        if _TILE_WIDTH in tags:
            changed[_TILE_WIDTH] = (tags[_TILE_WIDTH][0] * samples,)
        told = {tag: value for tag, value in (tags | changed).items() if tag not in (_TURN, _EXTRA)}
        file = _with_directory(self._data, self._order, told)
        with TiffImagePlugin.TiffImageFile(io.BytesIO(file)) as image:
            values = np.asarray(image).astype(form).reshape(height, width, samples)
        if self._one(_PREDICTOR) == _DIFFERENCES and form != np.float32:
            step = tags[_TILE_WIDTH][0] if _TILE_WIDTH in tags else width
            for left in range(0, width, step):
                block = values[:, left : left + step]
                np.cumsum(block, axis=1, dtype=form, out=block)
        return values


def tiff_channels(data: bytes) -> TiffChannels | None:
    """What a TIFF file says of its first picture; None for any other file.

    Raises:
        Exception: nearly any, for a damaged file.
    """
    if not data.startswith(_BEGINNINGS):
        return None
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    tags = {tag: _numbers(directory.get(tag)) for tag in _READ}
    tags = {tag: value for tag, value in tags.items() if value}
    samples, bits = tags.get(_SAMPLES, (1,))[0], max(tags.get(_BITS, (1,)))
    alpha = tags.get(_EXTRA, (0,))[0] in (1, 2)
    return TiffChannels(
        size=(tags[_WIDTH][0], tags[_HEIGHT][0]),
        samples=samples,
        bits=bits,
        alpha=alpha,
        orientation=tags.get(_TURN, (1,))[0],
        beyond_pillow=_beyond_pillow(tags, samples, bits, alpha),
        _data=data,
        _order="<" if data.startswith(b"II") else ">",
        _tags=tags,
    )


def _beyond_pillow(tags: dict[int, tuple[int, ...]], samples: int, bits: int, alpha: bool) -> bool:
    kind = max(tags.get(_KIND, (_UNSIGNED,)))
    photometric = tags.get(_PHOTOMETRIC, (_BLACK_IS_ZERO,))[0]
    if samples == 1:  # it inverts 8 bits only, takes signed bytes for unsigned ones
        inverted = photometric == _WHITE_IS_ZERO and bits > 8
        return inverted or kind == _FLOAT or (bits == 8 and kind != _UNSIGNED)
    if samples > 4 or kind != _UNSIGNED or bits > 16:
        return True
    grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    return grey and not (alpha and samples == 2 and bits == 8)


def to_eight_bits(values: np.ndarray, origin: str) -> np.ndarray:
    """uint8 of unsigned numbers of 8 or 16 bits, or of floating point from 0 to 1.

    Raises:
        XciteError: floating point outside of 0 to 1.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # NaN is neither
        raise XciteError(
            f"{origin}: floating-point pixels from {low:g} to {high:g}; they are read from 0 "
            "(black) to 1 (white): scale them, or save as 8 or 16 bits"
        )
    return np.rint(values * np.float32(255)).astype(np.uint8)


def _numbers(value: object) -> tuple[int, ...]:
    several = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in several if isinstance(each, int))


def _with_directory(data: bytes, order: str, tags: Mapping[int, Sequence[int]]) -> bytes:
    """The file with another directory at its end, which its head names."""
    at = len(data) + len(data) % 2
    beyond = at + 2 + 12 * len(tags) + 4
    entries, values = [], b""
    for tag in sorted(tags):
        code = "H" if tag in _SHORTS else "L"
        numbers = struct.pack(f"{order}{len(tags[tag])}{code}", *tags[tag])
        if len(numbers) > 4:
            place = struct.pack(f"{order}L", beyond + len(values))
            values += numbers
        else:
            place = numbers.ljust(4, b"\0")
        kind = 3 if code == "H" else 4
        entries.append(struct.pack(f"{order}HHL", tag, kind, len(tags[tag])) + place)
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)
    mark = struct.pack(f"{order}HL", 42, at)
    return b"".join([data[:2], mark, data[8:], bytes(len(data) % 2), directory, values])
