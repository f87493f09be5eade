"""`xcite train`: from a recipe to a run folder."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr

app = typer.Typer(add_completion=False)


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
    auto_resume: bool = typer.Option(
        False,
        "--auto-resume",
        help="For scripts that are started again: begin in --out, go on if a run is there, do "
        "nothing if it is finished.",
    ),
    allow_changes: bool = typer.Option(
        False,
        "--allow-changes",
        help="Go on though settings or data make the result another one; history.jsonl says so.",
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
    numbered = False
    if resume is not None:
        if recipe or out or auto_resume:
            raise XciteError(
                "--resume takes recipe and folder from the run; leave out RECIPE, --out and "
                "--auto-resume"
            )
        if resume.suffix == ".safetensors":
            checkpoint_file, resume = resume, resume.parent
        folder = run_folder.RunFolder.open(resume)
        chosen = recipes.load(str(folder.recipe), settings)
    else:
        if not recipe:
            raise XciteError(f"give a recipe: {', '.join(recipes.shipped())}, or a .yaml file")
        if auto_resume and out is None:
            raise XciteError("--auto-resume needs --out, the folder of the run")
        chosen = recipes.load(recipe, settings)
        numbered = out is None
        folder = run_folder.RunFolder(out or Path("runs") / run_folder.stem(recipe))
        if auto_resume and folder.recipe.is_file():
            resume = folder.path
    if dry_run:
        from xcite.training import plan

        for line in plan.make(chosen).lines():
            say(line)
        shown = run_folder.next_run_folder(folder.path) if numbered else folder.path
        if resume is None:
            run_folder.RunFolder(shown).refuse_used()
        say(f"run folder       {shown} (not written: dry run)")
        return

    from xcite.figures.curves import draw_curves
    from xcite.training.loop import train as run

    try:
        outcome = run(
            chosen,
            folder.path,
            resume=resume is not None,
            numbered=numbered,
            allow_changes=allow_changes,
            checkpoint_file=checkpoint_file,
            draw=draw_curves,
        )
    except KeyboardInterrupt as stopped:
        say(str(stopped) or tr("stopped before the run began"), err=True)
        raise typer.Exit(130) from None
    except OSError as error:  # of a disk or a file system that fails where nothing else can
        raise XciteError(f"{error.filename}: {error.strerror or error}") from error
    if not outcome.finished:
        raise typer.Exit(130)
