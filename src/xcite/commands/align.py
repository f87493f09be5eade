"""`xcite align`: prove that two engines, or an engine and a port, compute the same."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from xcite.commands.printing import cell, say

if TYPE_CHECKING:
    from xcite.alignment.comparison import Report, Row

app = typer.Typer(add_completion=False)


@app.command()
def align(
    recipe: str = typer.Argument(..., help="A shipped recipe's name or a YAML file."),
    settings: list[str] = typer.Option([], "--set", help="section.key=value, may be repeated."),
    steps: int = typer.Option(10, min=1, max=10_000, help="Steps of the loss curves."),
    batch: int = typer.Option(8, min=1, help="Pictures a step."),
    data: str = typer.Option("recipe", help="recipe: its training pictures; random: noise."),
    classes: int = typer.Option(None, min=1, help="With --data random; the variant's by default."),
    out: Path = typer.Option(None, help="Folder for alignment.json and .png; alignment/RECIPE."),
    sides: str = typer.Option(
        None, help="The two to compare, such as torch,torch:plain; by default paddle,torch."
    ),
    engine: str = typer.Option(
        None, help="paddle, torch or such as torch:plain: for --reference or --dump."
    ),
    reference: Path = typer.Option(None, help="Folder of somebody's own port, see below."),
    dump: Path = typer.Option(None, help="Write such a folder instead of comparing."),
) -> None:
    """Compare activations, loss, gradients, a step, running statistics and loss curves.

    Exit code 0: all within tolerance; 1: not, and the first diverging layer is named.

    A side is an engine, alone or with its operators: paddle, torch, paddle:fast, torch:plain.

    A reference folder holds weights.safetensors (or weights.* of any known dialect), inputs.npz
    ("images" float32 (B, C, H, W), normalised; "labels" (B,)), and any of activations.npz,
    activations_train.npz (patch_embed, blocks.0, ..., cls_attn_blocks.0, ..., norm, head; tokens as
    (B, N, C)) and gradients.npz (canonical names; mean cross entropy, training mode, no drop path;
    may hold "loss"). Write one with --dump to see an example, or to compare two processes.
    """
    from xcite import recipe as recipes
    from xcite.alignment.comparison import compare
    from xcite.alignment.dump import compare_with_dump, write_dump
    from xcite.alignment.measuring import Side, measure
    from xcite.alignment.trial import prepare
    from xcite.engines import NAMES, engine_package
    from xcite.errors import XciteError

    if data not in ("recipe", "random"):
        raise XciteError(f"--data is {data!r}; choose recipe or random")
    one = reference is not None or dump is not None
    if engine is not None and not one:
        raise XciteError("--engine is for --reference or --dump; name two sides with --sides")
    if sides is not None and one:
        raise XciteError("--sides compares two engines; with --reference or --dump use --engine")
    pair = [Side.parse(name.strip()) for name in (sides or ",".join(NAMES)).split(",")]
    if len({side.name for side in pair}) != 2 or len(pair) != 2:
        raise XciteError(f"--sides is {sides!r}; name two that differ, such as torch,torch:plain")
    only = Side.parse(engine or NAMES[0])
    fixed = [f"optim.batch={batch}", "optim.lr_per=null", "optim.accumulate=1", "data.workers=0"]
    chosen = recipes.load(recipe, [*settings, *fixed])
    given, notes = prepare(chosen, steps, random=data == "random", classes=classes)
    if dump is not None:
        write_dump(only, given, dump)
        say(f"wrote {dump}; compare with: xcite align {recipe} --reference {dump}")
        return
    model = chosen.model.name
    if reference is not None:
        report = compare_with_dump(only, given, reference, model)
    else:
        for side in pair:
            engine_package(side.engine)  # both must be there before either works for a minute
        first, second = (measure(side, given) for side in pair)
        report = compare(model, first, second, notes)
    folder = out or Path("alignment") / Path(recipe).stem
    write(report, folder)
    show(report)
    say("", f"wrote {folder / 'alignment.json'} and {folder / 'alignment.png'}")
    raise typer.Exit(0 if report.within else 1)


def write(report: "Report", folder: Path) -> None:
    """Write the report as JSON and as a picture."""
    from xcite.figures.alignment import draw_alignment
    from xcite.whole_files import write_text

    write_text(folder / "alignment.json", json.dumps(report.to_json(), indent=2) + "\n")
    draw_alignment(report, folder / "alignment.png")


# column heads that fit a terminal of 80 characters
_BRIEF = {
    "activations, evaluation": "outputs,\nevaluation",
    "activations, training": "outputs,\ntraining",
    "one optimiser step": "one step",
    "running statistics": "running\nstatistics",
}


def show(report: "Report") -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.table import Table

    from xcite.alignment.comparison import CURVE, LOSS, TOLERANCES

    console = Console()
    kinds = [kind for kind in TOLERANCES if any(row.kind == kind for row in report.rows)]
    console.print(cell(f"{report.model}: {' against '.join(report.sides)}"), highlight=False)
    for note in report.notes:
        console.print(cell(f"note: {note}"), highlight=False)
    by_layer = [kind for kind in kinds if kind not in (LOSS, CURVE)]
    cells = {(row.group, row.kind): row for row in report.rows if row.kind in by_layer}
    table = Table(title="largest relative difference, by layer group", title_justify="left")
    table.add_column("layer group", no_wrap=True)
    for kind in by_layer:
        table.add_column(_BRIEF.get(kind, kind), justify="right")
    for group in report.groups:
        row = [cells.get((group, kind)) for kind in by_layer]
        table.add_row(cell(group), *("" if found is None else _cell(found) for found in row))
    console.print(table)
    losses = list(report.losses.values())
    if len(losses) == 2:
        table = Table("step", *(f"loss, {side}" for side in report.losses), "relative difference")
        curve = [row for row in report.rows if row.kind == CURVE]
        for number, (a, b, row) in enumerate(zip(*losses, curve, strict=True), 1):
            if len(curve) <= 20 or number % (len(curve) // 10) == 0:
                table.add_row(str(number), f"{a:.6f}", f"{b:.6f}", _cell(row))
        console.print(table)
    table = Table("what", "worst", "tolerance", "why so much")
    for kind in kinds:
        worst = max((row for row in report.rows if row.kind == kind), key=lambda row: row.relative)
        tolerance = TOLERANCES[kind]
        table.add_row(kind, _cell(worst), f"{tolerance.limit:.0e}", tolerance.reason)
    console.print(table)
    if report.first_diverging is None:
        console.print("[green]aligned[/green]: all within tolerance")
    else:
        console.print(f"[red]not aligned[/red]: first apart in {cell(report.first_diverging)}")


def _cell(row: "Row") -> str:
    text = f"{row.relative:.1e}"
    return text if row.within else f"[red]{text}[/red]"
