"""Listings kept in the user's cache, so that a million pictures need not be listed again.

An index is used only while every folder and archive that it was made of is as it was then.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.listing import Listing
from xcite.data.sources.source import Found, Names, state
from xcite.errors import XciteError
from xcite.regular_files import read_regular
from xcite.user_cache import user_cache
from xcite.whole_files import whole_file

LEAST = 10_000  # pictures; fewer are listed in a moment
_FORMAT = 1
_MOST_WATCHED = 100_000  # folders and archives; asking more for changes takes as long as listing
_KEPT = 32  # indexes in the cache
_SETTLED = 2_000_000_000  # ns; what changed later may change again without another time
_CHECKSUM = hashlib.sha256().digest_size


def indexed(kind: str, place: str, options: list[Any], make: Callable[[], Listing]) -> Listing:
    """The listing of ``place`` out of the cache, or made now, and kept if it is long.

    Args:
        kind, options: what else the listing depends on.
    """
    key = json.dumps([_FORMAT, kind, place, options, SUFFIXES])
    path = _path(key)
    if path is not None and (listing := _kept(path, key)) is not None:
        return listing
    began = time.time_ns()
    listing = make()
    if path is not None and len(listing.names) >= LEAST:
        _keep(path, key, listing, began)
    return listing


def _path(key: str) -> Path | None:
    folder = user_cache("listings")
    return folder and folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.listing"


def _kept(path: Path, key: str) -> Listing | None:
    """The listing in ``path``; None if there is none, or one that is damaged or outdated."""
    try:
        data = memoryview(read_regular(path))
        checksum, body = data[:_CHECKSUM], data[_CHECKSUM:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        arrays = safetensors.numpy.load(bytes(body))
        about = json.loads(arrays["about"].tobytes())
        if about.pop("key") != key:
            return None
        watched = {place: tuple(then) for place, then in about.pop("watched")}
        if any(state(place) != then for place, then in watched.items()):
            return None
        names = Names.of_arrays(arrays["text"], arrays["ends"])
        labels, places = arrays["labels"], arrays["places"]
        found = Found(**about.pop("found"))
        os.utime(path)  # it was of use, see _forget
        return Listing(names, labels, places=places, found=found, watched=watched, **about)
    except (OSError, ValueError, KeyError, TypeError, XciteError, safetensors.SafetensorError):
        return None


def _keep(path: Path, key: str, listing: Listing, began: int) -> None:
    newest = max((then[2] for then in listing.watched.values()), default=began)
    if newest > began - _SETTLED or len(listing.watched) > _MOST_WATCHED:
        return
    about = {
        "key": key,
        "watched": list(listing.watched.items()),
        "classes": listing.classes,
        "files": listing.files,
        "parts": listing.parts,
        "options": listing.options,
        "empty": listing.empty,
        "notes": listing.notes,
        "found": vars(listing.found),
    }
    text, ends = listing.names.arrays()
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "text": text,
        "ends": ends,
        "labels": listing.labels,
        "places": np.ascontiguousarray(listing.places),
    }
    body = safetensors.numpy.save(arrays)
    # Without a place for it everything works, only slower.
    with contextlib.suppress(OSError, XciteError):
        with whole_file(path) as half, half.open("wb") as file:
            file.write(hashlib.sha256(body).digest())
            file.write(body)
        _forget(path.parent)


def _forget(folder: Path) -> None:
    """Remove all but the indexes used last."""
    indexes = sorted(folder.glob("*.listing"), key=lambda path: path.stat().st_mtime)
    for path in indexes[:-_KEPT]:
        path.unlink(missing_ok=True)
