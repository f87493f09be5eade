"""Robust XCiT that others published: the Light Recipe (Debenedetti et al. 2022) and RobustBench.

Their weights do not show that the stem of the CIFAR models has strides 1, 1, 2, 2, nor that the
ImageNet models take pixels of 0..1 as they are: the file's name says so, or the normalisation that
is stored around the model. Sources: dedeswim/vits-robustness-torch (README, models.py),
RobustBench/robustbench (architectures/xcit.py).
"""

import re
from dataclasses import dataclass

import numpy as np

from xcite.preprocessing import Preprocessing

_FILE = re.compile(
    r"(?:debenedetti2022light-)?xcit-(?P<size>[sml])(?:12)?-"
    r"(?:(?P<imagenet>imagenet)|cifar-?(?P<cifar>10|100))(?:-linf|-eps-[48])?(?:\.pth|\.tar)*",
    re.ASCII | re.IGNORECASE,
)
_SIZES = {"s": "small", "m": "medium", "l": "large"}
_CIFAR = {  # classes: mean, deviation
    10: ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
# RobustBench's ImageNet files; 32-pixel pictures are shown whole.
_AS_THEY_ARE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class RobustModel:
    """What is known of a published robust model.

    Attributes:
        architecture: a name that `xcite.variants.find` takes.
    """

    architecture: str
    preprocessing: Preprocessing
    imagenet: bool


def robust_model(stem: str) -> RobustModel | None:
    """The published model of a file called ``stem``; None for any other name."""
    found = _FILE.fullmatch(stem)
    if found is None:
        return None
    size = _SIZES[found["size"].lower()]
    if found["imagenet"]:
        return RobustModel(f"xcit_{size}_12_p16", _AS_THEY_ARE, True)
    mean, std = _CIFAR[int(found["cifar"])]
    return RobustModel(f"xcit_{size}_12_p4_32", Preprocessing(size=32, mean=mean, std=std), False)


def is_cifar(mean: tuple[float, ...], classes: int) -> bool:
    """Whether a stored normalisation is the one of the CIFAR models with so many classes."""
    return classes in _CIFAR and len(mean) == 3 and np.allclose(mean, _CIFAR[classes][0], atol=5e-4)
