"""`xcite export`: weights to a checked bundle."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError

from xcite.commands.printing import say
from xcite.errors import XciteError
from xcite.language import tr
from xcite.preprocessing import Preprocessing

if TYPE_CHECKING:
    from xcite.weights import WeightFile

app = typer.Typer(add_completion=False)

SPELLINGS = {"float32": "f32", "float16": "f16", "fp16": "f16", "bfloat16": "bf16"}


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
    format: str = typer.Option(
        "openvino", help="onnx, openvino, paddle, or auto: the fastest here."
    ),
    precision: str = typer.Option("f32", help="f32, f16 (ONNX), bf16 or int8 (OpenVINO), or auto."),
    opset: int = typer.Option(None, help="ONNX's operator set, 13 to 23; default: 20."),
    size: str = typer.Option(
        None, help="Input pixels: 224, 224x320 (height x width) or dynamic; default as trained."
    ),
    pictures: str = typer.Option(
        None, help="Pictures to compare and calibrate on: folder, shards, list file or 'digits'."
    ),
    validation: str = typer.Option(None, help="Labelled pictures to measure top-1 on."),
    max_drop: float = typer.Option(1.0, min=0.0, help="Points of top-1 that may be lost."),
    engine: str = typer.Option(None, help="paddle or torch: what the graph is compared with."),
    classes: str = typer.Option(
        None, help="Names of the classes: a file with a name a line, or imagenet."
    ),
    mean: str = typer.Option(
        None, help="Mean of each channel, as 0.5,0.5,0.5, of pixels of 0..1; with --std."
    ),
    std: str = typer.Option(None, help="Deviation of each channel."),
) -> None:
    """Make a checked bundle for CPU deployment; of weights without classifier one of embeddings."""
    from xcite.export.export import export as make
    from xcite.export.options import ExportOptions
    from xcite.runtime.classes import given_classes
    from xcite.weights import open_weights

    precision = SPELLINGS.get(precision, precision)
    fixed, dynamic = _parse_size(size)
    options = ExportOptions(
        format=format,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        opset=opset,
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
    if classes is not None:
        opened.metadata.class_names = given_classes(classes, opened.architecture.num_classes)
    if mean is not None or std is not None:
        opened.metadata.preprocessing = _normalised(opened, mean, std)
    info = make(opened, out, options, called=weights, say=say)
    megabytes = sum((out / name).stat().st_size for name in info.files) / 2**20
    wrote = {"bundle": out, "format": info.format, "precision": info.precision, "size": megabytes}
    say(tr("wrote {bundle}: {format}, {precision}, {size:.1f} MiB", **wrote))
    if info.answer == "logits":
        say(tr("serve it with: {command}", command=f"xcite serve {shlex.quote(str(out))}"))
    else:
        say(tr("in Python: {code}", code=f"xcite.Predictor({str(out)!r}).embed(pictures)"))


def _usual_place(weights: str) -> Path:
    path = Path(weights)
    if path.is_dir():
        return path / "bundle"
    name = path.name.rsplit(".", 1)[0] if path.is_file() else path.name
    return Path(f"{name}-bundle")


def _normalised(weights: "WeightFile", mean: str | None, std: str | None) -> Preprocessing:
    """What the weights say of their preprocessing, with another mean and deviation."""
    if mean is None or std is None:
        raise XciteError("--mean and --std belong together; give both")
    values = {"mean": _parse_numbers("--mean", mean), "std": _parse_numbers("--std", std)}
    for name, numbers in values.items():
        if len(numbers) != weights.architecture.in_chans:
            raise XciteError(
                f"--{name} has {len(numbers)} values for {weights.architecture.in_chans} channels"
            )
    known = weights.metadata.preprocessing or weights.architecture.preprocessing
    try:
        return Preprocessing.model_validate(known.model_dump() | values)
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise XciteError(f"--mean and --std cannot be used: {reason}") from error


def _parse_numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise XciteError(f"{option} is {text!r}; give numbers such as 0.5,0.5,0.5") from None


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
