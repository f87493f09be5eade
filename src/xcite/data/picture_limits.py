"""What an encoded picture may ask of a decoder, counted before anything is decoded.

Pixels are counted by `xcite.data.decoding`. Here are the other ways in which a small file costs
much: scans of a JPEG, each of which is a pass over all pixels, and segments, chunks, comments and
tags, which readers take one by one. Of an animation only the first picture is ever decoded, so the
others cost nothing, however many they are.
"""

import re
import struct
from collections.abc import Callable, Iterator

from xcite.data.jpeg2000_packets import jpeg2000_packets
from xcite.data.jpeg_scans import jpeg_scans
from xcite.errors import XciteError

MAX_PIXELS = 178_956_970
"""Of a picture, if nothing else is said."""

MOST_SCANS = 100  # encoders write about ten
MOST_SCANNED = 3_000_000_000  # pixels times scans; seconds of decoding
USUAL_SCANS = 16  # that a picture of as many pixels as are allowed may have in any case
MOST_SEGMENTS = 1_000  # parts beside the pixels
MOST_DATA_CHUNKS = 250_000  # a PNG of 1 GiB in libpng's usual chunks has half as many
MOST_BESIDE = 64 << 20  # bytes beside the pixels: colour profiles, comments, thumbnails
MOST_TILES = 20_000  # of JPEG 2000; each takes ten kilobytes
MOST_PACKETS = 4_000_000  # tiles times layers times resolutions and so on
MOST_COMMENTS = 4 << 20  # bytes of a GIF
MOST_JUNK = 64 << 10  # bytes that belong to nothing
MOST_TAGS = 1 << 18
MOST_TAG_BYTES = 16 << 20  # or the whole file: only tags that lie over each other have more

_EXIF = b"Exif\0\0"
_TAG_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes, by type of TIFF
_NESTED = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability: a reader follows these


def refuse_excess(data: bytes, origin: str, max_pixels: int = MAX_PIXELS) -> None:
    """Look at an encoded picture of any format; what is damaged is left to its decoder.

    Args:
        max_pixels: that are allowed in a picture; with more of them more work is, too.

    Raises:
        XciteError: it asks for more than a real picture does; the message says of what.
    """
    for beginning, examine in _FORMATS.items():
        if data.startswith(beginning):
            for problem in examine(data, max_pixels):
                raise XciteError(f"{origin}: {problem}, refused as a decompression bomb")


def refuse_tags(exif: bytes, origin: str) -> None:
    """The same for EXIF that a decoder has found.

    Raises:
        XciteError: more tags, or larger ones, than a camera writes.
    """
    for problem in _tags(exif.removeprefix(_EXIF)):
        raise XciteError(f"{origin}: {problem}, refused as a decompression bomb")


