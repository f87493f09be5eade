"""Compressed tars, unpacked once into the user's cache: they cannot be read at any place."""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import shutil
import zlib
from pathlib import Path
from typing import IO, Any

from xcite.data.sources.source import state
from xcite.errors import XciteError
from xcite.regular_files import open_regular
from xcite.user_cache import user_cache
from xcite.whole_files import whole_file

_OPEN: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_CHUNK = 1 << 20
_MOST_TIMES = 20  # larger than packed; encoded pictures hardly shrink
_ALWAYS = 64 << 20  # bytes that may come of any file
_LEFT_FREE = 1 << 30  # bytes
_MEMORY = 1 << 28  # bytes, of an xz dictionary


def unpacked_tar(path: Path) -> Path:
    """The uncompressed tar in the cache, made now if it is not there; older copies of it go.

    Raises:
        XciteError: no known compression, damaged, a bomb, or no room for it.
    """
    advice = "unpack it and give the folder"
    folder = user_cache("unpacked")
    if folder is None:
        raise XciteError(f"{path}: compressed, and there is no home folder for a cache; {advice}")
    key = _hash(str(path.absolute()))
    target = folder / f"{key}-{_hash(str(state(str(path))))}.tar"
    if target.is_file():
        return target
    try:
        with open_regular(path) as packed:
            start = packed.read(6)
            opener = next((o for magic, o in _OPEN.items() if start.startswith(magic)), None)
            if opener is None:
                raise XciteError(f"{path}: in a compression that is not read here; {advice}")
            packed.seek(0)
            if opener is lzma.open:  # which takes as much memory as the file asks for
                lzma.LZMADecompressor(memlimit=_MEMORY).decompress(packed.read(1 << 16), 1)
                packed.seek(0)
            most = max(_ALWAYS, _MOST_TIMES * os.fstat(packed.fileno()).st_size)
            with whole_file(target) as half, opener(packed) as data, half.open("wb") as file:
                _copy(data, file, most, path, advice)
    except (OSError, lzma.LZMAError) as error:
        raise XciteError(f"{path}: cannot be unpacked ({error}); {advice}") from error
    for outdated in folder.glob(f"{key}-*.tar"):
        if outdated != target:
            outdated.unlink(missing_ok=True)
    return target


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def _copy(data: IO[bytes], file: IO[bytes], most: int, path: Path, advice: str) -> None:
    written = 0
    while chunk := _read(data, path):
        written += len(chunk)
        if written > most:
            raise XciteError(
                f"{path}: unpacks to more than {most >> 20} MiB, which no pictures do; {advice} "
                "if you trust it"
            )
        with contextlib.suppress(OSError):
            if shutil.disk_usage(os.path.dirname(file.name)).free < _LEFT_FREE:
                raise XciteError(
                    f"{path}: unpacking it needs more room in {os.path.dirname(file.name)}; set "
                    f"XDG_CACHE_HOME to a larger disk, or {advice}"
                )
        file.write(chunk)


def _read(data: IO[bytes], path: Path) -> bytes:
    try:
        return data.read(_CHUNK)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise XciteError(f"{path}: damaged or cut short ({error}); fetch it again") from error
