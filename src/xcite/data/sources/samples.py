"""WebDataset's samples: members of one tar whose names are the same up to the first dot."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xcite.data.sources.class_names import (
    LARGEST_LABEL,
    are_numbers,
    class_order,
    files_of_names,
    named_numbers,
    names_beside,
)
from xcite.data.sources.listing import Listing
from xcite.data.sources.source import read_file
from xcite.errors import XciteError

_LONGEST_LABEL = 1024  # bytes of a .cls
_LONGEST_JSON = 1 << 20
_KEYS = ("label", "cls", "class", "class_id", "label_id", "target", "class_name", "category")

Member = tuple[str, int, int, int]
"""Name, number of the archive, offset and size."""


class Samples:
    """Labels that lie beside pictures, gathered while archives are listed."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._labels: dict[tuple[int, str], Member] = {}
        self._json: dict[tuple[int, str], Member] = {}

    def add(self, member: Member) -> bool:
        """Remember what may be a label; False for any other member."""
        if member[0].endswith(".cls"):
            self._labels[_key(member)] = member
        elif member[0].endswith(".json") and "/" in member[0].removeprefix("./"):
            return False  # beside a picture in a class folder it is something else
        elif member[0].endswith(".json"):
            self._json[_key(member)] = member
        else:
            return False
        return True

    def listing(self, pictures: Sequence[Member], beside: Path) -> Listing | None:
        """The pictures by their labels, sorted by class, then name; None if these are none.

        Args:
            beside: the folder in which class names are looked for.

        Raises:
            XciteError: a picture has no label though others have, or one that is none.
        """
        labelled = {
            key: self._labels.get(key) or self._json.get(key) for key in map(_key, pictures)
        }
        if not any(labelled.values()):
            return None
        lost = next((p for p in pictures if labelled[_key(p)] is None), None)
        if lost is not None:
            raise XciteError(
                f"{self._paths[lost[1]]}: {lost[0]!r} has no .cls or .json beside it, "
                "as others have"
            )
        labels = [self._read(member) for key in map(_key, pictures) if (member := labelled[key])]
        names, places = [p[0] for p in pictures], [p[1:] for p in pictures]
        if not are_numbers(set(labels)):
            return Listing.of(names, labels, places, classes=class_order(labels))
        numbers = np.array([min(int(label), LARGEST_LABEL + 1) for label in labels], np.int64)
        if int(numbers.max()) > LARGEST_LABEL:
            raise XciteError(f"{beside}: the label {int(numbers.max())} is beyond all measure")
        placed, classes, notes = named_numbers(numbers, names_beside(beside), str(beside))
        of_class = [classes[label] for label in placed.tolist()]
        listing = Listing.of(names, of_class, places, classes=classes)
        listing.notes, listing.watched = notes, files_of_names(beside)
        return listing

    def _read(self, member: Member) -> str:
        name, number, offset, size = member
        where, is_json = f"{self._paths[number]}:{name}", name.endswith(".json")
        if size > (_LONGEST_JSON if is_json else _LONGEST_LABEL):
            raise XciteError(f"{where}: {size} bytes are no label")
        data = read_file(self._paths[number], offset, size)
        try:
            text = _label_in(data) if is_json else data.decode().strip()
        except (ValueError, RecursionError) as error:
            raise XciteError(f"{where}: no label in it ({error})") from error
        if not text:
            raise XciteError(f"{where}: no label in it; a JSON needs one of {', '.join(_KEYS)}")
        return text


def _label_in(data: bytes) -> str:
    said = json.loads(data)
    values = [said[key] for key in _KEYS if key in said] if isinstance(said, dict) else []
    label = str(values[0]) if values and type(values[0]) in (int, str) else ""
    label.encode()  # ValueError for what is no text
    return label.strip()


def _key(member: Member) -> tuple[int, str]:
    folder, _, file = member[0].rpartition("/")
    return member[1], f"{folder}/{file.partition('.')[0]}"
