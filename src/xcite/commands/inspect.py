"""`xcite inspect`: what a weights file or a teacher's cache holds."""

import json
from pathlib import Path

import typer

from xcite.commands.printing import say
from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.preprocessing import in_pixels
from xcite.training.teachers.card import facts, is_cache, markdown, rows
from xcite.weights.card import model_card
from xcite.weights.containers import listed
from xcite.weights.inspection import PartReport, Report
from xcite.weights.inspection import inspect as inspect_file
from xcite.weights.opening import locate
from xcite.whole_files import write_text

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    source: str = typer.Argument(
        help="A weights file, a run folder, a published name or a teacher cache."
    ),
    dialect: str = typer.Option(None, help="The file's dialect; recognised when not given."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    card: bool = typer.Option(False, "--card", help="Print a Markdown model card."),
    out: Path = typer.Option(None, help="Write the card or JSON to this file."),
    strict: bool = typer.Option(False, "--strict", help="Refuse tensors beside the model."),
    weights_dir: Path = typer.Option(None, help="Folder of published files."),
) -> None:
    """Say what weights or a teacher cache hold, without executing or reading their numbers."""
    folder = Path(source).expanduser()
    if is_cache(folder):
        cache = facts(folder)
        if as_json:
            values = cache.model_dump(mode="json")
            lines = json.dumps(values, indent=2, ensure_ascii=False).split("\n")
        elif card:
            lines = markdown(cache).split("\n")
        else:
            told = (*rows(cache), *cache.depends.items())
            lines = [f"{cache.folder}: a teacher cache"]
            lines += [f"  {title:<25} {text}" for title, text in told]
        _tell(lines, out)
        return
    path = locate(source, weights_dir=weights_dir)
    report = inspect_file(path, dialect=dialect)
    if as_json:
        values = report.model_dump(mode="json")
        lines = json.dumps(values, indent=2, ensure_ascii=False).split("\n")
    elif card:
        lines = "\n".join(model_card(report, part) for part in report.parts).split("\n")
    else:
        lines = _lines(report)
    _tell(lines, out)
    problems = [f"{part.part}: {part.problem}" for part in report.parts if part.problem]
    if strict:
        problems += [
            f"{part.part}: tensors that are not the model's: {listed(part.aside)}"
            for part in report.parts
            if part.aside
        ]
    if problems:
        raise XciteError("; ".join(problems))


def _tell(lines: list[str], out: Path | None) -> None:
    if out is not None:
        write_text(out, "".join(f"{visible(line)}\n" for line in lines))
    else:
        say(*lines)


def _lines(report: Report) -> list[str]:
    lines = [
        f"{report.file}: {report.container}, {report.bytes:,} bytes",
        f"  sha256         {report.sha256}",
        *(f"  note           {note}" for note in report.notes),
    ]
    for part in report.parts:
        lines += ["", f"part {part.part}", *(f"  {name:<14} {text}" for name, text in _rows(part))]
    return lines


def _rows(part: PartReport) -> list[tuple[str, str]]:
    rows = [("tensors", f"{part.tensors}, {', '.join(part.dtypes)}")]
    if part.dialect is None:
        return rows
    architecture = part.architecture or {}
    fields = ", ".join(f"{key}={value}" for key, value in architecture.items())
    rows += [
        ("dialect", part.dialect),
        ("variant", f"{part.family}, {part.variant or 'none of the published ones'}"),
        ("classes", str(part.classes or "none: a backbone")),
        ("parameters", f"{part.parameters:,}"),
        ("architecture", fields),
    ]
    if part.assumed:
        rows.append(("assumed", f"{', '.join(part.assumed)}: no tensor shows them"))
    rows += [("note", note) for note in part.notes]
    wanted = part.preprocessing
    rows.append(
        (
            "preprocessing",
            f"{in_pixels(wanted.size)} pixels, crop {wanted.crop_ratio:g}, {wanted.interpolation}, "
            f"mean {wanted.mean}, std {wanted.std}"
            if wanted
            else "not recorded",
        )
    )
    metadata = part.metadata
    if metadata is not None:
        names = metadata.class_names or []
        if names:
            rows.append(("class names", f"{', '.join(names[:3])} ... ({len(names)})"))
        if metadata.metrics:
            rows.append(("metrics", str(metadata.metrics)))
        if metadata.recipe_hash:
            rows.append(("recipe", metadata.recipe_hash))
        rows += [("provenance", f"{key}: {value}") for key, value in metadata.provenance.items()]
    return rows
