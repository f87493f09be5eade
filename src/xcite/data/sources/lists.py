"""Lists of pictures: text files of paths and labels."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xcite.data.decoding import SUFFIXES
from xcite.data.sources.class_names import (
    LARGEST_LABEL,
    are_numbers,
    are_wnids,
    class_order,
    named_numbers,
)
from xcite.data.sources.index import indexed
from xcite.data.sources.listing import Listed, Listing
from xcite.data.sources.source import Names, evenly, read_file, state
from xcite.data.sources.table import Table, read_table
from xcite.errors import XciteError

_FEW = 8  # files of a folder that are asked for one by one
_ASKED = 20  # of those that a folder's listing does not have
_FOLDERS = ("images", "image", "imgs", "img", "jpg", "pictures", "photos", "train", "val", "data")
_ENDINGS = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))  # ImageNet's are .JPEG
_KAGGLE = "ILSVRC/Data/CLS-LOC/val"
_TRIED = 8  # listed paths, to find out where paths start
_POINT_ZERO = re.compile(r"\d+\.0+", re.ASCII)
_BELOW_ZERO = re.compile(r"-\d+", re.ASCII)
_COMPARED = 2_000  # listed pictures whose folder is compared with their label


class ListFile(Listed):
    """Paths and labels as PaddleClas writes them, or a CSV; in the order of the list.

    Attributes:
        guessed: labels are whole numbers that were taken as places in the ``classes`` given, and
            neither folders in the paths nor ImageNet's usual order say that this is right.
        missing: how many of the files are not there, with an example in ``found``.
    """

    def __init__(
        self,
        path: Path,
        root: Path | None,
        classes: list[str] | None,
        outside_root: bool = False,
        columns: Sequence[str] = (),
        split: str = "train",
    ) -> None:
        start = os.path.abspath(root or path.parent)
        place = os.path.abspath(path)
        options = [start, root is None, outside_root, list(columns), split]
        listing = indexed(
            "list",
            place,
            options,
            lambda: _listed(path, start, root is None, outside_root, columns, split),
        )
        self._root = listing.options["root"]
        self.missing = int(listing.options["missing"])
        labels, more = listing.labels, list[str]()
        placed = False
        if are_numbers(listing.classes):
            values = np.array([int(name) for name in listing.classes], np.int64)
            numbers = values[listing.labels]
            labels, listing.classes, more = named_numbers(numbers, classes, str(path))
            placed = bool(classes) and not are_numbers(listing.classes)
        listing.labels = labels
        listing.notes = [*listing.notes, *more]
        super().__init__(listing, classes, str(path))
        self.guessed = placed and not self._agrees_with_folders(path)

    def read(self, index: int) -> bytes:
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])

    def _agrees_with_folders(self, path: Path) -> bool:
        """Whether the folders of the pictures, or WordNet ids in their order, confirm the numbers.

        Raises:
            XciteError: the numbers mean other classes than the folders.
        """
        known = set(self.class_names)
        agree = differ = 0
        example = ""
        for index in evenly(len(self), _COMPARED):
            folders = known.intersection(self._names[index].split("/")[:-1])
            if len(folders) != 1:
                continue
            label = self.class_names[int(self.labels[index])]
            if label in folders:
                agree += 1
            else:
                differ += 1
                example = example or f"{self._names[index]!r} is {label!r} by its number"
        if differ > agree:
            raise XciteError(
                f"{path}: its numbers count the classes in another order than "
                f"{', '.join(self.class_names[:3])}, ...: {example}; write the names as labels"
            )
        if differ:
            self.found.warnings.append(f"labels and folders differ {differ} times: {example}")
        return agree > 0 or are_wnids(self.class_names)


def _listed(
    path: Path, root: str, own_root: bool, outside_root: bool, columns: Sequence[str], split: str
) -> Listing:
    table = read_table(path, columns, lambda name: os.path.exists(os.path.join(root, name)))
    parts = table.keep(split)
    _with_slashes(table, root)
    labels, classes = _labels(path, table)
    outside = 0
    for name, line in zip(table.paths, table.lines, strict=True):
        leaves = _leaves(name, root)
        if leaves and not outside_root and not (own_root and os.path.isabs(name)):
            raise XciteError(
                f"{path} line {line}: {name!r} lies outside {root}; set data.root to "
                "a folder that holds all pictures, or data.outside_root to true"
            )
        outside += leaves
    if outside:
        table.notes.append(f"{outside} of {len(table.paths)} pictures of {path} lie outside {root}")
    root = _root(table, root, own_root)
    lost, folders = _find(table, root)
    if lost == len(table.paths):
        first = table.paths[0][:200]
        remedy = "set data.root to where paths start"
        if "://" in first:
            remedy = "these are addresses, and nothing is fetched: write paths of files"
        raise XciteError(
            f"{path}: no file {_at(root, first)} ({lost} of {lost} are missing); {remedy}"
        )
    listing = Listing(
        Names(table.paths), labels, classes, np.empty((len(labels), 0), np.int64), notes=table.notes
    )
    if lost:
        example = next(name for name in table.paths if not os.path.exists(_at(root, name)))
        line = table.lines[table.paths.index(example)]
        listing.found.leave_out("listed files that are missing", example, lost)
        listing.found.warnings.append(
            f"{lost} of {len(table.paths)} listed files are missing, the first in line {line}: "
            f"{_at(root, example)}"
        )
    _note_repeated(listing, table)
    listing.parts = parts
    listing.options = {"root": root, "missing": str(lost)}
    listing.watched = {place: state(place) for place in folders if os.path.isdir(place)}
    listing.watched[os.path.abspath(path)] = state(str(path))
    return listing


def _labels(path: Path, table: Table) -> tuple[np.ndarray, list[str]]:
    """int64 (n,) into the class names; whole numbers without leading zeros are names, too."""
    if all(_POINT_ZERO.fullmatch(label) for label in table.labels):  # as spreadsheets save them
        table.notes.append(f"{path}: labels such as {table.labels[0]} are read as whole numbers")
        table.labels = [label.partition(".")[0] for label in table.labels]
    numbered = table.labels[0].isascii() and table.labels[0].isdecimal()
    for label, line in zip(table.labels, table.lines, strict=True):
        if (label.isascii() and label.isdecimal()) != numbered:
            first = f"{table.labels[0]!r} in line {table.lines[0]}"
            if below := [one for one in (label, table.labels[0]) if _BELOW_ZERO.fullmatch(one)]:
                raise XciteError(
                    f"{path} line {line}: the label {below[0]} is below 0; leave such lines out, "
                    "or write names as labels"
                )
            raise XciteError(
                f"{path} line {line}: the label {label[:80]!r} beside {first}: all must be whole "
                "numbers, or all names"
            )
        if numbered and (len(label) > 19 or int(label) > LARGEST_LABEL):
            raise XciteError(f"{path} line {line}: the label {label[:80]} is beyond all measure")
    labels = [str(int(label)) for label in table.labels] if numbered else table.labels
    classes = class_order(labels)
    position = {name: label for label, name in enumerate(classes)}
    return np.array([position[label] for label in labels], np.int64), classes


def _with_slashes(table: Table, root: str) -> None:
    r"""Turn the backslashes of a list from Windows, if its paths lead to files only then."""
    first = next((name for name in table.paths if "\\" in name), None)
    if first is None or os.sep == "\\" or os.path.lexists(_at(root, first)):
        return
    table.paths = [name.replace("\\", "/") for name in table.paths]
    table.notes.append(f"backslashes are read as slashes: {first.replace(chr(92), '/')}")


def _root(table: Table, root: str, own_root: bool) -> str:
    """Where paths start: ``root``, or one of the usual folders in it where some are found."""
    tried = [table.paths[index] for index in evenly(len(table.paths), _TRIED)]
    endings = ["", *_ENDINGS] if table.stems else [""]
    folders = [*_FOLDERS, _KAGGLE] if own_root else [_KAGGLE]
    for place in [root, *(os.path.join(root, folder) for folder in folders)]:
        if any(os.path.exists(_at(place, name + ending)) for name in tried for ending in endings):
            if place != root:
                table.notes.append(f"listed paths start in {place}")
            return place
    return root


def _find(table: Table, root: str) -> tuple[int, set[str]]:
    """How many listed files are missing, and the folders that were looked into.

    A folder of many is listed once, instead of asking for each file. Ids without an ending get that
    of their file.
    """
    inside: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(table.paths):
        inside[os.path.dirname(name)].append(index)
    lost = 0
    for folder, indices in inside.items():
        names = _names_in(_at(root, folder)) if len(indices) > _FEW or table.stems else set()
        asked = there = 0
        for index in indices:
            file = os.path.basename(table.paths[index])
            if file in names:
                continue
            if table.stems and (ending := next((s for s in _ENDINGS if file + s in names), "")):
                table.paths[index] += ending
                continue
            # Some file systems find files under names that differ in case: a few are asked for.
            if asked < _ASKED or there:
                asked += 1
                found = os.path.exists(_at(root, table.paths[index]))
                there += found
                lost += not found
            else:
                lost += 1
    return lost, {_at(root, folder) for folder in inside}


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _note_repeated(listing: Listing, table: Table) -> None:
    if len(set(table.paths)) == len(table.paths):
        return
    times = Counter(table.paths)
    labelled = Counter(set(zip(table.paths, table.labels, strict=True)))
    repeated = [name for name, count in times.items() if count > 1]
    what = f"{len(repeated)} pictures are listed more than once, such as {repeated[0]}"
    per_path = Counter(name for name, _ in labelled)
    if torn := next((name for name in repeated if per_path[name] > 1), None):
        what += f"; {torn} even with different labels"
    listing.found.warnings.append(what)


def _at(root: str, name: str) -> str:
    return os.path.join(root, name)


def _leaves(name: str, root: str) -> bool:
    """Whether a listed path leads out of ``root``, by its spelling alone."""
    if ".." not in name and not os.path.isabs(name):
        return False
    place = os.path.normpath(os.path.join(root, name))
    return not place.startswith(root.rstrip("/\\") + os.sep)
