"""The files of a teacher cache.

    manifest.json             what the answers depend on, field by field, and its hash
    view-00000.safetensors    the answers for the pictures of epoch 0; one file a view
    view-00001.part-00003.safetensors    a part of a view that is still being computed
    README.md                 a card for people, see `card`
    checksums.sha256          of manifest and views, as sha256sum writes them

A view is the unit to share and to shard by: of 1.28 million pictures it takes 2.7 MB with hard
answers, and is read at once.

"present" is a bit per (picture, repetition), in the order index * repeats + repetition; the answers
follow in that order. Hard: "classes" uint16 or uint32 (n,). Soft and DML: "top_classes" (n, top),
"top_probabilities" float16 (n, top) at temperature tau (DML: 1) and "rest" float16 (n,), the
probability of all other classes together, which is spread over them evenly when it is read.
Cosine: "features" float16 (n, D) of length 1.

"replaced" int64 (m, 2), where there are any: keys of damaged pictures and of those shown instead.

A view's metadata say what storing cost: "outside_mean" and "outside_largest" of "rest", and
"divergence", the mean KL divergence of the stored answers from the given ones in nats.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.weights.safetensors_files import read_safetensors, write_safetensors
from xcite.weights.stored import StoredTensor

FORMAT = "xcite teacher cache 1"
_MANIFEST_LIMIT = 16 * 2**20  # bytes
_REMEDY = "delete it and run `xcite teach`"

Columns = dict[str, np.ndarray]


def digest(depends: dict[str, Any]) -> str:
    """SHA-256 of the fields as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def join(parts: Sequence[Columns]) -> Columns:
    """The columns of all parts, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def view_path(folder: Path, view: int) -> Path:
    """The file of a complete view."""
    return folder / f"view-{view:05d}.safetensors"


def part_path(folder: Path, view: int, part: int) -> Path:
    """The file of a part of a view that is still being computed."""
    return folder / f"view-{view:05d}.part-{part:05d}.safetensors"


def views_in(folder: Path) -> dict[int, Path]:
    """The complete views that a folder holds: number to file, rising."""
    found = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"view-(\d{5,9})\.safetensors", path.name)) and path.is_file()
    }
    return dict(sorted(found.items()))


def save(
    path: Path,
    columns: Columns,
    hashed: str,
    view: int,
    measured: Mapping[str, float] | None = None,
) -> None:
    """Write a view or a part of it; ``hashed`` says which cache it belongs to."""
    said = {name: f"{value:.6g}" for name, value in (measured or {}).items()}
    write_safetensors(path, columns, {"format": FORMAT, "hash": hashed, "view": str(view), **said})


def read(path: Path, hashed: str, view: int) -> Columns:
    """What `save` wrote.

    Raises:
        XciteError: damaged, or of another cache or view.
    """
    tensors, _ = read_header(path, hashed, view)
    with _remedy(path):
        return {name: tensor.load() for name, tensor in tensors.items()}


def read_header(
    path: Path, hashed: str, view: int
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The columns of a view, their numbers not read, and its metadata.

    Raises:
        XciteError: as `read`.
    """
    with _remedy(path):
        tensors, said = read_safetensors(path)
    if (said.get("hash"), said.get("view")) != (hashed, str(view)):
        raise XciteError(f"{path} belongs to another teacher cache; {_REMEDY}")
    return tensors, said


@contextlib.contextmanager
def _remedy(path: Path) -> Iterator[None]:
    try:
        yield
    except XciteError as error:
        raise XciteError(f"{error}; for a teacher cache: {_REMEDY}") from error
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}; {_REMEDY}") from error


def read_view(folder: Path, view: int, hashed: str, classes: int) -> Columns:
    """A complete view, its columns checked.

    Raises:
        XciteError: damaged, or of another cache or view.
    """
    path = view_path(folder, view)
    columns = read(path, hashed, view)
    wrong = XciteError(f"{path} is damaged; delete it and run `xcite teach`")
    names = set(columns) - {"replaced"}
    if names == {"present", "classes"}:
        ids, others, least = columns["classes"], [], 0
    elif names == {"present", "features"}:
        ids, others, least = np.empty(0, np.uint16), [columns["features"]], -1
        if others[0].ndim != 2 or others[0].shape[1] != classes:
            raise wrong
    elif names == {"present", "top_classes", "top_probabilities", "rest"}:
        ids = columns["top_classes"]
        others, least = [columns["top_probabilities"], columns["rest"]], 0
    else:
        raise wrong
    rows = int(np.bitwise_count(columns["present"]).sum(dtype=np.int64))
    answers = others if least else [ids, *others]
    if ids.dtype.kind != "u" or any(len(column) != rows for column in answers):
        raise wrong
    if ids.size and ids.max() >= classes:
        raise wrong
    replaced = columns.get("replaced", np.empty((0, 2), np.int64))
    if replaced.dtype != np.int64 or replaced.ndim != 2 or replaced.shape[1] != 2:
        raise wrong
    if not all(((column >= least) & (column <= 1)).all() for column in others):  # NaN is neither
        raise wrong
    return columns


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache.

    Raises:
        XciteError: missing, damaged, or its hash is not that of its fields.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise XciteError(f"{folder} is not a teacher cache (no manifest.json); run `xcite teach`")
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ValueError("it is too long")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise ValueError(f"it is not of the format {FORMAT!r}")
        if manifest["hash"] != digest(manifest["depends"]):
            raise ValueError("its hash is not that of its fields")
        dict(manifest["teacher"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise XciteError(f"{path} cannot be used: {error}") from error
    result: dict[str, Any] = manifest
    return result
