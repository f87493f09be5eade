"""RegNetY (Radosavovic et al. 2020, arXiv 2003.13678), named as in timm's regnet.py."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, Field

from xcite.errors import XciteError
from xcite.families import layers
from xcite.families.family import Family, check_sizes, shape_of
from xcite.families.layers import ONCE, Layer, Part, Places, Shape
from xcite.preprocessing import Preprocessing

_NORMAL = layers.truncated_normal(0.01)

# Far beyond any model that was trained: RegNetY-1280 ends at width 7,392 and depth 27.
_LIMITS = {
    "w0": (8, 65_536),
    "wa": (0, 65_536),
    "wm": (1.001, 100),
    "group_size": (1, 65_536),
    "depth": (1, 1_024),
    "se_ratio": (0, 16),
    "stem_width": (1, 65_536),
    "num_classes": (0, 1_000_001),
    "in_chans": (1, 1_024),
}


@dataclass(frozen=True)
class RegNetArchitecture(Family):
    """RegNetY: widths w0 + wa * j, quantised to powers of wm and to the group width."""

    kind = "regnet"
    title = "RegNetY"
    with_article = "a RegNetY"
    head = "head.fc."
    roots = r"stem|s\d+|head"
    first_convolution = "stem.conv.weight"
    # DeiT evaluates its teacher on the centre 224 of 256.
    preprocessing = Preprocessing(size=224, crop_ratio=0.875)

    w0: int
    wa: float
    wm: float
    group_size: int
    depth: int
    se_ratio: float = 0.25
    stem_width: int = 32
    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, _LIMITS)

    def stages(self) -> list[tuple[int, int, int]]:
        """(width, depth, groups) of each stage.

        The rule of the RegNet paper: continuous widths, rounded to w0 * wm^k, then to multiples
        of 8, then made divisible by the group width (which never grows past the width).
        """
        widths: list[int] = []
        for j in range(self.depth):
            exponent = round(math.log((self.w0 + self.wa * j) / self.w0) / math.log(self.wm))
            widths.append(int(round(self.w0 * self.wm**exponent / 8) * 8))
        result = []
        for width in sorted(set(widths)):
            group = min(self.group_size, width)
            fitted = int(round(width / group) * group)
            result.append((fitted, widths.count(width), fitted // group))
        return result

    @property
    def stride(self) -> int:
        return 2 ** (1 + len(self.stages()))

    @property
    def num_features(self) -> int:
        return self.stages()[-1][0]

    def structure(self) -> tuple[object, ...]:
        return (*self.stages(), self.stem_width, self.se_ratio)

    # ---- the walk --------------------------------------------------------------------------------

    def parts(self, form: str = "usual") -> Iterator[Part]:
        places, into = Places(2), self.stem_width
        stem = list(_conv_norm("stem", into, self.in_chans, 3, places))
        yield Part("stem", [*stem, Layer(places=places, kept=2 * into)])
        for s, (width, depth, groups) in enumerate(self.stages(), 1):
            for b in range(1, depth + 1):
                before, places = places, Places(2 ** (1 + s))
                block = list(self._block(f"s{s}.b{b}", into, width, groups, before, places))
                yield Part(f"s{s}.b{b}", block, checkpoint=Layer(places=places, kept=width))
                into = width
        if self.num_classes:
            shape = (self.num_classes, into)
            head = layers.affine("head.fc", shape, _NORMAL, ONCE, layers.ZEROS)
            yield Part("head", [head])

    def _block(
        self, name: str, into: int, width: int, groups: int, before: Places, places: Places
    ) -> Iterator[Layer]:
        """A bottleneck, the first of its stage where the grid is another one ``before``."""
        yield from _conv_norm(f"{name}.conv1", width, into, 1, before)
        yield from _conv_norm(f"{name}.conv2", width, width, 3, places, groups)
        if self.se_ratio:
            squeezed = round(into * self.se_ratio)
            for k, (out, inner) in enumerate(((squeezed, width), (width, squeezed)), 1):
                shape, drawn = (out, inner, 1, 1), layers.he_normal(out)
                yield layers.affine(f"{name}.se.fc{k}", shape, drawn, ONCE, layers.ZEROS)
        yield from _conv_norm(f"{name}.conv3", width, width, 1, places)
        if before != places:
            yield from _conv_norm(f"{name}.downsample", width, into, 1, places)
        yield Layer(places=places, kept=8 * width)  # three convolutions, their norms, SE, sum

    # ---- from shapes -----------------------------------------------------------------------------

    @classmethod
    def read(cls, named: Mapping[str, Shape]) -> Self:
        stages = []
        for s in range(1, 5):
            conv1 = re.compile(rf"s{s}\.b\d+\.conv1\.conv\.weight")
            depth = sum(1 for name in named if conv1.fullmatch(name))
            if depth:
                width, group = shape_of(named, f"s{s}.b1.conv2.conv.weight", 4)[:2]
                stages.append((width, depth, group))
        if not stages:
            raise KeyError("s1.b1.conv1.conv.weight")
        stem = shape_of(named, cls.first_convolution, 4)
        squeezed = named.get("s1.b1.se.fc1.weight", (0,))[0]
        wanted = [(width, depth) for width, depth, _ in stages]
        for w0, wa, wm in _generators(wanted):
            architecture = cls(
                w0,
                wa,
                wm,
                group_size=max(group for _, _, group in stages),
                depth=sum(depth for _, depth, _ in stages),
                se_ratio=squeezed / stem[0],
                stem_width=stem[0],
                num_classes=named["head.fc.weight"][0] if "head.fc.weight" in named else 0,
                in_chans=stem[1],
            )
            if [stage[:2] for stage in architecture.stages()] == wanted:
                return architecture
        raise XciteError(f"no RegNet has stages of widths and depths {wanted}")


def _conv_norm(
    name: str, out: int, into: int, kernel: int, places: Places, groups: int = 1
) -> Iterator[Layer]:
    shape = (out, into // groups, kernel, kernel)
    drawn = layers.he_normal(out * kernel * kernel // groups)
    yield layers.affine(f"{name}.conv", shape, drawn, places)
    yield layers.batch_norm(f"{name}.bn", out)


def _generators(stages: list[tuple[int, int]]) -> Iterator[tuple[int, float, float]]:
    """(w0, wa, wm) that may give these (width, depth), published ones first.

    Only the stages matter to the model: any generating triple describes the same one. For a first
    width w0 and a factor wm each block's width bounds wa from both sides, so a grid over w0 and wm
    is searched.
    """
    for row in ARCHITECTURES.values():
        yield row.w0, row.wa, row.wm
    if len(stages) > 4 or sum(depth for _, depth in stages) > 64:
        return
    widths = [width for width, depth in stages for _ in range(depth)]
    near = round(stages[0][0] / 8) * 8
    for w0 in (near + 8 * step for step in (0, -1, 1, -2, 2, -3, 3, -4, 4)):
        if w0 < 8:
            continue
        for wm in (hundredths / 100 for hundredths in range(120, 351)):
            exponents = [round(math.log(width / w0) / math.log(wm)) for width in widths]
            low = max(
                [w0 * (wm ** (k - 0.5) - 1) / j for j, k in enumerate(exponents) if j], default=0.0
            )
            high = min(
                [w0 * (wm ** (k + 0.5) - 1) / j for j, k in enumerate(exponents) if j], default=8.0
            )
            if max(low, 0.0) < high:
                yield w0, (max(low, 0.0) + high) / 2, wm


class RegNetSettings(BaseModel):
    """The fields of a RegNetY that a recipe's model section may set."""

    w0: int | None = Field(None, ge=8)
    wa: float | None = Field(None, ge=0)
    wm: float | None = Field(None, gt=0)
    group_size: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    se_ratio: float | None = Field(None, ge=0)
    stem_width: int | None = Field(None, ge=1)


ARCHITECTURES = {
    "regnety_160": RegNetArchitecture(w0=200, wa=106.23, wm=2.48, group_size=112, depth=18)
}