def _jpeg(data: bytes, max_pixels: int) -> Iterator[str]:
    position, segments, junk, pixels, exif = 2, 0, 0, 0, []
    passes, components = True, 0
    while True:
        found = data.find(b"\xff", position)
        junk += (found if found >= 0 else len(data)) - position
        if junk > MOST_JUNK:
            yield f"more than {MOST_JUNK} bytes between the segments of a JPEG"
        if found < 0 or found + 4 > len(data):
            return
        marker = data[found + 1]
        if marker in (0, 1, 0xFF) or 0xD0 <= marker <= 0xD9:
            junk += 1
            position = found + (1 if marker == 0xFF else 2)
            continue
        length = int.from_bytes(data[found + 2 : found + 4], "big")
        body = data[found + 4 : found + 2 + length]
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) > 4:
            height, width = struct.unpack(">HH", body[1:5])
            pixels = max(pixels, height * width)
            passes, components = marker not in (0xC0, 0xC1), body[5] if len(body) > 5 else 0
        elif marker == 0xE1 and body.startswith(_EXIF):
            exif.append(body.removeprefix(_EXIF))
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            yield from _tags(body[4:])
        segments += 1
        position = found + 2 + max(2, length)
        if segments > MOST_SEGMENTS:
            yield f"more than {MOST_SEGMENTS} segments before the pixels of a JPEG"
    yield from _tags(b"".join(exif))
    if not passes and body[:1] == bytes([components]):
        return  # all components are in one scan, behind which the decoder stops
    most = min(MOST_SCANS, max(MOST_SCANNED, USUAL_SCANS * max_pixels) // max(1, pixels))
    # Counting bytes is quick, but what follows the picture may look like scans, too.
    if data.count(b"\xff\xda", found) > most and jpeg_scans(data) > most:
        yield f"more than {most} scans of {pixels} pixels"


def _png(data: bytes, max_pixels: int) -> Iterator[str]:
    position = 8
    chunks, pixels, beside = 0, 0, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            pixels += 1
        elif kind not in (b"fdAT", b"fcTL"):  # of the other pictures of an animation
            chunks += 1
            beside += length
        if kind == b"eXIf":
            yield from _tags(data[position + 8 : position + 8 + length])
        if chunks > MOST_SEGMENTS or beside > MOST_BESIDE:
            yield f"more than {MOST_SEGMENTS} chunks or {MOST_BESIDE} bytes beside the pixels"
        if pixels > MOST_DATA_CHUNKS:
            yield f"pixels in more than {MOST_DATA_CHUNKS} chunks"
        if kind == b"IEND":
            return
        position += 12 + length


def _gif(data: bytes, max_pixels: int) -> Iterator[str]:
    position = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    start, extensions, junk = position, 0, 0
    while position < len(data) and data[position] not in b",;":
        if data[position] == 0x21:
            extensions += 1
            position += 2
            while position < len(data) and data[position]:
                position += 1 + data[position]
        else:  # the zero that ends an extension, or what belongs to nothing
            junk += data[position] != 0
            position += 1
        if extensions > MOST_SEGMENTS or junk > MOST_JUNK or position - start > MOST_COMMENTS:
            yield f"more than {MOST_COMMENTS >> 20} MiB or {MOST_SEGMENTS} blocks before the pixels"


def _tiff(data: bytes, max_pixels: int) -> Iterator[str]:
    yield from _tags(data)


def _tags(data: bytes) -> Iterator[str]:
    """The directory of a TIFF or of EXIF, those that it names, and the one of the next picture."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    number, counter, first = ("Q", "Q", 8) if big else ("L", "H", 4)
    entry = struct.Struct(f"{order}HH{number}{number}")
    width, head = struct.calcsize(f"={number}"), struct.calcsize(f"={counter}")
    pending, seen = [struct.unpack_from(order + number, data, first)[0]], {0}
    tags = size = 0
    while pending and len(seen) < 8:
        at = pending.pop()
        if at in seen or at + head > len(data):
            continue
        seen.add(at)
        start = at + head
        count = struct.unpack_from(order + counter, data, at)[0]
        present = min(count, (len(data) - start) // entry.size)
        end = start + present * entry.size
        tags += present
        if tags > MOST_TAGS:
            yield f"more than {MOST_TAGS} tags"
        for tag, kind, values, place in entry.iter_unpack(data[start:end]):
            length = values * (_TAG_SIZES[kind] if kind < len(_TAG_SIZES) else 0)
            if width < length <= len(data) - place:  # otherwise there is nothing to be read
                size += length
            if tag in _NESTED:
                pending.append(place)
        if size > max(len(data), MOST_TAG_BYTES):
            yield f"tags of {size} bytes that lie over each other"
        if len(seen) == 2 and present == count and end + width <= len(data):
            pending.append(struct.unpack_from(order + number, data, end)[0])


def _jpeg2000(data: bytes, max_pixels: int) -> Iterator[str]:
    tiles, packets = jpeg2000_packets(data)
    if tiles > MOST_TILES or packets > MOST_PACKETS:
        yield f"{tiles} tiles and {packets} packets of a JPEG 2000 picture"


def _ppm(data: bytes, max_pixels: int) -> Iterator[str]:
    words = re.sub(rb"#[^\r\n]*", b"", data[:MOST_JUNK]).split(None, 3)
    if len(words) < 3 and len(data) > MOST_JUNK:
        yield f"a PPM header of more than {MOST_JUNK} bytes"


_FORMATS: dict[bytes, Callable[[bytes, int], Iterator[str]]] = {
    b"\xff\xd8": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF8": _gif,
    b"\xff\x4f\xff\x51": _jpeg2000,
    b"\0\0\0\x0cjP  \r\n\x87\n": _jpeg2000,
    b"II": _tiff,
    b"MM": _tiff,
    **{b"P%d" % digit: _ppm for digit in range(1, 7)},
}
