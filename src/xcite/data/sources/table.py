"""Rows of path and label out of a list, however it is written."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xcite.data.formats import SUFFIXES, is_picture
from xcite.data.sources.layouts import PARTS
from xcite.data.sources.text import read_text
from xcite.errors import XciteError

PATH_COLUMNS = (
    *("path", "image_path", "img_path", "filepath", "file_path", "filename", "file_name", "file"),
    *("image", "img", "images", "image_name", "img_name", "picture", "photo", "name"),
    *("image_id", "imageid", "id", "image_link", "image_file", "img_file"),
    *("路径", "图片路径", "图像路径", "文件路径", "文件名", "图片名", "图片", "图像", "文件"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "category", "category_name", "target"),
    *("species", "breed", "tag", "diagnosis", "class_id", "label_id", "category_id"),
    *("predictionstring", "y", "class_label", "label_name", "fine_label", "dx"),
    *("标签", "类别", "类别名", "分类", "类名", "种类"),
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
        name = _plain(line)[0]
        return bool(name) and exists(name)  # "" is the folder itself

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
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip().strip('"') for name in first.split(delimiter)]
    if first.lstrip()[0] in "[{" and not names_a_file(first):
        table = _delimited(path, _objects(path, lines), columns)
    elif columns or _is_header(header) or path.suffix.lower() in (".csv", ".tsv"):
        table = _delimited(path, _rows(path, lines, delimiter), columns)
    else:
        table = _lines(path, lines[1:] if _is_header(first.split()) else lines)
    table.notes[:0] = notes
    return table


def _is_header(names: Iterable[str]) -> bool:
    known = {_column(name) for name in names}
    return not known.isdisjoint(PATH_COLUMNS) and not known.isdisjoint(LABEL_COLUMNS)


def _column(name: str) -> str:
    """The name of a column as the lists above have it: "Image Path" is image_path."""
    return "_".join(name.replace("-", " ").casefold().split())


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
        numbers = [int(label) for label in table.labels]
        if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            raise XciteError(
                f"{path}: the numbers before the paths only count the lines; write 'path label' "
                "lines"
            )
        table.notes.append(f"{path}: the labels stand before the paths")
    table.stems = not any(map(is_picture, table.paths))
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


def _delimited(path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str]) -> Table:
    """A table of numbered rows, with or without a header."""
    numbers, first = next(rows)
    table = Table()
    header = [_column(name) for name in first]
    if columns or _is_header(first):
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


def _objects(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """The names of the first object's fields, then the fields of the object on each line.

    Raises:
        XciteError: JSON of another form.
    """
    names: list[str] = []
    for number, line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise XciteError(
                f"{path} line {number}: this looks like JSON, but not with an object on each line "
                "(.jsonl); write 'path label' lines or a CSV"
            )
        if not names:
            names = list(found)
            yield number, names
        fields = [found.get(name) for name in names]
        yield number, [str(f) if isinstance(f, str | int | float) else "" for f in fields]


def _and_then(
    row: tuple[int, list[str]], rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield row
    yield from rows


def _places(path: Path, header: Sequence[str], columns: Sequence[str]) -> tuple[int, int]:
    names = [_column(name) for name in header]
    exact = [name.strip() for name in header]
    found = []
    for wanted in [[c] for c in columns] if columns else [PATH_COLUMNS, LABEL_COLUMNS]:
        place = next((names.index(_column(w)) for w in wanted if _column(w) in names), None)
        if wanted[0] in exact:  # two names may differ in case alone
            place = exact.index(wanted[0])
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
