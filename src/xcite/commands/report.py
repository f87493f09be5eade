"""`xcite report`: one HTML page about a run."""

from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.language import tr

app = typer.Typer(add_completion=False)


@app.command()
def report(
    run: Path = typer.Argument(..., help="Run folder."),
    data: str = typer.Option(None, help="Validation pictures; by default the recipe's."),
    out: Path = typer.Option(None, help="HTML to write; by default RUN/report.html."),
    engine: str = typer.Option(None, help="paddle or torch; by default the run's."),
    pictures: int = typer.Option(8, min=0, help="Best and worst pictures shown, of each."),
) -> None:
    """Write one self-contained HTML page about a run.

    Recipe, curves, confusion, the best and worst pictures with attention, cost, environment.
    """
    from xcite.figures.report import write_report

    out = out or run / "report.html"
    write_report(run, out, data=data, engine=engine, pictures=pictures)
    say(tr("wrote {files}", files=out))
