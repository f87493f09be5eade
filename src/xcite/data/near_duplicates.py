"""Pictures that show nearly the same: copies, other sizes, other compression, frames of a burst.

A picture's print is a difference hash of 256 bits (is each cell of a 16 x 17 grid of greys darker
than its right neighbour?) and 12 mean colours. Turned, mirrored or cropped copies have others.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from xcite.data.decoding import decode
from xcite.data.sources import Source
from xcite.errors import XciteError

BITS = 24  # of 256 that may differ
LEVELS = 16  # of 255 by which each mean colour may differ
_SIDE = 16


def groups(source: Source, *, channels: int = 3) -> np.ndarray:
    """A number for each picture, int64 (n,), the same for near-duplicates of one another.

    Chains count: the first and the last of a burst belong together if each is near the next one.
    A picture that cannot be read is alone. Takes about 7 s of a core for 10,000 photographs of
    300 pixels, most of it for decoding, which is shared among the cores.
    """
    # Pillow decodes without the interpreter's lock, so threads do.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        prints = list(pool.map(lambda index: _print(source, index, channels), range(len(source))))
    number = np.arange(len(source))
    readable = np.array([index for index, found in enumerate(prints) if found is not None], int)
    if len(readable):
        number[readable] = readable[_components([found for found in prints if found is not None])]
    return number


def _print(source: Source, index: int, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The hash as uint64 (4,) and the colours as int16 (12,); None of an unreadable picture."""
    try:
        pixels = decode(
            source.read(index),
            channels=channels,
            origin=source.name(index),
            reduce_to=4 * _SIDE,
        )
    except (XciteError, MemoryError):
        return None
    # Of more channels than a screen shows the first three tell pictures apart as well.
    shown = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    picture = Image.fromarray(np.ascontiguousarray(shown))
    grey = np.asarray(picture.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX))
    bits = np.packbits(grey[:, :-1] < grey[:, 1:])
    colours = np.asarray(picture.resize((2, 2), Image.Resampling.BOX), np.int16)
    return bits.view(np.uint64), colours.ravel()


def _components(prints: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each print the first of those that it is connected with, int64 (n,)."""
    bits = np.stack([print_[0] for print_ in prints])
    colours = np.stack([print_[1] for print_ in prints])
    # Equal prints first: where pictures are all alike, each of them would have to find all others.
    both = np.concatenate([bits.view(np.int16), colours], axis=1)
    _, first, which = np.unique(both, axis=0, return_index=True, return_inverse=True)
    bits, colours = bits[first], colours[first]
    leader = np.full(len(first), -1)
    open_ = np.arange(len(first))
    while len(open_):
        start, open_ = open_[0], open_[1:]
        leader[start] = start
        reached = [start]
        while reached and len(open_):
            here = reached.pop()
            apart = np.bitwise_count(bits[open_] ^ bits[here]).sum(axis=1, dtype=np.int64)
            near = apart <= BITS
            near[near] = np.all(abs(colours[open_[near]] - colours[here]) <= LEVELS, axis=1)
            leader[open_[near]] = start
            reached += open_[near].tolist()
            open_ = open_[~near]
    return first[leader[which.ravel()]]
