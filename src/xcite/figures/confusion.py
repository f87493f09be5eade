"""Which classes are taken for which: a matrix of a few classes, the worst pairs of many."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xcite.evaluation.accuracy import Accuracy
from xcite.figures.lettering import Lettering, lettering
from xcite.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATRIX = 40  # classes up to here are shown all against all
NUMBERED = 25  # classes up to here get their numbers in the cells
PAIRS = 30  # of many classes so many pairs are shown


def draw_confusion(accuracy: Accuracy, path: str | Path, *, title: str = "") -> None:
    """Draw what was taken for what, in per cent of the true class.

    Up to 40 classes that have pictures make a matrix, true classes in rows and predicted ones in
    columns; more of them give the most confused pairs, and more than are counted pair by pair give
    the classes recognised least.

    Raises:
        XciteError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with lettering([*accuracy.class_names, title]) as letters:
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        present = int((accuracy.totals > 0).sum())
        if accuracy.confusion is None:
            _draw_least_recognised(axes, accuracy, letters)
        elif present > MATRIX:
            _draw_pairs(axes, accuracy, letters)
        else:
            _draw_matrix(figure, axes, accuracy, letters)
        heading = letters.tr(
            "{pictures:,} pictures, top-1 {top1:.2f} %",
            pictures=accuracy.pictures,
            top1=accuracy.top1,
        )
        above = f"{letters(title, 90)}\n" if title else ""
        figure.suptitle(above + heading, fontsize=11)
        letters.note(figure)
        with whole_file(path) as aside:
            figure.savefig(aside, dpi=110, format=Path(path).suffix.removeprefix(".") or "png")


def confused_pairs(accuracy: Accuracy, most: int = PAIRS) -> list[tuple[str, str, int, float]]:
    """True class, the one said, how often, and in per cent of the true class; the worst first.

    Empty where pairs were not counted.
    """
    counts = accuracy.confusion
    if counts is None:
        return []
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((columns, rows, -share[rows, columns], -wrong[rows, columns]))[:most]
    names = accuracy.class_names
    return [
        (names[row], names[column], int(wrong[row, column]), float(share[row, column]))
        for row, column in zip(rows[order], columns[order], strict=True)
    ]


def _draw_matrix(figure: "Figure", axes: "Axes", accuracy: Accuracy, letters: Lettering) -> None:
    from matplotlib.colors import PowerNorm

    assert accuracy.confusion is not None
    rows = np.flatnonzero(accuracy.totals)
    counts = accuracy.confusion[np.ix_(rows, rows)]
    names = [letters(accuracy.class_names[row], 24) for row in rows]
    columns = list(names)
    others = accuracy.confusion[rows].sum(axis=1) - counts.sum(axis=1)
    if others.any():  # taken for classes of which there are no pictures
        counts = np.column_stack([counts, others])
        columns.append(letters.tr("(others)"))
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(5.0, 1.8 + 0.3 * len(names))
    figure.set_size_inches(side + 1.2, side + 0.3)
    # The square root shows the rare mistakes, which a linear scale would leave white.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.set_xlabel(letters.tr("predicted"))
    axes.set_ylabel(letters.tr("true"))
    upright = max(map(len, columns), default=0) > 3
    axes.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    if len(names) <= NUMBERED:
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
    bar.set_label(letters.tr("% of the true class"))


def _draw_pairs(axes: "Axes", accuracy: Accuracy, letters: Lettering) -> None:
    pairs = confused_pairs(accuracy)
    labels = [f"{letters(true, 36)} → {letters(said, 36)}" for true, said, _, _ in pairs]
    shares = [share for *_, share in pairs]
    ends = [f"{count} ({share:.0f} %)" for _, _, count, share in pairs]
    _draw_bars(axes, labels, shares, ends)
    if not pairs:
        said = letters.tr("no class was taken for another")
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center")
    axes.set_xlabel(letters.tr("% of the true class"))
    axes.set_title(
        letters.tr(
            "the most confused pairs of {classes:,} classes, true → predicted",
            classes=len(accuracy.class_names),
        ),
        fontsize=10,
    )


def _draw_least_recognised(axes: "Axes", accuracy: Accuracy, letters: Lettering) -> None:
    rows = [row for row in accuracy.per_class() if row["recall"] is not None]
    rows = sorted(rows, key=lambda row: (row["recall"], -row["pictures"]))[:PAIRS]
    ends = [f"{row['recall']:.0f} % / {row['pictures']:,}" for row in rows]
    _draw_bars(axes, [letters(row["class"], 60) for row in rows], [r["recall"] for r in rows], ends)
    axes.set_xlim(0, 100)
    axes.set_xlabel(letters.tr("recognised, % / pictures"))
    axes.set_title(
        letters.tr(
            "the classes recognised least of {classes:,}", classes=len(accuracy.class_names)
        ),
        fontsize=10,
    )


def _draw_bars(axes: "Axes", labels: list[str], lengths: list[float], ends: list[str]) -> None:
    axes.figure.set_size_inches(10, 1.6 + 0.26 * max(len(labels), 4))  # type: ignore[union-attr]
    bars = axes.barh(range(len(labels)), lengths, color="#0072B2", height=0.7)
    axes.bar_label(bars, ends, padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
