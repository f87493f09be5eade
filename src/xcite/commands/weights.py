"""`xcite weights`: the published files, and a way to fetch them beforehand."""

from pathlib import Path

import typer

from xcite.commands.printing import say, say_json
from xcite.errors import XciteError
from xcite.machine import is_temporary
from xcite.weights import catalog

app = typer.Typer(add_completion=False)


@app.command()
def weights(
    pattern: str = typer.Argument(None, help="Part of a name; * and ? stand for anything."),
    fetch: bool = typer.Option(False, "--fetch", help="Fetch what matches into the cache."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    weights_dir: Path = typer.Option(None, help="Folder that holds published files."),
    mirror: str = typer.Option(
        None, envvar="XCITE_MIRROR", help="Address of a folder with the published files."
    ),
) -> None:
    """List published weights with source, published top-1 and licence, or fetch them."""
    chosen = catalog.matching(pattern)
    if not chosen:
        catalog.find(pattern)  # names the nearest
    kept = catalog.cache_folder()
    if fetch:
        if is_temporary(kept):
            raise XciteError(
                "no home folder to keep weights in can be written to; set XDG_CACHE_HOME to a "
                "folder that can"
            )
        for entry in chosen:
            say(_fetch(entry, weights_dir, mirror))
        return
    rows = [(entry, catalog.present(entry, weights_dir=weights_dir)) for entry in chosen]
    if as_json:
        say_json(
            [
                {
                    "name": entry.name,
                    "url": entry.url,
                    "architecture": entry.architecture,
                    "resolution": entry.resolution,
                    "classes": entry.classes,
                    "published_top1": entry.top1,
                    "note": entry.note,
                    "licence": entry.licence,
                    "file": str(path) if path else None,
                }
                for entry, path in rows
            ],
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("name", "side", "published top-1", "trained", "licence", "here"):
        table.add_column(title, no_wrap=title == "name")
    for entry, path in rows:
        here = "yes" if path else "no"
        table.add_row(
            entry.name,
            str(entry.resolution),
            f"{entry.top1:.1f} %",
            entry.note,
            entry.licence,
            here,
        )
    Console().print(table)
    place = "nowhere without a home: set XDG_CACHE_HOME" if is_temporary(kept) else f"in {kept}"
    say(f"kept {place}; sources: xcite weights --json")


def _fetch(entry: catalog.Entry, weights_dir: Path | None, mirror: str | None) -> str:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(entry.name, total=None)

        def shown(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)

        path = catalog.obtain(entry, weights_dir=weights_dir, mirror=mirror, progress=shown)
    return f"{entry.name}: {path}"
