"""`xcite models`: the table of architectures and published models."""

import typer

from xcite.canonical import parameter_count
from xcite.commands.printing import say, say_json
from xcite.variants import ARCHITECTURES, list_models, published

app = typer.Typer(add_completion=False)


@app.command()
def models(
    pattern: str = typer.Argument(None, help="Part of a name; * and ? stand for anything."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List architectures and published models with parameters and published top-1."""
    chosen = set(list_models(pattern))
    rows = [
        (name, parameter_count(architecture), None, None)
        for name, architecture in ARCHITECTURES.items()
        if name in chosen
    ] + [
        (row.name, parameter_count(ARCHITECTURES[row.architecture]), row.resolution, row.top1)
        for row in published()
        if row.name in chosen
    ]
    if as_json:
        keys = ("name", "parameters", "resolution", "published_top1")
        say_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    if not rows:
        say(f"no model matches {pattern!r}")
        raise typer.Exit(2)
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "parameters", "resolution", "published top-1", box=None)
    for name, parameters, resolution, top1 in rows:
        table.add_row(
            name,
            f"{parameters / 1e6:.2f} M",
            str(resolution or "any"),
            f"{top1:.1f} %" if top1 else "",
        )
    Console().print(table)
