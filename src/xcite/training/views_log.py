"""Which views of which pictures each step has used, one file a process (``run.record_views``).

A row is ``epoch,step,picture,repetition``: epoch and step of the epoch counted from 1, the
picture's place in the listing of the training pictures, and the number of its repetition. All files
of a run together hold every view that its steps have used, once.
"""

from pathlib import Path

import numpy as np

from xcite.training import json_lines
from xcite.whole_files import write_text

_NAME = "views-{}.csv"


class ViewsLog:
    """The file of one process."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / _NAME.format(rank)

    def add(self, epoch: int, step: int, views: np.ndarray) -> None:
        """Note a step that is done, both counted from 1.

        Args:
            views: int64 (B, 2), as in `xcite.data.batch.Batch`.

        Raises:
            XciteError: the file cannot be written.
        """
        rows = (f"{epoch},{step},{picture},{repetition}\n" for picture, repetition in views)
        json_lines.append(self._path, "".join(rows))


def forget_after(folder: Path, epoch: int, step: int) -> None:
    """Drop the rows of all processes that are of work which a resumed run does again.

    Args:
        epoch: that goes on, counted from 1.
        step: steps of it that are done.
    """
    for path in folder.glob(_NAME.format("*")):
        kept = [row for row in _rows(path) if row[:2] <= (epoch, step)]
        write_text(path, "".join(",".join(map(str, row)) + "\n" for row in kept))


def read(folder: Path) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Epoch and step to the views that all processes used in it, (picture, repetition), sorted."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for path in folder.glob(_NAME.format("*")):
        for epoch, step, picture, repetition in _rows(path):
            found.setdefault((epoch, step), []).append((picture, repetition))
    return {place: sorted(found[place]) for place in sorted(found)}


def _rows(path: Path) -> list[tuple[int, ...]]:
    """The rows of a file; one that was cut off is left out."""
    lines = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return [
        tuple(map(int, line)) for line in lines if len(line) == 4 and all(map(str.isdigit, line))
    ]
