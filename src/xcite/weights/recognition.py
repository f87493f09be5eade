"""Which model a set of canonical shapes belongs to."""

import re
from collections.abc import Mapping

from xcite.canonical import Shape
from xcite.errors import XciteError
from xcite.families import Architecture, family_of_tensors
from xcite.variants import ARCHITECTURES, list_published_names, relatives


def architecture_of(named: Mapping[str, Shape]) -> Architecture:
    """Read an architecture from canonical names and shapes.

    What leaves no trace in the shapes (`Family.unreadable`) is taken from the published model that
    is most alike.

    Raises:
        XciteError: when a tensor that decides is missing or has an impossible shape.
    """
    try:
        return family_of_tensors(named).read(named)
    except (KeyError, IndexError) as error:
        raise XciteError(
            f"the architecture cannot be read: {error.args[0]} is missing or misshapen"
        ) from error


def variant_of(architecture: Architecture, stem: str = "") -> str | None:
    """The published name behind an architecture; a file's name may say which of its three files."""
    for name, row in (ARCHITECTURES | relatives()).items():
        if row.kind == architecture.kind and row.structure() == architecture.structure():
            spoken = stem.replace("_distill", "_dist")
            spoken = re.sub(r"_(224|384)\.fb_dist_in1k", r"_\1_dist", spoken)
            spoken = spoken.removesuffix(".fb_in1k")
            known = spoken in list_published_names() and spoken.startswith(f"{name}_")
            return spoken if known else name
    return None
