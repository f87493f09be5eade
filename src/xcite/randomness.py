"""Randomness as a pure function of where it is used, so runs repeat, resume and can be cached."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *coordinates: int) -> np.random.Generator:
    """A fresh generator for one place: the same arguments always give the same numbers.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for ("augmentation", "mixing", "drop path", ...).
        coordinates: where they are used, for example ``(epoch, index, repeat)``.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *coordinates])


def drop_path_scales(
    seed: int, epoch: int, views: np.ndarray, depth: int, rate: float
) -> np.ndarray | None:
    """What each residual branch is multiplied with: 0 (dropped) or 1 / (1 - rate) (kept).

    Args:
        views: (B, 2) integers, the index of the picture and the number of its repetition.
        depth: number of XCA blocks; each has three residual branches (XCA, LPI, MLP).
        rate: probability of dropping a branch; constant over depth, as in the reference.

    Returns:
        float32 (depth, 3, B), or None when nothing is ever dropped.
    """
    if rate == 0.0:
        return None
    draws = [
        generator(seed, "drop path", epoch, int(index), int(repeat)).random((depth, 3))
        for index, repeat in views
    ]
    kept = np.stack(draws, axis=-1) >= rate
    return (kept / (1.0 - rate)).astype(np.float32)
