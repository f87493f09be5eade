"""A weights file packed with gzip, or alone in a zip archive: unpacked within limits, aside."""

import gzip
import os
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xcite.weights.pickle_globals import PickleError

# Trained numbers hardly shrink. So much more than there was is a bomb, not a model.
_GROWTH = 20
_ALLOWANCE = 256 * 2**20  # bytes; nets of zeros that somebody tries things with
_CHUNK = 1 << 20
_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors", ".pdparams", ".pd")


@dataclass
class Unpacked:
    """A temporary copy; it vanishes with this object."""

    path: Path
    size: int

    def __del__(self) -> None:
        self.path.unlink(missing_ok=True)


def is_gzip(start: bytes) -> bool:
    """Whether a file with this beginning is compressed with gzip."""
    return start.startswith(b"\x1f\x8b\x08")


def unpacked_gzip(path: Path) -> Unpacked:
    """What a gzip file holds.

    Raises:
        PickleError: damaged, or it would grow as no weights do.
    """
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as stream:
        return _copied(stream, path)


def unpacked_zip(path: Path) -> Unpacked | None:
    """The weights file of a zip archive that holds nothing else, whose directory was checked.

    Raises:
        PickleError: damaged, or it would grow as no weights do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not _is_litter(m.filename)]
            if len(members) != 1 or not members[0].filename.lower().endswith(_WEIGHTS):
                return None
            with archive.open(members[0]) as stream:
                return _copied(stream, path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error, ValueError) as e:
        raise PickleError(f"the zip archive is damaged or encrypted: {e}") from e


def _is_litter(name: str) -> bool:
    """Folders, and what macOS adds."""
    return name.endswith(("/", ".DS_Store")) or name.startswith("__MACOSX/")


def _copied(stream: IO[bytes] | gzip.GzipFile, path: Path) -> Unpacked:
    most = _GROWTH * path.stat().st_size + _ALLOWANCE
    handle, name = tempfile.mkstemp(prefix="xcite-unpacked-")
    copy = Unpacked(Path(name), 0)  # gone again with this object, whatever happens here
    with os.fdopen(handle, "wb") as file:
        try:
            while chunk := stream.read(_CHUNK):
                copy.size += len(chunk)
                if copy.size > most:
                    raise PickleError(f"unpacked it has more than {most} bytes, as no weights do")
                file.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PickleError(f"its compressed data are damaged: {error}") from error
    return copy
