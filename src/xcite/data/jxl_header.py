"""The size of a JPEG XL picture, read from its head: the decoder tells it only after decoding."""

from collections.abc import Iterator

_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM = b"\xff\x0a"
_HEAD = 16  # bytes that hold the size for certain
_SIDE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


def is_jxl(data: bytes) -> bool:
    """Whether a file begins as JPEG XL does, in a container or without one."""
    return data.startswith((_CODESTREAM, _CONTAINER))


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        ValueError: no size is there.
    """
    head = data[:_HEAD] if data.startswith(_CODESTREAM) else b"".join(_codestream(data))[:_HEAD]
    if not head.startswith(_CODESTREAM):
        raise ValueError("a JPEG XL file without a picture")
    bits = int.from_bytes(head[2:].ljust(_HEAD, b"\0"), "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(_SIDE_BITS[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _codestream(data: bytes) -> Iterator[bytes]:
    """The first bytes of the codestream's parts."""
    position, found = 0, 0
    while position + 8 <= len(data) and found < _HEAD:
        length, head = int.from_bytes(data[position : position + 4], "big"), 8
        kind = data[position + 4 : position + 8]
        if length == 1:
            length, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        end = position + length if length else len(data)
        if kind in (b"jxlc", b"jxlp"):
            start = position + head + (4 if kind == b"jxlp" else 0)
            part = data[start : min(end, start + _HEAD)]
            found += len(part)
            yield part
        if length and length < head:
            return
        position = end
