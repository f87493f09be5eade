"""What was found in a source of pictures, in words."""

import io

import numpy as np
from PIL import Image

from xcite.data.decoding import FORMATS
from xcite.data.sources import Source
from xcite.errors import XciteError

SAMPLE = 16  # pictures whose size is looked at


def describe(source: Source) -> list[str]:
    """Lines for people: pictures and classes, what was left out, what looks wrong."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    line = f"{len(source):,} pictures of {len(source.class_names):,} classes"
    if len(counts) > 1 and counts[smallest] != counts[largest]:
        line += (
            f", from {counts[smallest]:,} ({source.class_names[smallest]})"
            f" to {counts[largest]:,} ({source.class_names[largest]}) each"
        )
    elif len(counts) > 1:
        line += f", {counts[largest]:,} each"
    lines = [line + _sizes(source)]
    if source.found.left_out:
        kinds = [
            f"{count:,} {kind} ({source.found.examples[kind]})"
            for kind, count in source.found.left_out.items()
        ]
        lines.append(f"left out: {', '.join(kinds)}")
    return lines + [f"warning: {warning}" for warning in source.found.warnings]


def _sizes(source: Source) -> str:
    """Smallest and largest side of some pictures, by their headers alone."""
    sides: list[int] = []
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist():
        try:
            picture = source.read(index)
            if isinstance(picture, bytes):
                with Image.open(io.BytesIO(picture), formats=FORMATS) as opened:
                    sides += opened.size
            else:
                sides += picture.shape[:2]
        except (XciteError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not sides:
        return ""
    extent = f"{min(sides)}" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}"
    return f", sides of {extent} pixels in those looked at"
