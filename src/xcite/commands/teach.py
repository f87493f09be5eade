"""`xcite teach`: a teacher's answers, computed once for any number of students."""

import os
from pathlib import Path

import typer

from xcite.commands.printing import cell, say
from xcite.language import noted, tr

app = typer.Typer(add_completion=False)


@app.command()
def teach(
    recipe: str = typer.Argument(..., help="A shipped recipe's name or a YAML file."),
    settings: list[str] = typer.Option([], "--set", help="section.key=value, may be repeated."),
    views: int = typer.Option(
        None, min=1, help="Epochs to compute; by default distill.views, else all."
    ),
    out: Path = typer.Option(None, help="Folder of the cache; by default distill.cache."),
    engine: str = typer.Option(None, help="paddle or torch: what the teacher runs on."),
    check: int = typer.Option(
        None,
        "--verify",
        min=1,
        help="Check the files of the cache, compute so many of its answers again, and compare.",
    ),
) -> None:
    """Compute a teacher's answers for the very batches that training will see.

    An interrupted run goes on when the same command is given again. Train with
    --set distill.cache=OUT (and --set distill.views=V when fewer views than epochs are there).
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from xcite import recipe as recipes
    from xcite.errors import XciteError
    from xcite.training import plan
    from xcite.training.run_data import require_pictures
    from xcite.training.teachers.computing import compute
    from xcite.training.teachers.live import live_teacher
    from xcite.training.teachers.verifying import verify

    if engine is not None:
        settings = [*settings, f"distill.teacher_engine={engine}", f"run.engine={engine}"]
    chosen = recipes.load(recipe, settings)
    require_pictures(chosen, recipe)
    if chosen.distill.loss == "none":
        raise XciteError(f"the recipe {recipe} has no teacher: distill.loss is 'none'")
    cache = chosen.distill.cache
    folder = out or (Path(os.path.expanduser(cache)) if cache else None)
    if folder is None:
        raise XciteError("no folder for the answers is named; give --out or set distill.cache")
    console = Console()
    skipped: dict[str, str] = {}
    prepared = plan.make(chosen, initialise=False)
    chosen = prepared.recipe
    teacher = live_teacher(chosen, prepared.class_names)
    for line in (*prepared.found, *map(noted, (*prepared.notes, *teacher.notes))):
        console.print(cell(line), highlight=False, soft_wrap=True)
    if check is not None:
        kept = recipes.with_values(chosen, "distill", cache=str(folder))
        found = verify(kept, prepared.train, prepared.class_names, teacher, check)
        if found.files:
            say(
                tr(
                    "{folder}: {files} files are as checksums.sha256 lists them",
                    folder=folder,
                    files=found.files,
                )
            )
        told = {"entries": found.entries, "folder": folder, "largest": found.largest}
        say(
            tr(
                "{folder}: {entries} answers computed again are the teacher's, the largest "
                "difference of a probability is {largest:.2g}",
                **told,
            )
        )
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task(tr("pictures"), total=None)
        try:
            done = compute(
                chosen,
                prepared.train,
                prepared.class_names,
                teacher,
                folder,
                views=views,
                after_batch=lambda pictures, total: progress.update(
                    bar, completed=pictures, total=total
                ),
                left_out=skipped.update,
            )
        except KeyboardInterrupt:
            raise XciteError(
                f"interrupted; what is done is kept in {folder}: give the same command to go on"
            ) from None
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    if skipped:
        examples = ", ".join(list(skipped)[:3])
        say(
            tr(
                "{count} pictures cannot be read and were replaced by the next: {examples}",
                count=len(skipped),
                examples=examples,
            )
        )
    command = f"xcite train {recipe} --set distill.cache={folder}"
    if done < chosen.optim.epochs:
        command += f" --set distill.views={done}"
    made = {"folder": folder, "views": done, "pictures": len(prepared.train), "size": size}
    say(
        tr("{folder}: {views} views of {pictures} pictures, {size:.2f} MiB", **made),
        tr("train with: {command}", command=command),
    )
