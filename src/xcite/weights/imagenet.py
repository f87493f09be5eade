"""The 1000 classes of ImageNet-1k in the order of the published heads: names and WordNet numbers.

That order is the sorted wnids, which are the names of the class folders. The table is the public
one (``timm/data/_info/imagenet_synsets.txt`` of huggingface/pytorch-image-models, Apache-2.0, the
same as Keras' ``imagenet_class_index.json``).
"""

import functools
import operator
from collections.abc import Sequence
from pathlib import Path


def imagenet_classes() -> list[str]:
    """The class names, 1000."""
    return list(_lines("imagenet_classes.txt"))


def imagenet_wnids() -> list[str]:
    """The wnids, such as n01440764 of the tench, 1000, sorted."""
    return list(_lines("imagenet_wnids.txt"))


def in_imagenet_order(names: Sequence[str]) -> bool:
    """Whether these are ImageNet's 1000 classes in order: wnids, or names as anybody writes them.

    "tench, Tinca tinca" and "great_white_shark" are such names; two of a hundred may differ, since
    lists disagree about cranes and maillots.
    """
    wnids = imagenet_wnids()
    if len(names) != len(wnids) or list(names) == wnids:
        return list(names) == wnids
    same = map(operator.eq, map(first_word, names), map(first_word, imagenet_classes()))
    return sum(same) >= 0.98 * len(names)


def first_word(name: str) -> str:
    """A class's first synonym: "tench" of "Tench, Tinca tinca", "crane" of "crane (bird)"."""
    return name.partition(",")[0].partition(" (")[0].replace("_", " ").strip().casefold()


@functools.cache
def _lines(file: str) -> tuple[str, ...]:
    return tuple((Path(__file__).parent / file).read_text("utf-8").splitlines())
