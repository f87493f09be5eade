"""`xcite slurm`: a batch script that trains on a cluster, to look at, change and submit."""

import sys
from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr

app = typer.Typer(add_completion=False)


@app.command()
def slurm(
    what: str = typer.Argument(
        ..., metavar="RECIPE|PICTURES", help="What to train on, as for `xcite train`."
    ),
    settings: list[str] = typer.Option(
        [], "--set", metavar="A.B=C", help="Change a value of the recipe; may be repeated."
    ),
    engine: str = typer.Option(None, help="paddle or torch; default: the recipe's."),
    nodes: int = typer.Option(1, min=1, help="Machines."),
    gpus: int = typer.Option(1, min=0, help="GPUs of each machine; 0 trains on processors."),
    processes: int = typer.Option(
        None, min=1, help="Processes on each machine; default: one for each GPU."
    ),
    cpus: int = typer.Option(None, min=1, help="Cores of each process."),
    time: str = typer.Option(None, help="Time limit of the job, such as 1-00:00:00."),
    partition: str = typer.Option(None, help="Partition to queue in."),
    account: str = typer.Option(None, help="Account to charge."),
    out: Path = typer.Option(
        None, help="The run folder, which all nodes share; default: runs/<recipe>-slurm."
    ),
    file: Path = typer.Option(
        None, "--script", metavar="FILE", help="Write the script there instead of printing it."
    ),
) -> None:
    """Write a batch script that trains, is queued again when its time is over, and goes on."""
    from xcite.processes.slurm import Job, script
    from xcite.training.run_folder import stem
    from xcite.whole_files import write_text

    if not gpus and processes is None:
        raise XciteError("--gpus 0 needs --processes, the number on each machine")
    train = [what, *(["--engine", engine] if engine else [])]
    train += [part for setting in settings for part in ("--set", setting)]
    text = script(
        Job(
            name=f"xcite-{stem(what)}",
            python=sys.executable,
            train=tuple(train),
            out=str(out or Path("runs") / f"{stem(what)}-slurm"),
            nodes=nodes,
            gpus=gpus,
            processes=processes or gpus,
            cpus=cpus,
            time=time,
            partition=partition,
            account=account,
        )
    )
    if file is None:
        sys.stdout.write(text)
        return
    if file.exists():
        raise XciteError(f"{file} already exists; give another --script")
    write_text(file, text)
    say(tr("{file} is written; submit it with: sbatch {file}", file=file))
