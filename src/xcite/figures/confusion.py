"""The confusion matrix as a picture: which classes are taken for which."""

from pathlib import Path

import numpy as np

from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy
from xcite.figures.labels import plain
from xcite.whole_files import whole_file

NAMED = 60  # classes up to here get their names at the sides
NUMBERED = 25  # classes up to here get their numbers in the cells


def draw_confusion(accuracy: Accuracy, path: str | Path, *, title: str = "") -> None:
    """Draw true classes (rows) against predicted ones (columns), in per cent of the true class.

    Raises:
        XciteError: far too many classes, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = accuracy.confusion
    if counts is None:
        raise XciteError(
            f"{len(accuracy.class_names)} classes are too many for a confusion picture"
        )
    classes = len(counts)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 1.8 + 0.3 * classes) if classes <= NAMED else 10.0
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # The square root shows the rare mistakes, which a linear scale would leave white.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= NAMED:
        names = [_shortened(name) for name in accuracy.class_names]
        upright = max(map(len, names)) > 3
        axes.set_xticks(range(classes), names, rotation=90 if upright else 0, fontsize=9)
        axes.set_yticks(range(classes), names, fontsize=9)
    if classes <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 40 else "black",
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("% of the true class")
    heading = f"{accuracy.pictures:,} pictures, top-1 {accuracy.top1:.2f} %"
    axes.set_title(f"{plain(title)}\n{heading}" if title else heading, fontsize=11)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=110, format=Path(path).suffix.removeprefix(".") or "png")


def _shortened(name: str, most: int = 20) -> str:
    return plain(name if len(name) <= most else name[: most - 1] + "…")
