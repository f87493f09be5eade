"""What tells whether the pictures that a run goes on with are those that it began with.

Hashes in history.jsonl say that something differs, and pictures.gz says which pictures: a row each
of label, size of the file ("-" within an archive) and name, divided by tabs and ended by a NUL.
"""

import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcite.control_characters import visible
from xcite.data.sources import Source, common_folder, evenly
from xcite.errors import XciteError
from xcite.whole_files import whole_file

SAMPLE = 32  # pictures whose content goes into the facts

# What a difference in each fact means to people; the times alone may differ, as copies have others.
FACTS = {
    "listing": "names or labels",
    "sizes": "sizes of the files",
    "contents": "contents of the pictures",
}


@dataclass(frozen=True)
class Survey:
    """What was found out about a source's pictures.

    Attributes:
        facts: hashes: "listing" of names, labels and classes; "sizes" and "times" of every file;
            "contents" of `SAMPLE` pictures at even distances.
        sizes: bytes of every file, -1 where one is missing; int64 (files,).
    """

    facts: dict[str, str]
    sizes: np.ndarray


def survey(source: Source) -> Survey:
    """Look at every file of a source; few are read."""
    sizes, times, contents = [], hashlib.sha256(), hashlib.sha256()
    for path in source.files():
        try:
            stat = os.stat(path)
        except OSError:  # reading the picture will say so
            sizes.append(-1)
            continue
        sizes.append(stat.st_size)
        times.update(b"%d " % stat.st_mtime_ns)
    for index in evenly(len(source), SAMPLE):
        try:
            picture = source.read(index)
        except XciteError:
            continue
        contents.update(picture if isinstance(picture, bytes) else picture.tobytes())
    told = b"".join(b"- " if size < 0 else b"%d " % size for size in sizes)
    facts = {
        "listing": source.fingerprint(),
        "sizes": hashlib.sha256(told).hexdigest(),
        "times": times.hexdigest(),
        "contents": contents.hexdigest(),
    }
    return Survey(facts, np.array(sizes, np.int64))


def differing_facts(before: dict[str, Any], now: dict[str, str]) -> list[str]:
    """In words, what is no longer the same about the pictures."""
    return [text for key, text in FACTS.items() if key in before and before[key] != now[key]]


def write(path: Path, source: Source, sizes: np.ndarray) -> None:
    """Note names, labels and sizes of a source's pictures.

    Raises:
        XciteError: the file cannot be written.
    """
    with whole_file(path) as aside, gzip.GzipFile(aside, "wb", compresslevel=1, mtime=0) as file:
        rows = (b"%s\t%s\0" % (kind, name) for name, kind in _pictures(source, sizes))
        while part := b"".join(itertools.islice(rows, 1 << 14)):
            file.write(part)


def difference(path: Path, source: Source, sizes: np.ndarray) -> str:
    """In words, which pictures differ from those noted in ``path``; "" where that is not known."""
    try:
        rows = gzip.decompress(path.read_bytes()).split(b"\0")[:-1]
    except (OSError, EOFError, zlib.error):
        return ""
    parts = [row.split(b"\t", 2) for row in rows]
    before = {part[2]: b"\t".join(part[:2]) for part in parts if len(part) == 3}
    if not before:
        return ""
    now = dict(_pictures(source, sizes))
    kinds = {
        "gone": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name in now if before.get(name, now[name]) != now[name]],
    }
    return ", ".join(
        f"{len(names)} {word} ({visible(os.fsdecode(names[0]))}{', ...' if len(names) > 1 else ''})"
        for word, names in kinds.items()
        if names
    )


def _pictures(source: Source, sizes: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Name, and label with size; names begin where they differ, so a moved folder has the same."""
    start = len(common_folder(source))
    own = len(sizes) == len(source)  # else files are archives of many pictures
    for index, label in enumerate(source.labels.tolist()):
        size = b"%d" % sizes[index] if own else b"-"
        yield os.fsencode(source.name(index)[start:]), b"%d\t%s" % (label, size)
