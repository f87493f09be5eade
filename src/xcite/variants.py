"""The published models by name, once, for both engines: a look-up over `xcite.families`."""

import difflib
import fnmatch
from dataclasses import fields, replace

from xcite.errors import XciteError
from xcite.families import (
    ARCHITECTURES,
    PAPER_DROP_PATH,
    PUBLISHED,
    RELATIVES,
    Architecture,
    EfficientNetLiteArchitecture,
    Published,
    RegNetArchitecture,
    XCiTArchitecture,
)

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "EfficientNetLiteArchitecture",
    "Published",
    "RegNetArchitecture",
    "XCiTArchitecture",
    "architecture_name",
    "find",
    "list_models",
    "list_published_names",
    "paper_drop_path",
    "published",
    "relatives",
]


def published() -> list[Published]:
    """The 42 published XCiT files."""
    return list(PUBLISHED)


def relatives() -> dict[str, Architecture]:
    """Models that others published under names of their own; `find` knows them."""
    return dict(RELATIVES)


def list_published_names() -> list[str]:
    """Names of the 42 published XCiT files."""
    return [row.name for row in PUBLISHED]


def architecture_name(name: str) -> str:
    """The architecture of this name, or of the published file of this name.

    Raises:
        XciteError: for an unknown name, with the nearest ones.
    """
    behind = {row.name: row.architecture for row in PUBLISHED}
    behind |= {key: key for key in (*ARCHITECTURES, *RELATIVES)}
    if name in behind:
        return behind[name]
    near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`xcite models` lists the known ones"
    raise XciteError(f"unknown model {name!r}; {hint}")


def paper_drop_path(name: str) -> float:
    """The drop-path rate that the paper trained a variant of XCiT with.

    Raises:
        XciteError: unknown name, or not an XCiT.
    """
    architecture = architecture_name(name)
    if architecture not in PAPER_DROP_PATH:
        raise XciteError(f"{name} has no drop path; leave model.drop_path empty")
    return PAPER_DROP_PATH[architecture]


def find(name: str, **overrides: object) -> Architecture:
    """The architecture called ``name``, with some of its fields replaced.

    Raises:
        XciteError: unknown name or unknown field.
    """
    architecture = (ARCHITECTURES | RELATIVES)[architecture_name(name)]
    known = [field.name for field in fields(architecture)]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise XciteError(f"{name} has no setting {', '.join(unknown)}; known: {', '.join(known)}")
    return replace(architecture, **overrides)  # type: ignore[arg-type]


def list_models(pattern: str | None = None) -> list[str]:
    """Names of architectures and published files, those that contain or match ``pattern``."""
    names = [*ARCHITECTURES, *list_published_names(), *RELATIVES]
    if pattern is None:
        return names
    return [name for name in names if fnmatch.fnmatch(name, f"*{pattern}*")]
