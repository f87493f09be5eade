"""A model card in Markdown, from what a weights file says about itself."""

import re

from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.variants import find
from xcite.weights import catalog
from xcite.weights.inspection import PartReport, Report
from xcite.weights.metadata import Metadata


def model_card(report: Report, part: PartReport) -> str:
    """The card of one model of a file; says "not recorded" where the file does not say."""
    metadata = part.metadata
    name = part.variant or report.file.rsplit(".", 1)[0]
    published = {entry.name: entry for entry in catalog.entries()}.get(part.variant or "")
    rows = [
        ("Model", f"{part.family or 'unknown'}, variant {cell(part.variant or 'of its own')}"),
        ("Parameters", f"{part.parameters:,}" if part.parameters else "unknown"),
        ("Classes", str(part.classes) if part.classes else "none: gives features"),
        ("Number types", ", ".join(part.dtypes)),
        ("Licence", published.licence if published else "not recorded"),
        ("File", f"{cell(report.file)}, {report.bytes:,} bytes, {report.container}"),
        ("SHA-256", report.sha256),
    ]
    lines = [f"# {cell(name)}", "", "| | |", "|---|---|"]
    lines += [f"| {title} | {text} |" for title, text in rows]
    lines += ["", "## Input", ""]
    if part.preprocessing is not None:
        wanted = part.preprocessing
        lines.append(
            f"{wanted.channels} channels; {_resized(wanted)} ({wanted.interpolation}), the centre "
            f"{wanted.height} x {wanted.width} cut out, then mean {_numbers(wanted.mean)} taken "
            f"off and divided by {_numbers(wanted.std)}."
        )
    else:
        lines.append("Not recorded: the file does not say how its pictures were prepared.")
    lines += ["", "## Measured", ""]
    if metadata is not None and metadata.metrics:
        lines += [f"- {cell(key)}: {cell(value)}" for key, value in metadata.metrics.items()]
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
    lines += [f"- {cell(key)}: {cell(value)}" for key, value in provenance.items()]
    if not provenance:
        lines.append("Not recorded.")
    if part.assumed:
        lines += ["", f"Not readable from the weights, so assumed: {', '.join(part.assumed)}."]
    lines += ["", "## Architecture", "", "| field | value |", "|---|---|"]
    lines += [f"| {key} | {cell(value)} |" for key, value in (part.architecture or {}).items()]
    if metadata is not None and metadata.class_names:
        shown = [cell(name) for name in metadata.class_names[:20]]
        more = len(metadata.class_names) - len(shown)
        lines += ["", "## Classes", "", ", ".join(shown) + (f" and {more} more" if more else "")]
    lines += ["", "## Use", "", "```python", "import xcite", "", f"path = {report.file!r}"]
    lines += [_use(part), "```", ""]
    return "\n".join(lines)


def _use(part: PartReport) -> str:
    """A line of Python that opens the weights at ``path``: as a model, where they name a known one.

    Names are quoted as Python does: they are a stranger's text.
    """
    fields = part.architecture or {}
    try:
        usual = Metadata(architecture=find(part.variant or "")).architecture or {}
    except XciteError:
        usual = {}
    if usual.keys() != fields.keys() or not usual:
        return "weights = xcite.weights.open_weights(path)"
    changed = "".join(f", {k}={v!r}" for k, v in fields.items() if v != usual[k])
    call = f"xcite.create_model({part.variant!r}, weights=path{changed})"
    return f"model = {call}  # engine='paddle' or 'torch'"


def _resized(wanted: Preprocessing) -> str:
    if isinstance(wanted.size, int):
        return f"the shorter side resized to {round(wanted.size / wanted.crop_ratio)} pixels"
    height, width = (round(side / wanted.crop_ratio) for side in wanted.size)
    return f"resized to cover {height} x {width} pixels"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def cell(value: object) -> str:
    """A stranger's text on one line, unable to start a table, tag, link or formula of its own."""
    text = visible(" ".join(str(value).split())[:300])
    # Underscores inside words mean nothing.
    return re.sub(r"([\\`|<>\[\]*&$~]|(?<!\w)_|_(?!\w))", r"\\\1", text)
