"""A model card in Markdown, from what a weights file says about itself."""

import re

from xcite.weights import catalog
from xcite.weights.inspection import PartReport, Report


def model_card(report: Report, part: PartReport) -> str:
    """The card of one model of a file; says "not recorded" where the file does not say."""
    metadata = part.metadata
    name = part.variant or report.file.rsplit(".", 1)[0]
    published = {entry.name: entry for entry in catalog.entries()}.get(part.variant or "")
    rows = [
        ("Model", f"{part.family or 'unknown'}, variant {_cell(part.variant or 'of its own')}"),
        ("Parameters", f"{part.parameters:,}" if part.parameters else "unknown"),
        ("Classes", str(part.classes) if part.classes else "none: gives features"),
        ("Number types", ", ".join(part.dtypes)),
        ("Licence", published.licence if published else "not recorded"),
        ("File", f"{_cell(report.file)}, {report.bytes:,} bytes, {report.container}"),
        ("SHA-256", report.sha256),
    ]
    lines = [f"# {_cell(name)}", "", "| | |", "|---|---|"]
    lines += [f"| {title} | {text} |" for title, text in rows]
    lines += ["", "## Input", ""]
    if part.preprocessing is not None:
        wanted = part.preprocessing
        lines.append(
            f"{wanted.channels} channels; the shorter side resized to "
            f"{round(wanted.size / wanted.crop_ratio)} pixels ({wanted.interpolation}), the centre "
            f"{wanted.size} x {wanted.size} cut out, then mean {_numbers(wanted.mean)} taken "
            f"off and divided by {_numbers(wanted.std)}."
        )
    else:
        lines.append("Not recorded: the file does not say how its pictures were prepared.")
    lines += ["", "## Measured", ""]
    if metadata is not None and metadata.metrics:
        lines += [f"- {_cell(key)}: {_cell(value)}" for key, value in metadata.metrics.items()]
    elif published is not None:
        lines.append(
            f"Published by its authors: {published.top1:.1f} % ({published.note}, ImageNet-1k, "
            f"{published.resolution} pixels, {published.url}). Not measured on this file."
        )
    else:
        lines.append("Nothing is recorded.")
    lines += ["", "## Where it comes from", ""]
    provenance = dict(metadata.provenance) if metadata is not None else {}
    if metadata is not None and metadata.recipe_hash:
        provenance["recipe hash"] = metadata.recipe_hash
    lines += [f"- {_cell(key)}: {_cell(value)}" for key, value in provenance.items()]
    if not provenance:
        lines.append("Not recorded.")
    if part.assumed:
        lines += ["", f"Not readable from the weights, so assumed: {', '.join(part.assumed)}."]
    lines += ["", "## Architecture", "", "| field | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in (part.architecture or {}).items()]
    if metadata is not None and metadata.class_names:
        shown = [_cell(name) for name in metadata.class_names[:20]]
        more = len(metadata.class_names) - len(shown)
        lines += ["", "## Classes", "", ", ".join(shown) + (f" and {more} more" if more else "")]
    build = f'xcite.create_model("{part.variant}", num_classes={part.classes}, weights=path)'
    lines += ["", "## Use", "", "```python", "import xcite", "", f'path = "{_cell(report.file)}"']
    if part.variant is not None:
        lines.append(f"model = {build}  # engine='paddle' or 'torch'")
    else:
        lines.append("weights = xcite.weights.open_weights(path)")
    lines += ["```", ""]
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(value: object) -> str:
    """A stranger's text on one line, unable to start a table, a tag or a link of its own."""
    text = " ".join(str(value).split())[:300]
    return re.sub(r"([\\`|<>\[\]*])", r"\\\1", text)
