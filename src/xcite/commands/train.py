"""`xcite train`: from a recipe, or from pictures alone, to a run folder."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr

if TYPE_CHECKING:
    from xcite.recipe import Recipe
    from xcite.training.run_folder import RunFolder

app = typer.Typer(add_completion=False)


@app.command()
def train(
    what: str = typer.Argument(
        None,
        metavar="[RECIPE|PICTURES]",
        help="A shipped recipe's name, a .yaml file, or pictures: a folder of class folders or of "
        "train and val, an archive, a list.",
    ),
    settings: list[str] = typer.Option(
        [], "--set", metavar="A.B=C", help="Change a value of the recipe; may be repeated."
    ),
    engine: str = typer.Option(None, help="paddle or torch; default: the recipe's."),
    device: str = typer.Option(None, help="auto, cpu, gpu, cuda:1, ...: --set run.device=..."),
    weights: str = typer.Option(None, help="Start from these weights: --set init.weights=..."),
    reset_head: bool = typer.Option(
        False, "--reset-head", help="Draw the classifier anew: --set init.reset_head=true"
    ),
    epochs: int = typer.Option(None, help="--set optim.epochs=..."),
    batch: int = typer.Option(None, help="Pictures a step: --set optim.batch=..."),
    lr: float = typer.Option(None, help="Learning rate: --set optim.lr=..."),
    size: str = typer.Option(
        None, help="Input pixels, 224 or 224x320 (height x width): --set preprocessing.size=..."
    ),
    workers: int = typer.Option(None, help="Loader processes: --set data.workers=..."),
    columns: str = typer.Option(
        None, help="Of a CSV or parquet: columns of path and label: --set data.columns=image,label"
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
    processes: str = typer.Option(
        None,
        metavar="N|auto",
        help="Train with so many processes on this machine; auto: one a GPU.",
    ),
    hosts: str = typer.Option(
        None,
        metavar="N|MIN:MAX",
        help="Machines that train together; type the same line on each. A range goes on with fewer "
        "when one is lost (PyTorch).",
    ),
    rendezvous: str = typer.Option(
        None, metavar="HOST:PORT", help="Where the machines meet: one of them, and a free port."
    ),
    restarts: int = typer.Option(
        None,
        min=0,
        help="How often to start again from the last checkpoint when a process is lost; default: "
        "0, with a range of machines 3.",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and train nothing."),
) -> None:
    """Train a model as a recipe says, or on pictures with a recipe fitted to them."""
    from xcite.commands import launching
    from xcite.training import run_folder

    settings = with_options(
        settings,
        {
            "run.engine": engine,
            "run.device": device,
            "init.weights": weights,
            "init.reset_head": "true" if reset_head else None,
            "optim.epochs": epochs,
            "optim.batch": batch,
            "optim.lr": lr,
            "preprocessing.size": parse_size(size),
            "data.workers": workers,
            "data.columns": columns,
        },
    )
    if resume is not None and (what or out or auto_resume):
        raise XciteError(
            "--resume takes recipe and folder from the run; leave out RECIPE, --out and "
            "--auto-resume"
        )
    group = launching.group(processes, hosts, rendezvous, restarts)
    if group and (out or resume) is None and group.hosts[1] > 1:
        raise XciteError(
            "several machines need --out, a folder that all of them share, as the run's number "
            "could differ"
        )
    start = _resumed(resume, settings) if resume else _begun(what, settings, out, auto_resume)
    if group and not dry_run:
        begins = ["--resume", str(resume)] if resume else [str(what)]
        begins += [part for setting in settings for part in ("--set", setting)]
        begins += ["--allow-changes"] if allow_changes else []
        folder = start.folder.path
        if not start.resume:
            folder = launching.claim(folder, numbered=start.numbered)
        if not resume:
            begins += ["--out", str(folder), "--auto-resume"]
        code = launching.launch(
            group, start.recipe.run.engine, begins, folder, debug="--debug" in sys.argv
        )
        if code:
            raise typer.Exit(code)
        return
    for note in start.notes:
        say(note)
    if dry_run:
        from xcite.training import plan

        run = start.folder.path if start.resume else None
        say(*plan.make(start.recipe, run=run).lines())
        path = start.folder.path
        shown = run_folder.next_run_folder(path) if start.numbered else path
        if not start.resume:
            run_folder.RunFolder(shown).refuse_used()
        said = tr("{folder} (not written: dry run)", folder=shown)
        say(plan.line(tr("run folder"), said))
        return

    from xcite.figures.curves import draw_curves
    from xcite.training.loop import train as train_run

    try:
        outcome = train_run(
            start.recipe,
            start.folder.path,
            resume=start.resume,
            numbered=start.numbered,
            allow_changes=allow_changes,
            checkpoint_file=start.checkpoint,
            draw=draw_curves,
        )
    except KeyboardInterrupt as stopped:
        say(str(stopped) or tr("stopped before the run began"), err=True)
        raise typer.Exit(130) from None
    except OSError as error:  # of a disk or a file system that fails where nothing else can
        raise XciteError(f"{error.filename}: {error.strerror or error}") from error
    if not outcome.finished:
        raise typer.Exit(130)


@dataclass(frozen=True)
class _Start:
    """What is trained where; `xcite.training.loop.train` says what the rest means."""

    recipe: "Recipe"
    folder: "RunFolder"
    notes: tuple[str, ...] = ()
    resume: bool = False
    numbered: bool = False
    checkpoint: Path | None = None


def with_options(settings: list[str], options: Mapping[str, object]) -> list[str]:
    """Settings with those of short options added; None stands for an option that is not given.

    Raises:
        XciteError: an option and a setting say two things about one key.
    """
    said = {key.strip(): value.strip() for key, _, value in (s.partition("=") for s in settings)}
    more = []
    for key, value in options.items():
        if value is None:
            continue
        if key in said and not _same(said[key], str(value)):
            raise XciteError(
                f"--set {key}={said[key]} and an option that means --set {key}={value}: give one"
            )
        more.append(f"{key}={value}")
    return [*settings, *more]


def _same(one: str, other: str) -> bool:
    """Whether two values of a setting mean the same: 1e-3 and 0.001 do."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one.replace(" ", "") == other.replace(" ", "")


