"""Training curves: loss, accuracy and learning rate of one run or several over another."""

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcite.errors import XciteError
from xcite.figures.lettering import Lettering, lettering
from xcite.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's palette: distinguishable with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _epochs(step: int, ends: Sequence[tuple[int, int]]) -> float:
    """Where a step lies in epochs; a changed batch gives later epochs another number of steps.

    Args:
        ends: (step, epoch) at the end of every epoch.
    """
    if not ends:
        return float(step)
    knots = [(0, 0), *ends]
    after = max(1, min(bisect.bisect_left(knots, (step, 0)), len(knots) - 1))
    (left, begun), (right, ended) = knots[after - 1], knots[after]
    return begun + (step - left) / max(right - left, 1) * (ended - begun)


def draw_curves(runs: Mapping[str, Rows], path: str | Path) -> None:
    """Draw rows of metrics.jsonl as a PNG (or what the ending says).

    Args:
        runs: name of the run to its rows, see `xcite.training.run_folder`.

    Raises:
        XciteError: no run, rows without numbers, or a file that cannot be written.
    """
    if not any(row.get("kind") in ("step", "epoch") for rows in runs.values() for row in rows):
        raise XciteError(f"there is nothing to draw yet in {', '.join(runs) or 'no run'}")
    with lettering(runs) as letters:
        most = 24 if len(runs) > 1 else 100  # in the legends, or in the title alone
        figure = _drawn([(letters(name, most), rows) for name, rows in runs.items()], letters)
        with whole_file(path) as aside:
            figure.savefig(aside, dpi=110, format=Path(path).suffix.removeprefix(".") or "png")


def _drawn(runs: Sequence[tuple[str, Rows]], letters: Lettering) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tr = letters.tr
    several = len(runs) > 1
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    # By hand, because matplotlib leaves out of its own legend what begins with "_".
    legends: dict[Any, list[tuple[Any, str]]] = {axes: [] for axes in (loss, accuracy, rate)}
    best: list[tuple[float, str]] = []
    for number, (name, rows) in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        prefix = f"{name}: " if several else ""
        steps = [row for row in rows if row.get("kind") == "step"]
        epochs = [row for row in rows if row.get("kind") == "epoch"]
        ends = [(row["step"], row["epoch"]) for row in epochs]

        def at(row: Mapping[str, Any], ends: Sequence[tuple[int, int]] = ends) -> float:
            return _epochs(row["step"], ends)

        def line(
            axes: Any, of: Rows, key: str, label: str | None, at: Any = at, **style: Any
        ) -> list[float]:
            points = [(at(row), row[key]) for row in of if isinstance(row.get(key), int | float)]
            if points:
                # A single evaluation must be seen too, so sparse lines get markers.
                marker = "o" if len(points) < 25 and "alpha" not in style else None
                xs, ys = zip(*points, strict=True)
                (drawn,) = axes.plot(xs, ys, marker=marker, markersize=3, **style)
                if label is not None:
                    legends[axes].append((drawn, label))
            return [value for _, value in points]

        line(loss, steps, "loss", None, color=colour, alpha=0.25, linewidth=1)
        line(loss, epochs, "loss", prefix + tr("training"), color=colour)
        second = colour if several else COLOURS[1]
        third = colour if several else COLOURS[2]
        line(loss, epochs, "val_loss", prefix + tr("validation"), color=second, linestyle="--")
        ema = prefix + tr("validation, EMA")
        line(loss, epochs, "ema_val_loss", ema, color=third, linestyle=":")
        model = line(accuracy, epochs, "acc1", prefix + tr("model"), color=second, linestyle="--")
        average = line(accuracy, epochs, "ema_acc1", prefix + tr("EMA"), color=third, linestyle=":")
        if model or average:
            best.append((max(model + average), name))
        rated = sorted([*steps, *epochs], key=lambda row: row["step"])
        line(rate, rated, "lr", name if several else None, color=colour)
    loss.set_title(tr("loss"))
    accuracy.set_title(tr("top-1 on the validation pictures, %"))
    rate.set_title(tr("learning rate"))
    rate.ticklabel_format(axis="y", scilimits=(-3, 3))
    if best:
        top, name = max(best)
        accuracy.axhline(top, color="0.6", linewidth=0.8)
        text = tr("best {top:.2f} %", top=top) + (f" ({name})" if several else "")
        accuracy.annotate(
            text,
            (1, top),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color="0.3",
        )
        accuracy.margins(y=0.1)
    else:
        accuracy.text(0.5, 0.5, tr("not evaluated"), transform=accuracy.transAxes, ha="center")
    counted = any(row.get("kind") == "epoch" for _, rows in runs for row in rows)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel(tr("epoch") if counted else tr("step"))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if legends[axes]:
            lines, labels = zip(*legends[axes], strict=True)
            axes.legend(lines, labels, frameon=False, fontsize=8 if several else 9)
    few = len(runs) < 5
    title = ", ".join(name for name, _ in runs) if few else tr("{runs} runs", runs=len(runs))
    figure.suptitle(title, fontsize=11)
    letters.note(figure)
    return figure
