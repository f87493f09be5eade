"""Hugging Face's parquet shards, read in place by row group."""

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xcite.data.sources.class_names import (
    LARGEST_LABEL,
    files_of_names,
    named_numbers,
    names_beside,
    names_in,
)
from xcite.data.sources.index import indexed
from xcite.data.sources.listing import Archived, Listing
from xcite.data.sources.source import State, state
from xcite.errors import XciteError
from xcite.regular_files import LARGEST_READ, open_regular, read_regular

_IMAGES = ("image", "img", "picture", "photo", "pixel_values", "jpg", "png", "webp")
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category", "class_name")
_LARGEST_GROUP = 1 << 30  # bytes unpacked
_CACHED = 1 << 28  # bytes of row groups kept in each process, and always the last one
_LARGEST_CARD = 1 << 20  # bytes of a README.md


class ParquetShards(Archived):
    """Encoded pictures in a column of bytes, or of bytes and paths, with the labels in another.

    Sorted by class, then by the path that a picture had, as far as the shards say it. One row group
    is read at a time.
    """

    called = "shard"

    def __init__(
        self,
        spec: str,
        shards: Sequence[str],
        classes: list[str] | None,
        columns: Sequence[str] = (),
    ) -> None:
        paths = [os.path.abspath(shard) for shard in shards]
        listing = indexed(
            "parquet", paths[0], [paths, list(columns)], lambda: _listed(paths, columns)
        )
        super().__init__(listing, classes, spec)
        self._column = listing.options["image"]

    def read(self, index: int) -> bytes:
        number, group, row = (int(value) for value in self._places[index])
        self.refuse_changed(index)
        group_rows = _groups.get(self._files[number], self._states[number], group, self._column)
        data = group_rows[row].as_py() if row < len(group_rows) else None
        if data is None:
            raise XciteError(f"{self.name(index)}: no picture in this row")
        if len(data) > LARGEST_READ:
            raise XciteError(f"{self.name(index)}: more than a picture may have")
        return bytes(data)


class _Groups:
    """The row groups of pictures that were read last in this process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()

    def get(self, path: str, about: State, group: int, column: str) -> Any:
        """The pictures of a row group, as an Arrow array of bytes."""
        key = (path, about, group, column)
        if key not in self._kept:
            with _opened(path) as file:
                table = _in_words(path, lambda: file.read_row_group(group, columns=[column]))
                values = _in_words(path, lambda: _flat(table, column))
            self._kept[key] = values, values.nbytes
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > _CACHED:
            self._kept.popitem(last=False)
        return self._kept[key][0]


_groups = _Groups()


def _listed(paths: Sequence[str], columns: Sequence[str]) -> Listing:
    names: list[str] = []
    labels: list[Any] = []
    places: list[tuple[int, ...]] = []
    known: list[str] | None = None
    watched = {path: state(path) for path in paths}
    said: tuple[str, str | None, str] | None = None
    for number, path in enumerate(paths):
        with _opened(path) as file:
            image, file_name, label = _in_words(
                path, lambda f=file, p=path: _columns(f, p, columns)
            )
            if said is not None and said != (image, file_name, label):
                raise XciteError(f"{path}: its columns are not those of {paths[0]}")
            said = (image, file_name, label)
            known = known or _names_in_schema(file.schema_arrow, label)
            wanted = [name for name in (label, file_name) if name]
            for group in range(file.metadata.num_row_groups):
                _refuse_large(file.metadata.row_group(group), path)
                rows = _in_words(path, lambda g=group, w=wanted: file.read_row_group(g, columns=w))
                values = _in_words(path, rows.column(label).to_pylist)
                stems = _stems(rows, file_name, path) if file_name else [None] * len(values)
                for row, (value, stem) in enumerate(zip(values, stems, strict=True)):
                    names.append(_name(stem, path, group, row))
                    labels.append(value)
                    places.append((number, group, row))
    known = known or _names_in_card(Path(paths[0])) or names_beside(Path(paths[0]).parent)
    of_class, classes, notes = _classes(labels, known, paths[0])
    listing = Listing.of(
        [f"{name_of_class}/{name}" for name_of_class, name in zip(of_class, names, strict=True)],
        of_class,
        places,
        classes=classes,
    )
    listing.files, listing.notes = list(paths), notes
    listing.watched = {**watched, **files_of_names(Path(paths[0]).parent)}
    listing.options = {"image": said[0] if said else ""}
    return listing


def _stems(rows: Any, column: str, path: str) -> list[Any]:
    return list(_in_words(path, lambda: _flat(rows, column).to_pylist()))


def _name(stem: object, path: str, group: int, row: int) -> str:
    """The picture's own file name, or its row."""
    name = stem.replace("\\", "/").rpartition("/")[2] if isinstance(stem, str) else ""
    return name or f"{Path(path).stem}:{group:05}:{row:07}"


