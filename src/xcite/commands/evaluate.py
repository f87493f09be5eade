"""`xcite evaluate`: how good a model is, class by class."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xcite.commands.own_pictures import own_pictures
from xcite.commands.printing import cell, say
from xcite.control_characters import writable_json
from xcite.errors import XciteError
from xcite.language import noted, tr, translated

if TYPE_CHECKING:
    from rich.console import Console

    from xcite.evaluation.accuracy import Accuracy
    from xcite.evaluation.sets import PictureSet, Result
    from xcite.runtime.opening import OpenedModel

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: str = typer.Argument(help="Run folder, weights file, published name or bundle."),
    data: str = typer.Option(
        None, help="Folder, archive, list file or 'digits'; default: a run's validation pictures."
    ),
    suite: str = typer.Option(None, help="Evaluate on every known set below this folder."),
    real: str = typer.Option(None, help="ReaL's real.json, for ImageNet's validation pictures."),
    root: str = typer.Option(None, help="Folder that a list file's paths start from."),
    outside_root: bool = typer.Option(
        False, "--outside-root", help="Allow listed paths and tar members that lead out of there."
    ),
    columns: str = typer.Option(
        None, help="Of a CSV or parquet: columns of path and label, as image,label."
    ),
    ignore_extra: bool = typer.Option(
        False, "--ignore-extra", help="Leave out pictures of classes that the model does not know."
    ),
    engine: str = typer.Option(None, help="paddle or torch; default: paddle where installed."),
    device: str = typer.Option("auto", help="What to compute on: auto, cpu, gpu, cuda:1, ..."),
    batch: int = typer.Option(64, min=1, help="Pictures at a time."),
    workers: int = typer.Option(2, min=0, help="Loader processes."),
    skip: bool = typer.Option(False, "--skip", help="Leave out pictures that cannot be decoded."),
    as_json: Path = typer.Option(None, "--json", help="Write the figures to this file, too."),
    confusion: Path = typer.Option(None, help="Draw the confusion matrix into this PNG."),
) -> None:
    """Measure top-1, top-5 and loss on pictures."""
    from rich.console import Console

    from xcite.evaluation.sets import open_set, own_set
    from xcite.runtime.opening import open_model

    if columns and data is None:
        raise XciteError("--columns is about the table that --data names; give both")
    if suite is not None and (data or real or confusion):
        raise XciteError("--suite finds its pictures itself; leave --data, --real, --confusion out")
    own = None
    options: dict[str, Any] = {"batch": batch, "workers": workers, "skip": skip}
    if suite is None and data is None:
        ask = f"say what to evaluate {model} on: --data FOLDER, or --suite FOLDER"
        own, treated = own_pictures(model, ask)
        skip = skip or treated.on_error == "skip"
        options |= {"skip": skip, "max_pixels": treated.max_pixels}
    opened = open_model(model, engine, device)
    for note in opened.notes:
        say(noted(note))
    console = Console()
    if suite is not None:
        _evaluate_suite(
            console, opened, model, suite, as_json, ignore_extra=ignore_extra, options=options
        )
        return
    if own is not None:
        pictures = own_set(own, opened, data=f"the run {model}")
    else:
        pictures = open_set(
            data,
            opened,
            root=root,
            outside_root=outside_root,
            columns=columns,
            real=real,
            ignore_extra=ignore_extra,
            model=model,
        )
    say(*pictures.notes)
    result = _shown(console, opened, pictures, options)
    _print_classes(console, result.accuracy)
    say(_figures(result, opened.on))
    if as_json is not None:
        about = _about(opened, model) | {"data": data or f"validation pictures of {model}"}
        _write(as_json, about | ({"real": real} if real else {}) | result.as_json())
    if confusion is not None:
        from xcite.figures.confusion import draw_confusion

        title = f"{Path(model).name} on {Path(data).name}" if data else Path(model).name
        draw_confusion(result.accuracy, confusion, title=title)


def _shown(
    console: "Console", opened: "OpenedModel", pictures: "PictureSet", options: dict[str, Any]
) -> "Result":
    """Evaluate with a progress bar."""
    from rich.progress import Progress

    from xcite.evaluation.sets import evaluate_set

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(tr("evaluating"), total=len(pictures.source))
        return evaluate_set(
            opened, pictures, after_batch=lambda done: progress.advance(bar, done), **options
        )


def _figures(result: "Result", on: str) -> str:
    accuracy = result.accuracy
    said = tr("{pictures} pictures on {on}", pictures=accuracy.pictures, on=on)
    if result.left_out:
        said += tr(", {count} left out", count=result.left_out)
    if result.unlabelled:
        said += tr(", {count} without a right class", count=result.unlabelled)
    said += tr(
        ": top-1 {top1:.2f} %, top-5 {top5:.2f} %, loss {loss:.4f}",
        top1=accuracy.top1,
        top5=accuracy.top5,
        loss=accuracy.loss,
    )
    if accuracy.absent:
        said += tr(
            " among all {classes} classes; among the {present} classes present: "
            "top-1 {top1:.2f} %, top-5 {top5:.2f} %",
            classes=len(accuracy.class_names),
            present=len(accuracy.present),
            top1=accuracy.top1_present,
            top5=accuracy.top5_present,
        )
    return said + tr(", {speed:.0f} pictures/s", speed=accuracy.pictures / result.seconds)


def _evaluate_suite(
    console: "Console",
    opened: "OpenedModel",
    model: str,
    suite: str,
    as_json: Path | None,
    *,
    ignore_extra: bool,
    options: dict[str, Any],
) -> None:
    """One line a set and a table of all; a set that fails has its reason in it, and exit code 2."""
    from xcite.evaluation.sets import open_set
    from xcite.evaluation.suite import find_sets

    rows: list[dict[str, Any]] = []
    for known in find_sets(suite):
        row: dict[str, Any] = {"set": known.title, "path": str(known.path)}
        rows.append(row)
        say(f"{known.title}: {known.path}")
        try:
            pictures = open_set(
                str(known.path),
                opened,
                real=str(known.real) if known.real else None,
                ignore_extra=ignore_extra,
                model=model,
            )
            say(*(f"  {note}" for note in pictures.notes))
            result = _shown(console, opened, pictures, options)
        except (XciteError, MemoryError) as error:
            row["error"] = str(error) or "memory ran out"
            say(f"  {translated(row['error'])}")
            continue
        row |= result.as_json()
        say(f"  {_figures(result, opened.on)}")
    _print_suite(console, rows)
    if as_json is not None:
        _write(as_json, _about(opened, model) | {"suite": suite, "sets": rows})
    if any("error" in row for row in rows):
        raise typer.Exit(2)


def _about(opened: "OpenedModel", model: str) -> dict[str, Any]:
    preprocessing = opened.preprocessing.model_dump(mode="json")
    return {"model": model, "on": opened.on, "preprocessing": preprocessing}


def _write(path: Path, figures: dict[str, Any]) -> None:
    from xcite.whole_files import write_text

    write_text(path, writable_json(json.dumps(figures, indent=1, ensure_ascii=False)) + "\n")


def _print_suite(console: "Console", rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    caption = tr("top-1 present: only the set's own classes compete")
    table = Table(tr("set"), box=None, caption=caption)
    counted, shown = (tr("pictures"), tr("classes")), ("top-1", "top-5", tr("top-1 present"))
    for heading in (*counted, *shown, tr("left out")):
        table.add_column(heading, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(cell(row["set"]), tr("failed"))
            continue
        shares = [f"{row[key]:.2f} %" for key in ("acc1", "acc5", "acc1_present")]
        counts = [str(row["pictures"]), str(row["classes_present"])]
        left_out = row["left_out"] + row["unlabelled"]
        table.add_row(cell(row["set"]), *counts, *shares, str(left_out))
    console.print(table)


def _print_classes(console: "Console", accuracy: "Accuracy") -> None:
    """The per-class table: all classes with pictures, or of very many the worst."""
    from rich.table import Table

    rows = [row for row in accuracy.per_class() if row["recall"] is not None]
    title = None
    if len(rows) > 50:
        rows = sorted(rows, key=lambda r: r["recall"])[:20]
        title = tr("the 20 worst of {classes} classes", classes=len(accuracy.class_names))
    table = Table(tr("class"), box=None, title=title)
    for heading in (tr("pictures"), tr("recognised"), tr("right when said")):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = ["-" if row[k] is None else f"{row[k]:.1f} %" for k in ("recall", "precision")]
        table.add_row(cell(row["class"]), str(row["pictures"]), *shares)
    console.print(table)
