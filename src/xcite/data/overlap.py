"""Pictures that two sources share, or one holds twice, told by their bytes."""

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from xcite.data.sources import Source, evenly
from xcite.errors import XciteError
from xcite.regular_files import read_regular

MOST = 1_000  # pictures of the second source that are compared
MANY = 100_000  # pictures; to ask for the sizes of more takes seconds
MOST_BYTES = 128 * 2**20  # of archives, whose pictures' sizes are known only when they are read
_BEGINNING = 1 << 14  # bytes compared of files of the same size


def shared_pictures(one: Source, other: Source) -> list[tuple[int, int]]:
    """Pairs (index in ``one``, index in ``other``) of pictures with the same bytes.

    Only pictures whose sizes occur on both sides are opened: `MOST` of ``other``, at even distances
    where there are more, and four times as many of ``one``. Archives larger than `MOST_BYTES` are
    not compared. So of very many pictures the list may be incomplete.
    """
    sizes, others = _sizes(one), _sizes(other)
    if sizes is None or others is None:
        return []
    wanted = np.flatnonzero(np.isin(others, sizes))
    if len(wanted) > MOST:
        wanted = wanted[evenly(len(wanted), MOST)]
    candidates = np.flatnonzero(np.isin(sizes, others[wanted]))[: 4 * MOST]
    place = _hashes(one, candidates)
    found = _hashes(other, wanted)
    return sorted((place[digest], index) for digest, index in found.items() if digest in place)


def copies(source: Source) -> list[tuple[int, int]]:
    """Pairs (first, copy) of indices of pictures with the same bytes.

    Only pictures of the same size are opened, the first four times `MOST`; of more than `MANY`
    pictures nothing is asked, nor of archives with more than are opened.
    """
    if len(source) > (MANY if _is_one_file_each(source) else 4 * MOST):
        return []
    sizes = _sizes(source)
    if sizes is None:
        return []
    _, which, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[which] > 1)[: 4 * MOST]
    first: dict[bytes, int] = {}
    alike = ((first.setdefault(digest, i), i) for digest, i in _hashed(source, candidates))
    return [(i, j) for i, j in alike if i != j and _bytes(source, i) == _bytes(source, j)]


def _is_one_file_each(source: Source) -> bool:
    return len(list(source.files())) == len(source)


def _sizes(source: Source) -> np.ndarray | None:
    """Bytes of each picture, int64 (n,); None where that would take too much reading."""
    paths = list(source.files())
    try:
        stored = [os.stat(path).st_size for path in paths]
    except OSError:  # reading the picture will say so
        return None
    if len(paths) == len(source):
        return np.array(stored, np.int64)
    if sum(stored) > MOST_BYTES:
        return None
    return np.array([len(_bytes(source, index)) for index in range(len(source))], np.int64)


def _hashes(source: Source, indices: np.ndarray) -> dict[bytes, int]:
    """Hash of size and beginning to the first picture that has it."""
    found: dict[bytes, int] = {}
    for digest, index in _hashed(source, indices):
        found.setdefault(digest, index)
    return found


def _hashed(source: Source, indices: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """Hash of size and beginning, and index, of each picture that can be read."""
    paths = list(source.files())
    single = len(paths) == len(source)
    for index in indices.tolist():
        if single:
            size, data = _beginning(paths[index])
        else:
            data = _bytes(source, index)
            size = len(data)
        if data:
            yield hashlib.sha256(b"%d " % size + data[:_BEGINNING]).digest(), index


def _beginning(path: str) -> tuple[int, bytes]:
    try:
        return os.stat(path).st_size, read_regular(path, size=_BEGINNING)
    except (OSError, XciteError):
        return 0, b""


def _bytes(source: Source, index: int) -> bytes:
    try:
        data = source.read(index)
    except XciteError:
        return b""
    return data if isinstance(data, bytes) else data.tobytes()
