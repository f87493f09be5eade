"""Members of tar archives, listed within bounded memory and time.

tarfile's own listing keeps every header, reads headers of any length, follows chains of them by
recursion, and takes damage behind the first member for the end.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from xcite.errors import XciteError
from xcite.regular_files import open_regular

_BLOCK = 512
_LONGEST_HEADER = 256 * 1024  # bytes; a path has at most 4,096
_MOST_HEADERS = 8  # before one member; archivers write up to three
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MOST_LINKS = 2_000_000
_KINDS = {tarfile.SYMTYPE: "symbolic links", tarfile.LNKTYPE: "hard links beyond all measure"}
_RECORD = re.compile(rb"(\d{1,9}) ([^=]+)=")


def tar_members(
    path: str | os.PathLike[str],
    start: int = 0,
    length: int | None = None,
    *,
    left_out: Callable[[str, str], None] = lambda kind, name: None,
) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in an uncompressed tar archive, in order.

    Hard links to files of the archive come last, with the place of that file. Other links and
    devices are left out, and nothing is extracted.

    Args:
        start, length: where an archive lies that is itself a member of ``path``; offsets count
            from the beginning of ``path`` all the same.
        left_out: called with kind and name of what is not listed, folders aside.

    Raises:
        XciteError: unreadable, compressed, damaged, cut short, or with headers beyond all measure.
    """
    try:
        with open_regular(path) as file:
            end = os.fstat(file.fileno()).st_size if length is None else start + length
            links: dict[str, str] = {}
            yield from _members(file, path, start, end, links, left_out)
            if links:
                yield from _linked(_members(file, path, start, end, {}), links, left_out)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise XciteError(f"{path}: cannot be read as an uncompressed tar ({error})") from error


def _linked(
    members: Iterator[tuple[str, int, int]],
    links: dict[str, str],
    left_out: Callable[[str, str], None],
) -> Iterator[tuple[str, int, int]]:
    """The hard links among the names ``links``, each with the place of the file it leads to."""
    wanted = set(links.values())
    places = {name: (offset, size) for name, offset, size in members if name in wanted}
    for name, target in links.items():
        if target in links and target not in places:  # a link to a link before it
            target = links[target]
        if target in places:
            yield name, *places[target]
        else:
            left_out("links to nothing in the archive", name)


def _members(
    file: BinaryIO,
    path: str | os.PathLike[str],
    offset: int,
    end: int,
    links: dict[str, str],
    left_out: Callable[[str, str], None] = lambda kind, name: None,
) -> Iterator[tuple[str, int, int]]:
    """The regular files; hard links are put into ``links``, as name to target."""
    everywhere: dict[str, str] = {}  # of global headers
    own: dict[str, str] = {}  # of the headers before a member
    headers, first = 0, offset
    while offset < end or offset == first:
        file.seek(offset)
        block = file.read(min(_BLOCK, max(0, end - offset)))
        if block == bytes(_BLOCK):
            return
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        offset += _BLOCK
        if member.type in _PAX or member.type in _LONG:
            headers += 1
            if headers > _MOST_HEADERS or not 0 <= member.size <= _LONGEST_HEADER:
                raise XciteError(
                    f"{path}: {headers} headers of up to {member.size} bytes before one member are "
                    "more than any archiver writes; make the archive anew"
                )
            body = file.read(member.size)
            offset += _blocks(member.size)
            if member.type == tarfile.XGLTYPE:
                everywhere |= _pax(body)
            elif member.type in _PAX:
                own |= _pax(body)
            elif member.type == tarfile.GNUTYPE_LONGNAME:
                own["path"] = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            else:
                own["linkpath"] = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            continue
        said = everywhere | own
        own, headers = {}, 0
        name, size = said.get("path", member.name).rstrip("/"), int(said.get("size", member.size))
        sparse = member.type == tarfile.GNUTYPE_SPARSE
        more: object = sparse and block[482]
        while more and offset < end:  # the map of a sparse file goes on
            file.seek(offset)
            more = file.read(_BLOCK)[504:505].strip(b"\0")
            offset += _BLOCK
        if not member.isreg() and member.type in tarfile.SUPPORTED_TYPES:
            # folders, links and devices have no data
            if member.type == tarfile.LNKTYPE and len(links) < _MOST_LINKS:
                links[name] = said.get("linkpath", member.linkname).rstrip("/")
            elif member.type != tarfile.DIRTYPE:
                left_out(_KINDS.get(member.type, "devices"), name)
            continue
        if size < 0 or offset + size > end:
            raise XciteError(f"{path}: cut short within {name!r}")
        if member.isreg() and not sparse and not any(k.startswith("GNU.sparse") for k in said):
            yield name, offset, size
        else:
            left_out("sparse files", name)
        offset += _blocks(size)
    raise XciteError(f"{path}: cut short, the empty block that ends a tar is missing")


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pax(body: bytes) -> dict[str, str]:
    """The records that say where data lie; the others are left out."""
    said, position = {}, 0
    while record := _RECORD.match(body, position):
        length, key = int(record[1]), record[2]
        if not length:
            raise tarfile.HeaderError("a record of length 0")
        if key in (b"path", b"size", b"linkpath") or key.startswith(b"GNU.sparse"):
            value = body[record.end() : position + length - 1]
            said[key.decode("ascii", "replace")] = value.decode("utf-8", "surrogateescape")
        position += length
    return said
