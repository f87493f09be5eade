"""`xcite prepare`: official archives to picture folders or shards."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr

app = typer.Typer(add_completion=False)


@app.command()
def prepare(
    dataset: str = typer.Argument(help="Which archives these are: imagenet."),
    destination: Path = typer.Argument(help="Folder to write; it appears when all is done."),
    train: list[Path] = typer.Option(help="Tar of class tars, or of class folders; repeatable."),
    val: list[Path] = typer.Option(help="Tar of validation pictures; repeatable."),
    devkit: Path = typer.Option(None, help="The development kit, which says what they show."),
    val_list: Path = typer.Option(None, help="Or LOC_val_solution.csv, or lines of 'name wnid'."),
    layout: str = typer.Option("folders", help="folders or shards."),
    per_shard: int = typer.Option(10_000, help="Pictures per shard."),
) -> None:
    """Turn official archives into picture folders or tar shards; run again, it goes on."""
    if dataset != "imagenet":
        raise XciteError(f"unknown data set {dataset!r}; choose imagenet")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from xcite.data.prepare import prepare_imagenet

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
            bars.update(tasks[what], completed=done, total=total or None)  # type: ignore[arg-type]

        def announce(split: str, lines: list[str]) -> None:
            for line in lines:
                if split == "train":
                    say(tr("training: {line}", line=line))
                else:
                    say(tr("validation: {line}", line=line))

        try:
            counts = prepare_imagenet(
                destination,
                train=train,
                val=val,
                devkit=devkit,
                val_list=val_list,
                layout=layout,
                per_shard=per_shard,
                progress=show,
                announce=announce,
            )
        except KeyboardInterrupt:
            raise XciteError("interrupted; run the same command again to go on") from None
    names = ("train", "val") if layout == "folders" else ("train-*.tar", "val-*.tar")
    say(
        tr(
            "{folder}: {train} train and {val} val pictures of {classes} classes, counted",
            folder=destination,
            **{key: counts[key] for key in ("train", "val", "classes")},
        )
    )
    say(f"data.train={destination / names[0]} data.validation={destination / names[1]}")
