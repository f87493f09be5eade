"""The families of models; each file describes its own once, for all that is derived from it.

A new family is one more file here, added to each line below.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from xcite.errors import XciteError
from xcite.families import efficientnet_lite, regnet, xcit
from xcite.families.efficientnet_lite import EfficientNetLiteArchitecture
from xcite.families.family import Family, Published
from xcite.families.regnet import RegNetArchitecture, RegNetSettings
from xcite.families.xcit import XCiTArchitecture, XCiTSettings

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "PAPER_DROP_PATH",
    "PUBLISHED",
    "RELATIVES",
    "Architecture",
    "EfficientNetLiteArchitecture",
    "Family",
    "Published",
    "RegNetArchitecture",
    "Settings",
    "XCiTArchitecture",
    "family_of_fields",
    "family_of_tensors",
]

Architecture = XCiTArchitecture | RegNetArchitecture | EfficientNetLiteArchitecture

FAMILIES: dict[str, type[Architecture]] = {
    family.kind: family
    for family in (XCiTArchitecture, RegNetArchitecture, EfficientNetLiteArchitecture)
}
ARCHITECTURES: dict[str, Architecture] = {
    **xcit.ARCHITECTURES,
    **regnet.ARCHITECTURES,
    **efficientnet_lite.ARCHITECTURES,
}
RELATIVES: dict[str, Architecture] = {**xcit.RELATIVES}
PUBLISHED: list[Published] = [*xcit.PUBLISHED]
PAPER_DROP_PATH: dict[str, float] = {**xcit.PAPER_DROP_PATH}


class Settings(RegNetSettings, XCiTSettings):
    """The fields of all families that a recipe's model section may set, the last base's first."""


def family_of_tensors(names: Iterable[str]) -> type[Architecture]:
    """The family that canonical tensors of these names belong to.

    Raises:
        XciteError: the first convolution of no family is among them.
    """
    known = set(names)
    for family in FAMILIES.values():
        if family.first_convolution in known:
            return family
    wanted = ", ".join(f"{f.first_convolution} ({f.title})" for f in FAMILIES.values())
    raise XciteError(f"the architecture cannot be read: it has none of {wanted}")


def family_of_fields(described: Mapping[str, object]) -> type[Architecture]:
    """The family that shares most fields with a stored description."""
    return max(
        FAMILIES.values(), key=lambda family: len({f.name for f in fields(family)} & {*described})
    )
