"""How many scans a JPEG has: each is a pass over the whole picture, however few bytes it takes."""

import re

# What begins a segment: no stuffed zero, restart, start of image or fill byte.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = 0xDA, 0xD9


def jpeg_scans(data: bytes) -> int:
    """Scans of the first picture in a JPEG file; a damaged file gives those before the damage.

    A progressive picture of usual programs has ten, and sixty-odd are the most that are sensible.
    """
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        at = found.end()
        kind = data[at - 1]
        if kind == _END:
            break
        scans += kind == _SCAN
        at += int.from_bytes(data[at : at + 2], "big")
    return scans
