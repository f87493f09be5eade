"""`xcite train`: from a recipe to a run folder."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError

app = typer.Typer(add_completion=False)

# What may differ when a run goes on: it changes where and how fast, not what comes out.
MAY_DIFFER = {
    "data": ("train", "validation", "root", "workers", "prefetch"),
    "init": ("weights",),
    "distill": ("teacher", "cache", "teacher_engine"),
    "run": (
        "engine",
        "keep",
        "checkpoint_every",
        "checkpoint_minutes",
        "log_every",
        "tensorboard",
        "activation_checkpointing",
    ),
}


@app.command()
def train(
    recipe: str = typer.Argument(None, help="A shipped recipe's name or a .yaml file."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="A.B=C", help="Change a value of the recipe; may be repeated."
    ),
    engine: str = typer.Option(None, help="paddle or torch; default: the recipe's."),
    weights: str = typer.Option(None, help="Start from these weights: --set init.weights=..."),
    reset_head: bool = typer.Option(
        False, "--reset-head", help="Draw the classifier anew: --set init.reset_head=true"
    ),
    out: Path = typer.Option(None, help="The run folder; default: runs/<recipe>-<number>."),
    resume: Path = typer.Option(
        None, metavar="RUN", help="Go on with an interrupted run (folder or numbered checkpoint)."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and train nothing."),
) -> None:
    """Train a model as a recipe says."""
    from xcite import recipe as recipes
    from xcite.training import run_folder

    if engine:
        settings = [*settings, f"run.engine={engine}"]
    if weights:
        settings = [*settings, f"init.weights={weights}"]
    if reset_head:
        settings = [*settings, "init.reset_head=true"]
    checkpoint_file = None
    if resume is not None:
        if recipe or out:
            raise XciteError(
                "--resume takes recipe and folder from the run; leave out RECIPE and --out"
            )
        if resume.suffix == ".safetensors":
            checkpoint_file, resume = resume, resume.parent
        folder = run_folder.RunFolder.open(resume)
        chosen = recipes.load(str(folder.recipe), settings)
        _refuse_changes(recipes.load(str(folder.recipe)), chosen)
    else:
        if not recipe:
            raise XciteError(f"give a recipe: {', '.join(recipes.shipped())}, or a .yaml file")
        chosen = recipes.load(recipe, settings)
        folder = run_folder.RunFolder(out or run_folder.next_run_folder(recipe))
    if dry_run:
        from xcite.training import plan

        for line in plan.make(chosen).lines():
            say(line)
        if resume is None:
            folder.refuse_used()
        say(f"run folder       {folder.path} (not written: dry run)")
        return

    from xcite.figures.curves import draw_curves
    from xcite.training.loop import train as run

    try:
        outcome = run(
            chosen,
            folder.path,
            resume=resume is not None,
            checkpoint_file=checkpoint_file,
            draw=draw_curves,
        )
    except KeyboardInterrupt:
        say(f"stopped at once; {folder.path} stays as the last checkpoint left it", err=True)
        raise typer.Exit(130) from None
    if not outcome.finished:
        raise typer.Exit(130)


def _refuse_changes(before: object, after: object) -> None:
    """Raise XciteError when a resumed run would no longer be the same run."""
    for section in type(after).model_fields:  # type: ignore[attr-defined]
        old, new = getattr(before, section), getattr(after, section)
        for key in type(new).model_fields:
            if getattr(old, key) != getattr(new, key) and key not in MAY_DIFFER.get(section, ()):
                raise XciteError(
                    f"{section}.{key} is {getattr(old, key)} in this run; changing it would make a "
                    "resumed run differ: start a new one with init.weights set to this run"
                )
