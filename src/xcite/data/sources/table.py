"""Rows of path and label out of a list, however it is written."""

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xcite.data.formats import SUFFIXES, is_picture
from xcite.data.sources.layouts import PARTS
from xcite.data.sources.text import read_text
from xcite.errors import XciteError

PATH_COLUMNS = (
    *("path", "image_path", "img_path", "filepath", "file_path", "filename", "file_name", "file"),
    *("image", "img", "images", "image_name", "img_name", "picture", "photo", "name"),
    *("image_id", "imageid", "id", "image_link"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "category", "category_name", "target"),
    *("species", "breed", "tag", "diagnosis", "class_id", "label_id", "category_id"),
    *("predictionstring", "y"),
)
PART_COLUMNS = ("split", "set", "subset", "partition", "phase")
_SUFFIXED = re.compile(
    rf"(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))[\s,;]+(\S.*)", re.IGNORECASE | re.DOTALL
)
_DELIMITERS = "\t,;|"


@dataclass
class Table:
    """Paths and labels as they are written, with the numbers of their lines.

    Attributes:
        stems: whether a path may lack its ending, as the ids of Kaggle's tables do.
        parts: what a column says of the split that each row belongs to; empty without one.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stems: bool = False
    parts: list[str] = field(default_factory=list)

    def add(self, path: str, label: str, line: int) -> None:
        self.paths.append(path)
        self.labels.append(label)
        self.lines.append(line)

    def keep(self, split: str) -> list[str]:
        """Drop the rows of other splits; names the splits there are, none where all rows are one.

        Args:
            split: "train" or "validation".
        """
        there = set(self.parts)
        words = {part: next((w for w in PARTS[part] if w in there), None) for part in PARTS}
        if None in words.values():
            return []
        kept = [said == words[split] for said in self.parts]
        self.paths = list(itertools.compress(self.paths, kept))
        self.labels = list(itertools.compress(self.labels, kept))
        self.lines = list(itertools.compress(self.lines, kept))
        self.notes.append(f"of its rows, those of {words[split]} are read")
        return list(PARTS)


def read_table(path: Path, columns: Sequence[str], exists: Callable[[str], bool]) -> Table:
    """The rows of a list.

    Args:
        columns: names of the columns of path and label, of a table with a header; if empty they are
            guessed among usual ones.
        exists: whether a listed path is there; tells names from comments and from other encodings.

    Raises:
        XciteError: unreadable, a row without path or label, or columns that are not there.
    """

    def names_a_file(line: str) -> bool:
        return exists(_plain(line)[0])

    def names_bytes(line: str) -> bool:
        return not _plain(line)[0].isascii() and names_a_file(line)

    text, notes = read_text(path, names_bytes)
    lines = [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not (line.startswith("#") and not names_a_file(line))
    ]
    if not lines:
        raise XciteError(f"{path}: no pictures listed")
    first = lines[0][1]
    if first.lstrip()[0] in "[{" and not names_a_file(first):
        raise XciteError(f"{path}: this looks like JSON; write 'path label' lines or a CSV")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip().strip('"').casefold() for name in first.split(delimiter)]
    if columns or _is_header(header) or path.suffix.lower() in (".csv", ".tsv"):
        table = _delimited(path, lines, delimiter, columns)
    else:
        table = _lines(path, lines[1:] if _is_header(first.casefold().split()) else lines)
    table.notes[:0] = notes
    return table


def _is_header(names: Sequence[str]) -> bool:
    return bool(set(names) & set(PATH_COLUMNS)) and bool(set(names) & set(LABEL_COLUMNS))


def _lines(path: Path, lines: Sequence[tuple[int, str]]) -> Table:
    """``path label`` lines; paths may contain spaces."""
    table = Table()
    for number, line in lines:
        name, label = _plain(line)
        if not name or not label:
            raise XciteError(f"{path} line {number}: expected 'path label', got {line[:80]!r}")
        table.add(name, label, number)
    if all(name.isdecimal() for name in table.paths) and all(map(is_picture, table.labels)):
        table.paths, table.labels = table.labels, table.paths
        table.notes.append(f"{path}: the labels stand before the paths")
    return table


def _plain(line: str) -> tuple[str, str]:
    """Path and label of a line; "" for what it lacks."""
    line = line.strip()
    name, _, label = line.rpartition(" ")
    if "\t" in label or not name:
        name, _, label = line.rpartition("\t")
    if name and label.isdecimal():
        return name.strip(), label
    if (found := _SUFFIXED.fullmatch(line)) is not None:  # a name as label, or another separator
        return found[1].strip(), found[2].strip()
    return name.strip(), label


def _delimited(
    path: Path, lines: Sequence[tuple[int, str]], delimiter: str, columns: Sequence[str]
) -> Table:
    """A table with fields that may be quoted, with or without a header."""
    rows = _rows(path, lines, delimiter)
    numbers, first = next(rows)
    table = Table()
    header = [name.strip().casefold() for name in first]
    if columns or _is_header(header):
        place, label = _places(path, first, columns)
        shown = f"{first[place].strip()} and {first[label].strip()}"
        table.notes.append(f"{path}: the columns {shown} are read")
        boxes = header[label] == "predictionstring"  # Kaggle's ImageNet: "n01440764 1 2 3 4"
        table.stems = True
        part = next((header.index(name) for name in PART_COLUMNS if name in header), None)
    else:
        part = None
        place, label = _places_without_header(path, first)
        boxes = False
        rows = _and_then((numbers, first), rows)
    for number, fields in rows:
        if len(fields) <= max(place, label) or not fields[place].strip():
            raise XciteError(f"{path} line {number}: {len(fields)} fields, no path or no label")
        said = fields[label].strip()
        said = said.split()[0] if boxes and said else said
        if not said:
            raise XciteError(f"{path} line {number}: no label for {fields[place][:80]!r}")
        table.add(fields[place].strip(), said, number)
        if part is not None:
            table.parts.append(fields[part].strip().casefold() if len(fields) > part else "")
    if not table.paths:
        raise XciteError(f"{path}: no pictures listed")
    return table


def _rows(
    path: Path, lines: Sequence[tuple[int, str]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row; a quoted field ends on its own line."""
    for number, line in lines:
        try:
            yield number, next(csv.reader([line], delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration) as error:
            raise XciteError(f"{path} line {number}: no row of a table ({error})") from error


def _and_then(
    row: tuple[int, list[str]], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield row
    yield from rows


def _places(path: Path, header: Sequence[str], columns: Sequence[str]) -> tuple[int, int]:
    names = [name.strip().casefold() for name in header]
    found = []
    for wanted in [[c] for c in columns] if columns else [PATH_COLUMNS, LABEL_COLUMNS]:
        place = next((names.index(w.casefold()) for w in wanted if w.casefold() in names), None)
        if place is None:
            raise XciteError(
                f"{path}: no column {wanted[0]!r} among {', '.join(header[:12])[:300]}; name the "
                "columns of path and label with data.columns=image,label"
            )
        found.append(place)
    return found[0], found[1]


def _places_without_header(path: Path, first: Sequence[str]) -> tuple[int, int]:
    """Columns of path and label, told by the ending of the path."""
    places = [place for place, name in enumerate(first) if is_picture(name.strip())]
    if len(places) == 1 and len(first) == 2:
        return places[0], 1 - places[0]
    raise XciteError(
        f"{path}: which of its {len(first)} columns are path and label? Its first line is "
        f"{', '.join(first)[:200]!r}; give it a header and name them with data.columns=image,label"
    )
