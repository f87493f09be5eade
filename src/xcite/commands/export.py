"""`xcite export`: weights to a checked bundle."""

import shlex
from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr

app = typer.Typer(add_completion=False)


@app.command()
def export(
    weights: str = typer.Argument(
        help="Run folder, weights file of any dialect, or published name."
    ),
    out: Path = typer.Argument(
        None,
        help="Folder of the bundle; an earlier bundle is replaced. Default: `bundle` in a run "
        "folder, else <weights>-bundle here.",
    ),
    format: str = typer.Option("openvino", help="onnx, openvino or paddle."),
    precision: str = typer.Option("f32", help="f32, bf16 or int8."),
    size: str = typer.Option(
        None, help="Input pixels: 224, 224x320 (height x width) or dynamic; default as trained."
    ),
    pictures: str = typer.Option(
        None, help="Pictures to compare and calibrate on: folder, shards, list file or 'digits'."
    ),
    validation: str = typer.Option(None, help="Labelled pictures to measure top-1 on."),
    max_drop: float = typer.Option(1.0, min=0.0, help="Points of top-1 that may be lost."),
    engine: str = typer.Option(None, help="paddle or torch: what the graph is compared with."),
) -> None:
    """Make a checked bundle for CPU deployment."""
    from xcite.export.export import export as make
    from xcite.export.options import ExportOptions
    from xcite.weights import open_weights

    fixed, dynamic = _parse_size(size)
    options = ExportOptions(
        format=format,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        size=fixed,
        dynamic=dynamic,
        pictures=pictures,
        validation=validation,
        max_drop=max_drop,
        engine=engine,
    )
    out = out or _usual_place(weights)
    opened = open_weights(weights)
    opened.metadata.provenance["weights"] = Path(weights).name
    info = make(opened, out, options, called=weights, say=say)
    megabytes = sum((out / name).stat().st_size for name in info.files) / 2**20
    wrote = {"bundle": out, "format": info.format, "precision": info.precision, "size": megabytes}
    say(
        tr("wrote {bundle}: {format}, {precision}, {size:.1f} MiB", **wrote),
        tr("serve it with: {command}", command=f"xcite serve {shlex.quote(str(out))}"),
    )


def _usual_place(weights: str) -> Path:
    path = Path(weights)
    if path.is_dir():
        return path / "bundle"
    name = path.name.rsplit(".", 1)[0] if path.is_file() else path.name
    return Path(f"{name}-bundle")


def _parse_size(size: str | None) -> tuple[tuple[int, int] | None, bool]:
    """(height and width, whether dynamic)."""
    if size is None or size == "dynamic":
        return None, size == "dynamic"
    try:
        sides = [int(side) for side in size.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise XciteError(f"--size is {size!r}; give pixels such as 224 or 224x320, or dynamic")
    return (sides[0], sides[-1]), False
