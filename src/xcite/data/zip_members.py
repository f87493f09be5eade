"""Members of zip archives, listed within bounded memory and time, and read one by one.

zipfile keeps an object for every member, and unpacks as much as a member holds.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from xcite.errors import XciteError
from xcite.regular_files import LARGEST_READ, open_regular

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 1 << 16
_UTF8, _ENCRYPTED = 0x800, 0x1
_CHUNK = 1 << 20


class ZipMember(NamedTuple):
    """A file in an archive: where its header lies, and what the directory says of it."""

    name: bytes
    is_utf8: bool
    header: int
    packed: int
    size: int
    method: int
    crc: int
    encrypted: bool


def zip_members(path: str | os.PathLike[str]) -> Iterator[ZipMember]:
    """Each file in a zip archive, in the order of its directory; folders are left out.

    Raises:
        XciteError: unreadable, no zip, damaged, or one part of several.
    """
    try:
        with open_regular(path) as file:
            yield from _members(file, path)
    except (OSError, struct.error, ValueError, OverflowError) as error:
        raise XciteError(f"{path}: cannot be read as a zip archive ({error})") from error


def read_member(
    path: str | os.PathLike[str], header: int, packed: int, size: int, method: int, crc: int
) -> bytes:
    """The unpacked bytes of a member, never more than it says it has.

    Raises:
        XciteError: unreadable, damaged, or larger than any picture.
    """
    if max(size, packed) > LARGEST_READ:
        raise XciteError(f"more than the {LARGEST_READ >> 20} MiB a picture may have")
    with open_regular(path) as file:
        file.seek(header)
        try:
            fields = _LOCAL.unpack(file.read(_LOCAL.size))
        except struct.error as error:
            raise XciteError("the archive is cut short") from error
        if fields[0] != b"PK\3\4":
            raise XciteError("the archive is damaged or was changed since it was listed")
        file.seek(fields[9] + fields[10], os.SEEK_CUR)
        data = file.read(packed)
    if method == DEFLATED:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # one byte more than it may have shows that it lies about its size
            data = unpacker.decompress(data, size + 1)
        except zlib.error as error:
            raise XciteError(f"damaged in the archive ({error})") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise XciteError("damaged in the archive: its size or checksum is not what it says")
    return data


def _members(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[ZipMember]:
    start, length, shift = _directory(file, path)
    file.seek(start)
    directory = _Bounded(file, length)
    while entry := directory.read(_ENTRY.size):
        fields = _ENTRY.unpack(entry)
        if fields[0] != b"PK\1\2":
            raise XciteError(f"{path}: damaged, the directory of the zip ends in something else")
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name = directory.read(fields[10])
        extra = directory.read(fields[11])
        directory.read(fields[12])
        size, packed, header = _in_64_bits(extra, size, packed, fields[16])
        if not name.endswith(b"/"):
            encrypted = bool(flags & _ENCRYPTED)
            is_utf8 = bool(flags & _UTF8)
            header += shift
            yield ZipMember(name, is_utf8, header, packed, size, method, crc, encrypted)


class _Bounded:
    """Reads a part of a file and no further."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = io.BufferedReader(file, _CHUNK) if isinstance(file, io.RawIOBase) else file
        self._left = length

    def read(self, size: int) -> bytes:
        if size > self._left > 0:
            raise ValueError("its directory is cut short")
        size = min(size, self._left)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("its directory is cut short")
        self._left -= size
        return data


def _directory(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Start and length of the directory, and by how much offsets in it are to be shifted."""
    whole = file.seek(0, os.SEEK_END)
    tail_start = max(0, whole - _END.size - _LONGEST_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) - place < _END.size:
        raise XciteError(f"{path}: no zip archive, or cut short: its directory is missing")
    fields = _END.unpack_from(tail, place)
    disk, length, start = fields[1], fields[5], fields[6]
    end = tail_start + place
    if 0xFFFF in (disk, fields[3], fields[4]) or 0xFFFFFFFF in (length, start):
        file.seek(max(0, end - _END64_PLACE.size))
        found = _END64_PLACE.unpack(file.read(_END64_PLACE.size))
        if found[0] == b"PK\6\7":
            file.seek(found[2])
            more = _END64.unpack(file.read(_END64.size))
            if more[0] != b"PK\6\6":
                raise XciteError(f"{path}: damaged, the end of the zip cannot be read")
            disk, length, start, end = more[4], more[8], more[9], found[2]
    if disk:
        raise XciteError(f"{path}: one part of a zip in several; join them first")
    shift = end - length - start  # bytes that were put before the archive
    if shift < 0 or start < 0:
        raise XciteError(f"{path}: damaged, the directory of the zip lies beyond its end")
    return start + shift, length, shift


def _in_64_bits(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers, those that do not fit into 32 bits taken from the extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1:
            values = iter(
                struct.unpack(f"<{length // 8}Q", extra[position : position + length // 8 * 8])
            )
            size, packed, header = (
                next(values, value) if value == 0xFFFFFFFF else value
                for value in (size, packed, header)
            )
        position += length
    return size, packed, header
