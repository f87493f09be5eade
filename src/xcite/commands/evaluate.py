"""`xcite evaluate`: how good a model is, class by class."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from xcite.commands.printing import cell, say
from xcite.errors import XciteError
from xcite.language import tr

if TYPE_CHECKING:
    from rich.console import Console

    from xcite.evaluation.accuracy import Accuracy

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: str = typer.Argument(help="Run folder, weights file, published name or bundle."),
    data: str = typer.Option(help="Folder, tar shards, list file or 'digits'."),
    root: str = typer.Option(None, help="Folder that a list file's paths start from."),
    outside_root: bool = typer.Option(
        False, "--outside-root", help="Allow listed paths and tar members that lead out of there."
    ),
    engine: str = typer.Option(None, help="paddle or torch; default: paddle where installed."),
    batch: int = typer.Option(64, min=1, help="Pictures at a time."),
    workers: int = typer.Option(2, min=0, help="Loader processes."),
    skip: bool = typer.Option(False, "--skip", help="Leave out pictures that cannot be decoded."),
    as_json: Path = typer.Option(None, "--json", help="Write the figures to this file, too."),
    confusion: Path = typer.Option(None, help="Draw the confusion matrix into this PNG."),
) -> None:
    """Measure top-1, top-5 and loss on pictures."""
    from rich.console import Console
    from rich.progress import Progress

    from xcite.data.pipeline import EvaluationLoader
    from xcite.evaluation import evaluate as evaluation
    from xcite.runtime.classes import open_labelled
    from xcite.runtime.opening import open_model
    from xcite.whole_files import write_text

    opened = open_model(model, engine)
    source, names, note = open_labelled(
        data,
        opened.class_names,
        opened.architecture.num_classes,
        channels=opened.preprocessing.channels,
        root=root,
        outside_root=outside_root,
        model=model,
    )
    for line in (*opened.notes, *source.notes, *([note] if note else [])):
        say(tr("note: {note}", note=line))
    loader = EvaluationLoader(
        source,
        opened.preprocessing,
        batch=batch,
        workers=workers,
        on_error="skip" if skip else "stop",
    )
    console = Console()
    started = time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(tr("evaluating"), total=len(source))
        accuracy = evaluation.evaluate(
            {"model": opened.classifier},
            loader,
            opened.preprocessing,
            names,
            after_batch=lambda pictures: progress.advance(bar, pictures),
        )["model"]
    seconds = time.monotonic() - started
    left_out = len(source) - accuracy.pictures
    if not accuracy.pictures:
        raise XciteError(f"no picture of {data} could be decoded")
    _print_classes(console, accuracy)
    say(
        tr("{pictures} pictures on {on}", pictures=accuracy.pictures, on=opened.on)
        + (tr(", {count} left out", count=left_out) if left_out else "")
        + tr(
            ": top-1 {top1:.2f} %, top-5 {top5:.2f} %, loss {loss:.4f}, {speed:.0f} pictures/s",
            top1=accuracy.top1,
            top5=accuracy.top5,
            loss=accuracy.loss,
            speed=accuracy.pictures / seconds,
        )
    )
    if as_json is not None:
        figures = {
            "model": model,
            "data": data,
            "on": opened.on,
            "left_out": left_out,
            "seconds": round(seconds, 3),
            "preprocessing": opened.preprocessing.model_dump(mode="json"),
            **accuracy.as_json(),
        }
        write_text(as_json, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if confusion is not None:
        from xcite.figures.confusion import draw_confusion

        draw_confusion(accuracy, confusion, title=f"{Path(model).name} on {Path(data).name}")


def _print_classes(console: "Console", accuracy: "Accuracy") -> None:
    """The per-class table: all classes, or of very many the worst."""
    from rich.table import Table

    rows = accuracy.per_class()
    title = None
    if len(rows) > 50:
        rows = sorted((r for r in rows if r["recall"] is not None), key=lambda r: r["recall"])[:20]
        title = tr("the 20 worst of {classes} classes", classes=len(accuracy.class_names))
    table = Table(tr("class"), box=None, title=title)
    for heading in (tr("pictures"), tr("recognised"), tr("right when said")):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = ["-" if row[k] is None else f"{row[k]:.1f} %" for k in ("recall", "precision")]
        table.add_row(cell(row["class"]), str(row["pictures"]), *shares)
    console.print(table)
