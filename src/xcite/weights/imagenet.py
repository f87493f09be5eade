"""The 1000 classes of ImageNet-1k in the order of the published heads: names and WordNet numbers.

That order is the sorted wnids, which are the names of the class folders. The table is the public
one (``timm/data/_info/imagenet_synsets.txt`` of huggingface/pytorch-image-models, Apache-2.0, the
same as Keras' ``imagenet_class_index.json``).
"""

import functools
from pathlib import Path


def imagenet_classes() -> list[str]:
    """The class names, 1000."""
    return list(_lines("imagenet_classes.txt"))


def imagenet_wnids() -> list[str]:
    """The wnids, such as n01440764 of the tench, 1000, sorted."""
    return list(_lines("imagenet_wnids.txt"))


@functools.cache
def _lines(file: str) -> tuple[str, ...]:
    return tuple((Path(__file__).parent / file).read_text("utf-8").splitlines())
