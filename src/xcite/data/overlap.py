"""Pictures that two sources share, told by their bytes."""

import hashlib
import os

import numpy as np

from xcite.data.sources import Source
from xcite.errors import XciteError

MOST_BYTES = 512 * 2**20  # read and hashed at most, about a second's work


def shared_pictures(one: Source, other: Source) -> list[tuple[int, int]]:
    """Pairs (index in ``one``, index in ``other``) of pictures with the same bytes.

    Only pictures whose sizes occur on both sides are read, `MOST_BYTES` on each side at most, so of
    very many the list may be incomplete.
    """
    sizes, others = _sizes(one), _sizes(other)
    if sizes is None or others is None:
        return []
    place = _hashes(one, sizes, np.isin(sizes, others))
    found = _hashes(other, others, np.isin(others, sizes))
    return sorted((place[digest], index) for digest, index in found.items() if digest in place)


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


def _hashes(source: Source, sizes: np.ndarray, wanted: np.ndarray) -> dict[bytes, int]:
    """Hash to the first picture that has it, of as many as `MOST_BYTES` allow."""
    indices = np.flatnonzero(wanted)
    indices = indices[np.cumsum(sizes[indices]) <= MOST_BYTES]
    found: dict[bytes, int] = {}
    for index in indices.tolist():
        data = _bytes(source, index)
        if data:
            found.setdefault(hashlib.sha256(data).digest(), index)
    return found


def _bytes(source: Source, index: int) -> bytes:
    try:
        data = source.read(index)
    except XciteError:
        return b""
    return data if isinstance(data, bytes) else data.tobytes()
