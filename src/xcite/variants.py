"""The published models, once, for both engines.

Sources: facebookresearch/xcit (xcit.py, README) for the architectures and the published top-1;
timm's regnet.py and Radosavovic et al. 2020 (arXiv 2003.13678) for RegNetY.
"""

import difflib
import fnmatch
import math
from dataclasses import dataclass, replace

from xcite.errors import XciteError


@dataclass(frozen=True)
class XCiTArchitecture:
    """Everything that shapes an XCiT (arXiv 2106.09681).

    Attributes:
        patch_size: 2, 4, 8 or 16: the stem halves the picture log2(patch_size) times. 8 and 16 are
            published; 2 and 4 are ours, for small pictures.
        eta: initial value of LayerScale.
        tokens_norm: in class attention, normalise all tokens (True) or CLS alone (False: nano).
        drop_path: probability of dropping a residual branch, the same in every XCA block.
        num_classes: 0 for a model that returns features.
        attention_scale: class attention's scale; None means (embed_dim / num_heads) ** -0.5.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    eta: float = 1.0
    tokens_norm: bool = True
    num_classes: int = 1000
    in_chans: int = 3
    cls_attn_layers: int = 2
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    use_pos: bool = True
    attention_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.patch_size not in (2, 4, 8, 16):
            raise XciteError(f"patch_size is {self.patch_size}; it must be 2, 4, 8 or 16")
        if self.embed_dim % self.num_heads:
            raise XciteError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.embed_dim % (self.patch_size // 2):
            raise XciteError(
                f"embed_dim {self.embed_dim} is not a multiple of {self.patch_size // 2}, "
                f"which the stem of patch_size {self.patch_size} needs"
            )
        for name in ("depth", "cls_attn_layers", "num_classes"):
            if getattr(self, name) < 0:
                raise XciteError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.in_chans < 1:
            raise XciteError(f"in_chans is {self.in_chans}; it must be at least 1")

    def stem_widths(self) -> list[int]:
        """Output channels of the stem's 3x3 convolutions of stride 2, first to last."""
        convolutions = int(math.log2(self.patch_size))
        return [self.embed_dim // 2**i for i in reversed(range(convolutions))]


@dataclass(frozen=True)
class RegNetArchitecture:
    """RegNetY: widths w0 + wa * j, quantised to powers of wm and to the group width."""

    w0: int
    wa: float
    wm: float
    group_size: int
    depth: int
    se_ratio: float = 0.25
    stem_width: int = 32
    num_classes: int = 1000
    in_chans: int = 3

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


Architecture = XCiTArchitecture | RegNetArchitecture


@dataclass(frozen=True)
class Published:
    """One published weight file of facebookresearch/xcit."""

    name: str
    architecture: str
    resolution: int
    distilled: bool
    top1: float


# name: (width, depth, heads, eta, tokens_norm)
_SIZES = {
    "nano_12": (128, 12, 4, 1.0, False),
    "tiny_12": (192, 12, 4, 1.0, True),
    "tiny_24": (192, 24, 4, 1e-5, True),
    "small_12": (384, 12, 8, 1.0, True),
    "small_24": (384, 24, 8, 1e-5, True),
    "medium_24": (512, 24, 8, 1e-5, True),
    "large_24": (768, 24, 16, 1e-5, True),
}

# Published top-1 at 224, 224 distilled, 384 distilled (README of facebookresearch/xcit).
_TOP1 = {
    "nano_12_p16": (69.9, 72.2, 75.4),
    "tiny_12_p16": (77.1, 78.6, 80.9),
    "tiny_24_p16": (79.4, 80.4, 82.6),
    "small_12_p16": (82.0, 83.3, 84.7),
    "small_24_p16": (82.6, 83.9, 85.1),
    "medium_24_p16": (82.7, 84.3, 85.4),
    "large_24_p16": (82.9, 84.9, 85.8),
    "nano_12_p8": (73.8, 76.3, 77.8),
    "tiny_12_p8": (79.7, 81.2, 82.4),
    "tiny_24_p8": (81.9, 82.6, 83.7),
    "small_12_p8": (83.4, 84.2, 85.1),
    "small_24_p8": (83.9, 84.9, 85.6),
    "medium_24_p8": (83.7, 85.1, 85.8),
    "large_24_p8": (84.4, 85.4, 86.0),
}


def _xcit(size: str, patch: int) -> XCiTArchitecture:
    width, depth, heads, eta, tokens_norm = _SIZES[size]
    return XCiTArchitecture(patch, width, depth, heads, eta, tokens_norm)


ARCHITECTURES: dict[str, Architecture] = {
    **{f"xcit_{size}_p{patch}": _xcit(size, patch) for patch in (16, 8) for size in _SIZES},
    "regnety_160": RegNetArchitecture(w0=200, wa=106.23, wm=2.48, group_size=112, depth=18),
}


def published() -> list[Published]:
    """The 42 published XCiT files."""
    rows = []
    for key, accuracies in _TOP1.items():
        architecture = f"xcit_{key}"
        for suffix, resolution, top1 in zip(
            ("224", "224_dist", "384_dist"), (224, 224, 384), accuracies, strict=True
        ):
            rows.append(
                Published(
                    f"{architecture}_{suffix}",
                    architecture,
                    resolution,
                    suffix.endswith("dist"),
                    top1,
                )
            )
    return rows


def architecture_name(name: str) -> str:
    """The architecture behind an architecture's or a published file's name.

    Raises:
        XciteError: for an unknown name, with the nearest ones.
    """
    base = name
    for suffix in ("_224_dist", "_384_dist", "_224"):
        base = base.removesuffix(suffix)
    if base in ARCHITECTURES and (base == name or base.startswith("xcit_")):
        return base
    known = [*ARCHITECTURES, *list_published_names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`xcite models` lists the known ones"
    raise XciteError(f"unknown model {name!r}; {hint}")


def list_published_names() -> list[str]:
    """Names of the 42 published XCiT files."""
    return [f"xcit_{key}_{suffix}" for key in _TOP1 for suffix in ("224", "224_dist", "384_dist")]


# Stochastic depth of each size, for patches of 16 and 8, as the paper's appendix is remembered; the
# public code names no rates, and its detection recipes agree for tiny_12, small_12 and small_24.
_DROP_PATH = {
    "nano_12": (0.0, 0.0),
    "tiny_12": (0.0, 0.0),
    "tiny_24": (0.05, 0.05),
    "small_12": (0.05, 0.05),
    "small_24": (0.1, 0.1),
    "medium_24": (0.15, 0.15),
    "large_24": (0.25, 0.3),
}


def paper_drop_path(name: str) -> float:
    """The drop-path rate that the paper trained a variant of XCiT with.

    Raises:
        XciteError: unknown name, or not an XCiT.
    """
    size, _, patch = architecture_name(name).removeprefix("xcit_").rpartition("_p")
    if size not in _DROP_PATH:
        raise XciteError(f"{name} has no drop path; leave model.drop_path empty")
    return _DROP_PATH[size][patch == "8"]


def find(name: str, **overrides: object) -> Architecture:
    """The architecture called ``name``, with some of its fields replaced.

    Raises:
        XciteError: unknown name or unknown field.
    """
    architecture = ARCHITECTURES[architecture_name(name)]
    unknown = sorted(set(overrides) - set(architecture.__dataclass_fields__))
    if unknown:
        raise XciteError(
            f"{name} has no setting {', '.join(unknown)}; "
            f"known: {', '.join(architecture.__dataclass_fields__)}"
        )
    return replace(architecture, **overrides)  # type: ignore[arg-type]


def list_models(pattern: str | None = None) -> list[str]:
    """Names of architectures and published files, those that contain or match ``pattern``."""
    names = [*ARCHITECTURES, *list_published_names()]
    if pattern is None:
        return names
    return [name for name in names if fnmatch.fnmatch(name, f"*{pattern}*")]