def _classes(
    labels: Sequence[Any], known: Sequence[str] | None, where: str
) -> tuple[list[str], list[str], list[str]]:
    if all(isinstance(label, str) for label in labels):
        return list(labels), [], []
    wrong = [v for v in labels if type(v) is not int or not 0 <= v <= LARGEST_LABEL]
    if wrong:
        raise XciteError(f"{where}: a label is {wrong[0]!r}; is this a part without labels?")
    numbers, classes, notes = named_numbers(np.array(labels, np.int64), known, where)
    return [classes[number] for number in numbers.tolist()], classes, notes


def _columns(file: Any, path: str, wanted: Sequence[str]) -> tuple[str, str | None, str]:
    """Names of the columns with the bytes, the file name (None without one) and the label."""
    import pyarrow.types as types

    schema = file.schema_arrow
    images, labels = (wanted[:1], wanted[1:2]) if wanted else (_IMAGES, _LABELS)
    image = next((name for name in images if name in schema.names), None)
    label = next((name for name in labels if name in schema.names), None)
    if image is None or label is None:
        raise XciteError(
            f"{path}: no columns of pictures and labels among {', '.join(schema.names[:12])}; "
            "name them with data.columns=image,label"
        )
    kind = schema.field(image).type
    if types.is_struct(kind):
        inside = [kind.field(number).name for number in range(kind.num_fields)]
        if "bytes" in inside:
            return f"{image}.bytes", f"{image}.path" if "path" in inside else None, label
    elif types.is_binary(kind) or types.is_large_binary(kind):
        return image, None, label
    raise XciteError(f"{path}: the column {image!r} holds no encoded pictures but {kind}")


def _flat(table: Any, column: str) -> Any:
    """One column of a table of one row group, inner ones as "image.bytes", as one array."""
    outer, _, inner = column.partition(".")
    values = table.column(column if column in table.column_names else outer).combine_chunks()
    return values.field(inner) if inner and column not in table.column_names else values


def _names_in_schema(schema: Any, label: str) -> list[str] | None:
    """Names of a ClassLabel that `datasets` wrote into the shard."""
    said = (schema.metadata or {}).get(b"huggingface", b"")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        feature = json.loads(said)["info"]["features"][label]
        return names_in({"names": feature["names"]})
    return None


def _names_in_card(shard: Path) -> list[str] | None:
    """Names in the data set's card, README.md beside the shards or above them."""
    for folder in (shard.parent, shard.parent.parent):
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError, XciteError):
            text = read_regular(folder / "README.md", size=_LARGEST_CARD).decode()
            if text.startswith("---"):
                return names_in(yaml.safe_load(text.split("---", 2)[1]), depth=12)
    return None


def _refuse_large(group: Any, path: str) -> None:
    if group.total_byte_size > _LARGEST_GROUP:
        raise XciteError(
            f"{path}: a row group of {group.total_byte_size >> 20} MiB; pictures are read by row "
            f"group, so write the shard anew with groups of at most {_LARGEST_GROUP >> 20} MiB"
        )


@contextlib.contextmanager
def _opened(path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise XciteError(
            f"{path}: parquet is read with pyarrow: pip install 'xcite[parquet]'"
        ) from error
    with open_regular(path) as handle:
        file = _in_words(path, lambda: ParquetFile(handle, memory_map=False, pre_buffer=False))
        yield file


def _in_words(path: str, read: Any) -> Any:
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowException, OSError, ValueError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise XciteError(f"{path}: damaged, or no parquet file ({reason})") from error
