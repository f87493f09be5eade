"""Checksums of the tensors in Xcite's own files: they tell damage, not an attacker.

A checksum is exact for what storage and transport do. A change inside one 64-bit word, which every
single flipped bit is, always shows, and so do lost, moved and exchanged pages. The sums run at the
speed of memory, where SHA-256 over everything would double the time of opening a file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xcite.errors import XciteError

KEY = "checksums"
"""The metadata text that holds them; files without it open unverified."""

PAGE = 512  # 64-bit words, 4 KiB


def checksum(array: np.ndarray, dtype: str | None = None) -> str:
    """16 hexadecimal digits of SHA-256 over type, shape and the sum of every 4 KiB of the numbers.

    Each page is summed as little-endian 64-bit words, modulo 2^64; what is left after the last
    whole page goes in as it is.

    Args:
        array: C-ordered.
        dtype: the stored type where NumPy has none for it, such as "bfloat16".
    """
    numbers = array.reshape(-1).view(np.uint8)
    whole = len(numbers) // (8 * PAGE) * (8 * PAGE)
    digest = hashlib.sha256(f"{dtype or array.dtype.name} {list(array.shape)}".encode())
    if whole:
        words = numbers[:whole].view("<u8").reshape(-1, PAGE)
        digest.update(np.add.reduce(words, axis=1).astype("<u8", copy=False).data)
    digest.update(numbers[whole:].data)
    return digest.hexdigest()[:16]


def with_checksums(texts: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """``texts`` and, under `KEY`, the checksums of them and of every tensor (C-ordered)."""
    sums = {
        "texts": _of_texts(texts),
        "tensors": {name: checksum(array) for name, array in tensors.items()},
    }
    return {**texts, KEY: json.dumps(sums)}


def take_checksums(path: Path, texts: dict[str, str]) -> dict[str, str] | None:
    """Take the checksums out of a file's ``texts``: tensor name to checksum; None without any.

    Raises:
        XciteError: they cannot be read, or the other texts differ from theirs.
    """
    if KEY not in texts:
        return None
    try:
        sums = json.loads(texts.pop(KEY))
        tensors: dict[str, str] = dict(sums["tensors"])
        if sums["texts"] != _of_texts(texts):
            raise ValueError("its texts differ from their checksum")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise XciteError(f"{path} is damaged ({error}); {REMEDY}") from error
    return tensors


def verify(path: Path, name: str, array: np.ndarray, dtype: str, sums: Mapping[str, str]) -> None:
    """Compare what was read of a tensor with its checksum.

    Raises:
        XciteError: they differ, or there is none for it.
    """
    if sums.get(name) != checksum(array, dtype):
        raise XciteError(f"{path} is damaged ({name!a} differs from its checksum); {REMEDY}")


REMEDY = "take a copy of it, or write it again"


def _of_texts(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
