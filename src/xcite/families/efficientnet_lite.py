"""EfficientNet-Lite: the EfficientNet (Tan and Le 2019, arXiv 1905.11946) of TensorFlow's TPU
repository for small devices: ReLU6, no squeeze-and-excitation, stem and head of fixed width.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from xcite.errors import XciteError
from xcite.families import layers
from xcite.families.family import Family, check_sizes, shape_of
from xcite.families.layers import ONCE, Layer, Part, Places, Shape
from xcite.preprocessing import Preprocessing

BATCH_NORM_EPS = 1e-3

# Kernel, stride and expansion of each stage, the same in all sizes.
STAGES = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
_LARGEST = 65_536


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck: expand by 1x1 unless the factor is 1, depthwise, project by 1x1.

    Attributes:
        grid: pixels from one cell of its output to the next.
    """

    into: int
    width: int
    kernel: int
    stride: int
    expansion: int
    grid: int

    @property
    def hidden(self) -> int:
        return self.into * self.expansion

    @property
    def shortcut(self) -> bool:
        """Whether its input is added to its output: where nothing changes the shape."""
        return self.stride == 1 and self.into == self.width


@dataclass(frozen=True)
class EfficientNetLiteArchitecture(Family):
    """Seven stages of inverted bottlenecks.

    Attributes:
        widths: channels that each stage gives.
        depths: blocks of each stage.
    """

    kind = "efficientnet_lite"
    title = "EfficientNet-Lite"
    with_article = "an EfficientNet-Lite"
    head = "head."
    roots = "conv_stem|blocks|conv_head|head"
    first_convolution = "conv_stem.conv.weight"
    preprocessing = Preprocessing(
        size=224, crop_ratio=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )

    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    stem_width: int = 32
    features: int = 1280
    num_classes: int = 1000
    in_chans: int = 3

    stride: ClassVar[int] = 32

    def __post_init__(self) -> None:
        for name, most in (("widths", _LARGEST), ("depths", 128)):
            value = tuple(getattr(self, name))
            if len(value) != len(STAGES) or not all(1 <= one <= most for one in value):
                raise XciteError(f"{name} is {value}; it must be 7 numbers from 1 to {most}")
            object.__setattr__(self, name, value)
        if self.widths[4] == self.widths[5]:  # no tensor would show where one ends
            raise XciteError("the fifth and the sixth width must differ")
        check_sizes(
            self,
            {
                "stem_width": (1, _LARGEST),
                "features": (1, _LARGEST),
                "num_classes": (0, 1_000_001),
                "in_chans": (1, 1_024),
            },
        )

    @property
    def num_features(self) -> int:
        return self.features

    def structure(self) -> tuple[object, ...]:
        return (self.widths, self.depths, self.stem_width, self.features)

    def blocks(self) -> list[Block]:
        """All blocks in their order."""
        found, into, grid = [], self.stem_width, 2
        for (kernel, stride, expansion), width, depth in zip(
            STAGES, self.widths, self.depths, strict=True
        ):
            for number in range(depth):
                step = 1 if number else stride
                grid *= step
                found.append(Block(into, width, kernel, step, expansion, grid))
                into = width
        return found

    # ---- the walk --------------------------------------------------------------------------------

    def parts(self, form: str = "usual") -> Iterator[Part]:
        places = Places(2)
        stem = list(_conv_norm("conv_stem", self.stem_width, self.in_chans, 3, places))
        yield Part("conv_stem", [*stem, Layer(places=places, kept=2 * self.stem_width)])
        for n, block in enumerate(self.blocks()):
            name, before, places = f"blocks.{n}", places, Places(block.grid)
            inside: list[Layer] = []
            if block.expansion > 1:
                inside += _conv_norm(f"{name}.expand", block.hidden, block.into, 1, before)
                inside.append(Layer(places=before, kept=2 * block.hidden))
            inside += _conv_norm(f"{name}.depthwise", block.hidden, 1, block.kernel, places)
            inside += _conv_norm(f"{name}.project", block.width, block.hidden, 1, places)
            inside.append(Layer(places=places, kept=2 * block.hidden + block.width))
            yield Part(name, inside, checkpoint=Layer(places=places, kept=block.width))
        last = list(_conv_norm("conv_head", self.features, self.widths[-1], 1, places))
        yield Part("conv_head", [*last, Layer(places=places, kept=2 * self.features)])
        if self.num_classes:
            shape, drawn = (self.num_classes, self.features), layers.uniform(self.num_classes)
            yield Part("head", [layers.affine("head", shape, drawn, ONCE, layers.ZEROS)])

    # ---- from shapes -----------------------------------------------------------------------------

    @classmethod
    def read(cls, named: Mapping[str, Shape]) -> Self:
        stem = shape_of(named, cls.first_convolution, 4)
        kinds: list[tuple[int, int, bool]] = []
        for n in itertools.count():
            if f"blocks.{n}.project.conv.weight" not in named:
                break
            width = shape_of(named, f"blocks.{n}.project.conv.weight", 4)[0]
            kernel = shape_of(named, f"blocks.{n}.depthwise.conv.weight", 4)[-1]
            kinds.append((width, kernel, f"blocks.{n}.expand.conv.weight" in named))
        stages = [(kind, len(list(same))) for kind, same in itertools.groupby(kinds)]
        wanted = [(kernel, expansion > 1) for kernel, _, expansion in STAGES]
        if [kind[1:] for kind, _ in stages] != wanted:
            raise XciteError(f"no EfficientNet-Lite has {len(kinds)} blocks of such kernels")
        return cls(
            widths=tuple(kind[0] for kind, _ in stages),
            depths=tuple(depth for _, depth in stages),
            stem_width=stem[0],
            features=shape_of(named, "conv_head.conv.weight", 4)[0],
            num_classes=named["head.weight"][0] if "head.weight" in named else 0,
            in_chans=stem[1],
        )


def _conv_norm(name: str, out: int, into: int, kernel: int, places: Places) -> Iterator[Layer]:
    """Args:
    into: channels that each output channel sees.
    """
    # As TensorFlow draws them: by the outputs alone, whatever the number of groups.
    drawn = layers.he_normal(out * kernel * kernel)
    yield layers.affine(f"{name}.conv", (out, into, kernel, kernel), drawn, places)
    yield layers.batch_norm(f"{name}.bn", out)


def _scaled(width: float, depth: float) -> EfficientNetLiteArchitecture:
    """Widths to multiples of 8, never more than a tenth smaller; depths up, the ends' as they are.

    Source: the round_filters and round_repeats of TensorFlow's EfficientNet.
    """
    base = EfficientNetLiteArchitecture()
    widths = []
    for channels in base.widths:
        rounded = max(8, int(channels * width + 4) // 8 * 8)
        widths.append(rounded + 8 if rounded < 0.9 * channels * width else rounded)
    inner = [math.ceil(number * depth) for number in base.depths[1:-1]]
    return EfficientNetLiteArchitecture(tuple(widths), (base.depths[0], *inner, base.depths[-1]))


ARCHITECTURES = {
    f"efficientnet_lite{number}": _scaled(*scales)
    for number, scales in enumerate(((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8)))
}
