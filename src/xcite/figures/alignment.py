"""The picture of an alignment: how far apart, layer by layer, and both loss curves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcite.alignment.comparison import (
    ACTIVATIONS,
    ACTIVATIONS_TRAIN,
    GRADIENTS,
    STATISTICS,
    STEP,
    TOLERANCES,
    Report,
)
from xcite.figures.curves import COLOURS
from xcite.figures.lettering import Lettering, lettering
from xcite.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLEST = 1e-9  # a difference of zero is drawn here


def draw_alignment(report: Report, path: str | Path) -> None:
    """Draw a report as a PNG.

    Left: relative difference per layer group against its tolerance (dashed, same colour). Right,
    where there are any: the losses of both sides and their relative difference.

    Raises:
        XciteError: the file cannot be written.
    """
    with lettering([report.model, *report.sides, *report.groups]) as letters:
        figure = _drawn(report, letters)
        with whole_file(path) as aside:
            figure.savefig(aside, format="png", dpi=90)


def _drawn(report: Report, letters: Lettering) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = len(report.losses) == 2
    figure = Figure(figsize=(13 if curves else 9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    widths = [3, 2] if curves else [1]
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)
    layers = panels[0][0]
    kinds = (ACTIVATIONS, ACTIVATIONS_TRAIN, GRADIENTS, STEP, STATISTICS)
    place = {group: number for number, group in enumerate(report.groups)}
    for kind, colour in zip(kinds, COLOURS, strict=False):
        rows = [row for row in report.rows if row.kind == kind]
        if not rows:
            continue
        xs = [place[row.group] for row in rows]
        ys = [min(max(row.relative, _SMALLEST), 10.0) for row in rows]
        layers.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1, label=kind)
        layers.axhline(TOLERANCES[kind].limit, color=colour, linestyle="--", linewidth=0.8)
        beyond = [(x, y) for x, y, row in zip(xs, ys, rows, strict=True) if not row.within]
        if beyond:
            layers.plot(*zip(*beyond, strict=True), "x", color="#D00000", markersize=11, zorder=5)
    layers.set_yscale("log")
    layers.set_xticks(
        range(len(place)),
        [letters(group, 40) for group in place],
        rotation=60,
        ha="right",
        fontsize=7,
    )
    layers.set_ylabel(letters.tr("largest relative difference (dashed: tolerance)"))
    layers.grid(axis="y", linewidth=0.3)
    layers.legend(fontsize=8, loc="upper left")
    verdict = letters.tr("aligned")
    if report.first_diverging:
        verdict = letters.tr("first apart: {group}", group=letters(report.first_diverging, 40))
    first, second = (letters(side, 40) for side in report.sides)
    title = letters.tr("{first} and {second}", first=first, second=second)
    layers.set_title(f"{letters(report.model, 60)}: {title}, {verdict}", fontsize=10)
    if curves:
        _draw_losses(panels[0][1], report, letters)
    letters.note(figure)
    return figure


def _draw_losses(axes: Any, report: Report, letters: Lettering) -> None:
    (first, ours), (second, theirs) = report.losses.items()
    steps = range(1, len(ours) + 1)
    wide = axes.plot(steps, ours, "-", color=COLOURS[0], linewidth=4, alpha=0.4)
    dashed = axes.plot(steps, theirs, "--", color=COLOURS[1])
    axes.set_xlabel(letters.tr("step"))
    axes.set_ylabel(letters.tr("loss"))
    names = [letters(first, 40), letters(second, 40)]
    axes.legend([*wide, *dashed], names, loc="upper left", fontsize=8)
    apart = axes.twinx()
    relative = [
        max(abs(a - b) / max(abs(b), 1e-12), _SMALLEST) for a, b in zip(ours, theirs, strict=True)
    ]
    apart.plot(steps, relative, "o", color="0.5", markersize=3)
    apart.set_yscale("log")
    apart.set_ylim(_SMALLEST, 1e-2)
    apart.axhline(TOLERANCES["loss curve"].limit, color="0.5", linestyle="--", linewidth=0.8)
    apart.set_ylabel(letters.tr("relative difference (dots; dashed: tolerance)"), color="0.4")
    axes.set_title(letters.tr("losses of the same steps"), fontsize=10)
