"""How many packets a JPEG 2000 picture is cut into: each is work, however few bytes it takes."""

import struct
from collections.abc import Iterator

_SIZE = b"\xff\x4f\xff\x51"
_CODING, _CODING_OF_ONE, _TILE, _DATA = 0xFF52, 0xFF53, 0xFF90, 0xFF93
_LARGEST_PRECINCT = 0xFF  # powers of two of both sides, in four bits each


def jpeg2000_packets(data: bytes) -> tuple[int, int]:
    """Tiles, and packets of all of them together, as the headers say; (0, 0) without a picture.

    What a header says of one tile or component counts for all of them.
    """
    start = data.find(_SIZE)
    if start < 0 or len(data) < start + 42:
        return 0, 0
    right, bottom, left, top, across, down, tile_left, tile_top, components = struct.unpack_from(
        ">8LH", data, start + 8
    )
    if not (across and down):
        return 0, 0
    tiles = max(1, -(-(right - tile_left) // across) * -(-(bottom - tile_top) // down))
    layers = precincts = 1
    for kind, body in _segments(data, start + 2):
        own = 0 if kind == _CODING else 1 + (components > 256)  # the component's number
        if kind == _CODING:
            layers = max(layers, int.from_bytes(body[2:4], "big"))
        style = body[0 if kind == _CODING else own]
        form = body[5 if kind == _CODING else own + 1 :]  # levels, code blocks, precincts
        levels = form[0]
        sizes = form[5 : 6 + levels] if style & 1 else b""
        found = 0
        for level in range(levels + 1):
            size = sizes[levels - level] if level < len(sizes) else _LARGEST_PRECINCT
            width = -(-(right - left) // (1 << level + (size & 15)))
            height = -(-(bottom - top) // (1 << level + (size >> 4)))
            found += max(tiles, width * height)
        precincts = max(precincts, found)
    return tiles, layers * components * precincts


def _segments(data: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    """Coding styles of the main header and of every tile's."""
    tile = end = 0
    while position + 4 <= len(data):
        kind, length = struct.unpack_from(">HH", data, position)
        if kind == _TILE and position + 12 <= len(data):
            tile, end = position, struct.unpack_from(">L", data, position + 6)[0]
        if kind == _DATA:
            if end < 14:  # the last tile: to the end of the file
                return
            position = tile + end
            continue
        if kind < 0xFF4F or length < 2:
            return
        body = data[position + 4 : position + 2 + length]
        if (kind == _CODING and len(body) >= 10) or (kind == _CODING_OF_ONE and len(body) >= 7):
            yield kind, body
        position += 2 + length
