"""`xcite status`: where a run stands."""

import time
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def status(
    run: Path = typer.Argument(..., help="A run folder."),
    watch: bool = typer.Option(False, "--watch", help="Again every few seconds, until it ends."),
    seconds: float = typer.Option(5.0, min=0.1, help="Between two looks with --watch."),
) -> None:
    """Say where a run stands, how its checkpoints are, and how to go on."""
    from xcite.training.status import StatusReader

    reader = StatusReader(run)
    while True:
        found = reader.read()
        typer.echo("\n".join(found.lines()))
        if not (watch and found.owner):
            return
        time.sleep(seconds)
        typer.echo("")
