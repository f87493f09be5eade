"""Names of classes: their order, files of them, and numbers that stand for them."""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from xcite.data.sources.source import State, state
from xcite.data.sources.text import read_text
from xcite.errors import XciteError
from xcite.regular_files import read_regular

LARGEST_LABEL = 1_000_000  # a typing error must not allocate a million class names
_LARGEST_FILE = 16 << 20  # bytes of a JSON file of class names
_FILES = (
    *("_info.json", "dataset_info.json", "classes.json", "class_names.json"),
    *("classes.txt", "class_names.txt", "labels.txt", "LOC_synset_mapping.txt"),
)
_IMAGENET = 1000  # classes
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
_WNID = re.compile(r"n\d{8}")


def class_order(names: Iterable[str]) -> list[str]:
    """Each name once, sorted as text; by value where all are numbers."""
    unique = set(names)
    if are_numbers(unique):
        return sorted(unique, key=lambda name: (int(name), name))
    if all(_NUMBER.fullmatch(name) for name in unique):
        return sorted(unique, key=lambda name: (Decimal(name), name))
    return sorted(unique)


def are_numbers(names: Collection[str]) -> bool:
    """Whether all names are whole numbers."""
    return all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names)


def are_wnids(names: Collection[str]) -> bool:
    """Whether all names are WordNet's, as ImageNet's folders have them."""
    return all(_WNID.fullmatch(name) for name in names)


def read_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a text file, one a line, in label order.

    Lines may begin with the label, as in PaddleClas' label maps ("0 cat"), or with a WordNet id, as
    in ImageNet's LOC_synset_mapping.txt; then the id is the name.

    Raises:
        XciteError: unreadable, empty, or a label map with a label missing or twice.
    """
    text, _ = read_text(Path(path).expanduser())
    names = [line.strip() for line in text.split("\n")]
    names = [name for name in names if name]
    if not names:
        raise XciteError(f"{path}: no class names in it")
    pairs = [re.split(r"[\s,:]+", name, maxsplit=1) for name in names]
    if any(len(pair) < 2 or not pair[1] for pair in pairs):
        return names
    keys = [pair[0] for pair in pairs]
    if are_wnids(keys):
        return keys
    if not are_numbers(keys) or len(keys) < 2:
        return names
    numbers = [int(key) for key in keys]
    first = min(numbers)
    if sorted(numbers) != list(range(first, first + len(numbers))) or first > 1:
        return names  # numbers that are part of the names
    said = [pair[1] for _, pair in sorted(zip(numbers, pairs, strict=True))]
    twice = {name for name, times in Counter(said).items() if times > 1}  # ImageNet: crane, maillot
    return [
        f"{name} ({number})" if name in twice else name for number, name in enumerate(said, first)
    ]


def named_numbers(
    numbers: np.ndarray, names: Sequence[str] | None, where: str
) -> tuple[np.ndarray, list[str], list[str]]:
    """What whole-number labels stand for.

    Args:
        numbers: int64 (n,), from 0.
        names: the classes in the order of their labels, if they are known. Where these are whole
            numbers themselves, each label is its own name; else it is a place in the list, counted
            from 0, or from 1 where no label is 0 and the last one needs it.

    Returns:
        int64 (n,) labels from 0, the class names, and notes for people.

    Raises:
        XciteError: more labels than names, or labels that may follow the order of ImageNet's
            development kit, which is not that of the sorted WordNet ids.
    """
    if not len(numbers):
        return numbers, list(names or ()), []
    low, high = int(numbers.min()), int(numbers.max())
    if names is None:
        present = np.unique(numbers)
        if low == 0 and len(present) == high + 1:
            return numbers, [str(number) for number in range(high + 1)], []
        note = (
            f"{where}: the labels {low} to {high} are {len(present)} different ones, "
            "taken as classes in this order, named by their numbers"
        )
        return np.searchsorted(present, numbers), [str(number) for number in present], [note]
    if are_numbers(names):
        values = [int(name) for name in names]
        order = {value: label for label, value in enumerate(values)}
        unknown = [number for number in np.unique(numbers).tolist() if number not in order]
        if unknown:
            raise XciteError(
                f"{where}: class '{unknown[0]}' is not among the {len(names)} expected ones "
                f"({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            )
        place = np.array([order.get(number, 0) for number in range(high + 1)], np.int64)
        return place[numbers], list(names), []
    if high < len(names):
        return numbers, list(names), []
    if low == 1 and high == len(names):
        if are_wnids(names) or high == _IMAGENET:
            raise XciteError(
                f"{where}: labels 1 to {high} of ImageNet: in the order of the development kit "
                "(ILSVRC2012_ID), or of the sorted WordNet ids? Write the ids, or labels from 0"
            )
        note = f"{where}: labels count from 1; 1 is {names[0]!r}, {high} is {names[-1]!r}"
        return numbers - 1, list(names), [note]
    raise XciteError(f"{where}: label {high}, but there are {len(names)} classes")


def names_in_json(path: Path) -> list[str] | None:
    """Class names in label order from `_info.json`, `dataset_info.json` or a mapping; None if none.

    Understood are lists under the keys class_names, classes, names and label_names, at any depth,
    and mappings of label to name or of name to label.
    """
    try:
        said = json.loads(read_regular(path, size=_LARGEST_FILE))
    except (OSError, ValueError, RecursionError, XciteError):
        return None
    return names_in(said)


def names_in(said: object, depth: int = 8) -> list[str] | None:
    """Class names in parsed JSON or YAML, see `names_in_json`."""
    if not isinstance(said, dict) or not depth:
        return None
    for key in ("class_names", "names", "classes", "label_names"):
        if (names := _as_names(said.get(key))) is not None:
            return names
    if (names := _as_names(said)) is not None:
        return names
    inside = [value for value in said.values() if isinstance(value, dict | list)][:64]
    inside = [v for value in inside for v in (value[:64] if isinstance(value, list) else [value])]
    return next((names for value in inside if (names := names_in(value, depth - 1))), None)


def _as_names(value: object) -> list[str] | None:
    if isinstance(value, dict):
        if value and all(str(key).isdecimal() for key in value):
            value = {str(key): name for key, name in value.items()}
            if sorted(map(int, value)) != list(range(len(value))):
                return None
            value = [value[key] for key in sorted(value, key=int)]
        elif value and sorted(map(str, value.values())) == sorted(map(str, range(len(value)))):
            value = sorted(value, key=lambda name: int(value[name]))  # type: ignore[index]
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return [str(name) for name in value] if len(set(value)) == len(value) else None
    return None


def names_beside(folder: Path) -> list[str] | None:
    """Class names from a file that data sets have beside their archives; None without one."""
    for path in _named_files(folder):
        names = names_in_json(path) if path.suffix == ".json" else read_class_names(path)
        if names:
            return names
    return None


def files_of_names(folder: Path) -> dict[str, State]:
    """What `names_beside` depends on, to see when its answer may be another."""
    return {str(path): state(str(path)) for path in (folder, *_named_files(folder))}


def _named_files(folder: Path) -> list[Path]:
    places = (folder, folder.parent)
    return [place / name for place in places for name in _FILES if (place / name).is_file()]
