"""Windows icons (.ico): several pictures of the same thing, of which the largest is wanted."""

import struct

_BEGINNING = b"\0\0\1\0"
_ENTRY = struct.Struct("<BBBBHHII")  # width, height, colours, -, planes, bits, bytes, offset
_PNG = b"\x89PNG\r\n\x1a\n"


def is_icon(data: bytes) -> bool:
    """Whether these are the bytes of an icon."""
    return data.startswith(_BEGINNING)


def largest_picture(data: bytes) -> bytes:
    """The icon's largest picture: a PNG, or an icon that holds nothing else.

    A bitmap whose own header promises another size than the icon's table is no picture; such a
    header would escape the limit of pixels, which is told by the table.

    Raises:
        ValueError: not the bytes of an icon.
    """
    count = int.from_bytes(data[4:6], "little")
    entries = list(_ENTRY.iter_unpack(data[6 : 6 + 16 * count][: 16 * ((len(data) - 6) // 16)]))
    if not is_icon(data) or not entries:
        raise ValueError("an icon without pictures")
    entry = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), e[5]))
    width, height, *_, size, offset = entry
    picture = data[offset : offset + size]
    if picture.startswith(_PNG):
        return picture
    if len(picture) < 12 or struct.unpack_from("<II", picture, 4) != (
        width or 256,
        2 * (height or 256),  # the mask is counted
    ):
        raise ValueError("an icon whose picture has another size than its table says")
    alone = (*entry[:6], len(picture), len(_BEGINNING) + 2 + _ENTRY.size)
    return _BEGINNING + b"\1\0" + _ENTRY.pack(*alone) + picture
