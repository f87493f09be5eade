"""TIFF files of any number of channels, written plainly."""

import struct
import zlib

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3}


def tiff(
    pixels: np.ndarray,
    *,
    photometric: int = 1,
    planar: bool = False,
    deflate: bool = False,
    differences: bool = False,
    tile: int | None = None,
    rows: int = 7,
    order: str = "<",
    extra: list[int] | None = None,
    turn: int = 1,
) -> bytes:
    """(H, W, C) as a file: strips of ``rows`` rows or tiles of ``tile`` x ``tile`` pixels."""
    height, width, samples = pixels.shape
    kind = pixels.dtype.newbyteorder(order)
    layers = [pixels[..., c : c + 1] for c in range(samples)] if planar else [pixels]
    parts = []
    for layer in layers:
        if tile:
            down, across = -height % tile, -width % tile
            padded = np.pad(layer, ((0, down), (0, across), (0, 0)))
            parts += [
                padded[top : top + tile, left : left + tile]
                for top in range(0, height, tile)
                for left in range(0, width, tile)
            ]
        else:
            parts += [layer[top : top + rows] for top in range(0, height, rows)]
    if differences:
        parts = [np.diff(part, axis=1, prepend=part[:, :1] * 0) for part in parts]
    encoded = [part.astype(kind).tobytes() for part in parts]
    if deflate:
        encoded = [zlib.compress(part) for part in encoded]
    body, offsets = b"", []
    for part in encoded:
        offsets.append(8 + len(body))
        body += part
    body += b"\0" * (len(body) % 2)
    tags = {
        256: [width], 257: [height], 258: [8 * pixels.dtype.itemsize] * samples,
        259: [8 if deflate else 1], 262: [photometric], 274: [turn], 277: [samples],
        284: [2 if planar else 1], 317: [2 if differences else 1],
        339: [KINDS[pixels.dtype.kind]] * samples,
    }  # fmt: skip
    counts = [len(part) for part in encoded]
    if tile:
        tags |= {322: [tile], 323: [tile], 324: offsets, 325: counts}
    else:
        tags |= {273: offsets, 278: [rows], 279: counts}
    if extra is not None:
        tags[338] = extra
    at = 8 + len(body)
    beyond, entries, values = at + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}L", *numbers)
        place = packed
        if len(packed) > 4:
            place = struct.pack(f"{order}L", beyond + len(values))
            values += packed
        entries += struct.pack(f"{order}HHL", tag, 4, len(numbers)) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HL", 42, at)
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values
