"""ReaL: the reassessed labels of ImageNet's validation pictures (Beyer et al. 2020).

``real.json`` is a list of lists: the classes that picture ILSVRC2012_val_00000001 and those after
it show, none where no class fits. Pictures of the latter kind are no part of the figure.
"""

import json
import os
import re
from pathlib import Path

import numpy as np

from xcite.data.loose_pictures import LoosePictures
from xcite.data.sources import Source, Subset, open_source
from xcite.errors import XciteError
from xcite.regular_files import read_regular
from xcite.weights.imagenet import imagenet_wnids

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_LARGEST = 16 << 20  # bytes; the published file has less than one


def read_real_labels(path: str | os.PathLike[str]) -> list[list[int]]:
    """The classes of each validation picture, in the pictures' order, as ImageNet's numbers.

    Raises:
        XciteError: no such list of lists.
    """
    wanted = "expected a JSON list with a list of class numbers (0 to 999) for each picture"
    try:
        rows = json.loads(read_regular(path, size=_LARGEST))
    except FileNotFoundError as error:
        raise XciteError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise XciteError(f"{path}: {wanted} ({str(error)[:80]})") from error
    classes = range(len(imagenet_wnids()))
    if not isinstance(rows, list):
        raise XciteError(f"{path}: {wanted}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or not all(type(k) is int and k in classes for k in row):
            raise XciteError(f"{path}: {wanted}; entry {number} is {str(row)[:40]}")
    return rows


def open_validation_pictures(spec: str, *, root: str | None, outside_root: bool) -> Source:
    """ImageNet's validation pictures in class folders, an archive, or all loose in one folder."""
    folder = Path(spec).expanduser()
    if folder.is_dir() and any(_NUMBER.match(entry.name) for entry in os.scandir(folder)):
        return LoosePictures(folder, imagenet_wnids())
    return open_source(spec, root=root, split="validation", outside_root=outside_root)


def with_real_labels(
    source: Source, rows: list[list[int]], columns: np.ndarray | None, called: str
) -> tuple[Source, list[np.ndarray]]:
    """The pictures that show a class of ImageNet, and which classes are right for each.

    Args:
        columns: the model's class for each of ImageNet's; None where they are the same.
        called: what messages call ``rows``.

    Raises:
        XciteError: pictures that are not called ILSVRC2012_val_0000nnnn, or more than ``rows``.
    """
    indices, accepted = [], []
    for index in range(len(source)):
        name = source.name(index)
        numbers = _NUMBER.findall(Path(name).name)
        if not numbers or not 1 <= int(numbers[-1]) <= len(rows):
            raise XciteError(
                f"{name}: {called} has labels of ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{len(rows):08}; keep the pictures' official names"
            )
        if row := rows[int(numbers[-1]) - 1]:
            indices.append(index)
            classes = np.array(row, np.int64)
            accepted.append(classes if columns is None else columns[classes])
    if not indices:
        raise XciteError(f"{called} has no label for any of the {len(source)} pictures")
    return Subset(source, np.array(indices, np.int64)), accepted