def parse_size(size: str | None) -> str | None:
    """``--size`` as a setting: a side, or [height, width]."""
    if size is None or "x" not in size.lower():
        return size
    return f"[{', '.join(size.lower().split('x'))}]"


def _inside(folder: Path, pictures: Path) -> bool:
    """Whether a folder lies in that of the pictures."""
    return pictures.is_dir() and folder.resolve().is_relative_to(pictures.resolve())


def _resumed(run: Path, settings: list[str]) -> _Start:
    from xcite import recipe as recipes
    from xcite.processes import environment
    from xcite.training.run_folder import RunFolder

    checkpoint = None
    if run.suffix == ".safetensors":
        checkpoint, run = run, run.parent
        if environment.restarted():  # it went on from there and has saved since
            checkpoint = None
    folder = RunFolder.open(run)
    recipe = recipes.load(str(folder.recipe), settings)
    return _Start(recipe, folder, resume=True, checkpoint=checkpoint)


def _begun(what: str | None, settings: list[str], out: Path | None, auto_resume: bool) -> _Start:
    from xcite import recipe as recipes
    from xcite.training.fitting import names_pictures, recipe_for
    from xcite.training.run_data import require_pictures
    from xcite.training.run_folder import RunFolder, stem

    if not what:
        raise XciteError(
            f"give a recipe: {', '.join(recipes.shipped())}, or a .yaml file; or pictures: a "
            "folder of class folders, an archive, a list"
        )
    if auto_resume and out is None:
        raise XciteError("--auto-resume needs --out, the folder of the run")
    folder = RunFolder(out or Path("runs") / stem(what))
    resume, numbered = auto_resume and folder.recipe.is_file(), out is None
    notes: list[str] = []
    if not names_pictures(what):
        recipe = recipes.load(what, settings)
        require_pictures(recipe, what)
        if what in recipes.shipped() and Path(what).exists():
            notes = [
                tr(
                    "note: {what} is taken for the shipped recipe; ./{what} names the pictures",
                    what=what,
                )
            ]
    elif resume:  # fitted once; by now other weights may lie here
        recipe = recipes.load(str(folder.recipe), settings)
    else:
        recipe, notes = recipe_for(what, settings)
        if recipe.data.validation is None and _inside(folder.path, Path(what).expanduser()):
            raise XciteError(
                f"the run folder {folder.path} would lie among the pictures, as a class of its own;"
                " give another --out, or start from the folder above them"
            )
    return _Start(recipe, folder, tuple(notes), resume, numbered)
