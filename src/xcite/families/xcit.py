"""XCiT (El-Nouby et al. 2021, arXiv 2106.09681), named as in facebookresearch/xcit.

Sources: facebookresearch/xcit (xcit.py, README) for the architectures, the initial weights and the
published top-1.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from xcite.errors import XciteError
from xcite.families import layers
from xcite.families.family import Family, Published, check_sizes, shape_of
from xcite.families.layers import ONCE, Layer, Part, Places, Shape
from xcite.language import tr

POSITION_CHANNELS = 64  # Fourier features: 32 for each axis

_NORMAL = layers.truncated_normal(0.02)

# Far beyond any model that was trained: the published ones end at width 768 and depth 24.
_LIMITS = {
    "embed_dim": (1, 65_536),
    "depth": (0, 1_024),
    "num_heads": (1, 4_096),
    "cls_attn_layers": (0, 1_024),
    "mlp_ratio": (0, 64),
    "num_classes": (0, 1_000_001),
    "in_chans": (1, 1_024),
}


@dataclass(frozen=True)
class XCiTArchitecture(Family):
    """Everything that shapes an XCiT (arXiv 2106.09681).

    Attributes:
        patch_size: 2, 4, 8 or 16: pixels from one token to the next, the product of the stem's
            strides. 8 and 16 are published; 2 and 4 are for small pictures.
        stem_strides: 1 or 2 for each convolution of the stem; None: all of them 2, as published.
            Robust models for CIFAR have 1, 1, 2, 2.
        eta: initial value of LayerScale.
        tokens_norm: in class attention, normalise all tokens (True) or CLS alone (False: nano).
        drop_path: probability of dropping a residual branch, the same in every XCA block.
        num_classes: 0 for a model that returns features.
        attention_scale: class attention's scale; None means (embed_dim / num_heads) ** -0.5.
    """

    kind = "xcit"
    title = "XCiT"
    with_article = "an XCiT"
    head = "head."
    roots = "patch_embed|pos_embeder|blocks|cls_token|cls_attn_blocks|norm|head"
    first_convolution = "patch_embed.proj.0.0.weight"
    unreadable = ("tokens_norm", "eta", "stem_strides")
    answering = ("tokens_norm", "stem_strides")
    added_later = ("stem_strides",)
    has_attention_maps = True
    forward_order = (
        "patch_embed",
        "pos_embeder",
        "blocks",
        "cls_token",
        "cls_attn_blocks",
        "norm",
        "head",
    )

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
    stem_strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.patch_size not in (2, 4, 8, 16):
            raise XciteError(f"patch_size is {self.patch_size}; it must be 2, 4, 8 or 16")
        self._check_strides()
        check_sizes(self, _LIMITS)
        if self.embed_dim % self.num_heads:
            raise XciteError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        convolutions = len(self.strides())
        if self.embed_dim % 2 ** (convolutions - 1):
            raise XciteError(
                f"embed_dim {self.embed_dim} is not a multiple of {2 ** (convolutions - 1)}, "
                f"which a stem of {convolutions} convolutions needs"
            )

    def _check_strides(self) -> None:
        """Every description of the same strides becomes the same value: usual ones are None."""
        if self.stem_strides is None:
            return
        strides = tuple(self.stem_strides)
        if not 1 <= len(strides) <= 4 or any(stride not in (1, 2) for stride in strides):
            raise XciteError(f"stem_strides is {strides}; it must be 1 to 4 times 1 or 2")
        if math.prod(strides) != self.patch_size:
            raise XciteError(
                f"stem_strides {strides} make patches of {math.prod(strides)} pixels; "
                f"set patch_size to that, it is {self.patch_size}"
            )
        usual = set(strides) == {2}
        object.__setattr__(self, "stem_strides", None if usual else strides)

    def strides(self) -> tuple[int, ...]:
        """Strides of the stem's 3x3 convolutions, first to last."""
        return self.stem_strides or (2,) * int(math.log2(self.patch_size))

    def stem_widths(self) -> list[int]:
        """Output channels of the stem's 3x3 convolutions, first to last."""
        return [self.embed_dim // 2**i for i in reversed(range(len(self.strides())))]

    @property
    def stride(self) -> int:
        return self.patch_size

    @property
    def num_features(self) -> int:
        return self.embed_dim

    def structure(self) -> tuple[object, ...]:
        return (
            *(self.strides(), self.embed_dim, self.depth, self.num_heads, self.cls_attn_layers),
            *(self.mlp_ratio, self.qkv_bias, self.use_pos, self.tokens_norm),
        )

    def same_tensors(self, other: Family) -> bool:
        """Whether both have tensors of the same shapes, but for channels and classes."""
        if not isinstance(other, XCiTArchitecture):
            return False
        strides, others = self.strides(), other.strides()
        return len(strides) == len(others) and self.structure()[1:] == other.structure()[1:]

    def drop_paths(self) -> tuple[int, float]:
        return self.depth, self.drop_path

    def without_dropout(self) -> Self:
        return replace(self, drop_rate=0.0, attn_drop_rate=0.0, drop_path=0.0)

    def in_words(self, height: int, width: int) -> str:
        tokens = math.prod(self.grid(height, width))
        return tr(
            ", {tokens} tokens of width {width}, {blocks} blocks",
            tokens=tokens,
            width=self.embed_dim,
            blocks=self.depth,
        )

    # ---- the walk --------------------------------------------------------------------------------

    def parts(self, form: str = "usual") -> Iterator[Part]:
        d, patches = self.embed_dim, Places(self.patch_size)
        covariance = form == "covariance"
        yield Part("cls_token", [layers.parameter("cls_token", (1, 1, d), _NORMAL)])
        yield Part("patch_embed", list(self._stem("patch_embed.proj")))
        for i in range(self.depth):
            name = f"blocks.{i}"
            tokens = Layer(places=patches, kept=d)
            yield Part(name, list(self._block(name, covariance)), checkpoint=tokens)
        for i in range(self.cls_attn_layers):
            name = f"cls_attn_blocks.{i}"
            yield Part(name, list(self._class_attention(name, covariance)))
        yield Part("norm", [layers.norm("norm", d)])
        if self.num_classes:
            yield Part("head", [_linear("head", self.num_classes, d, ONCE)])
        if self.use_pos:
            projection = (d, POSITION_CHANNELS, 1, 1)
            name = "pos_embeder.token_projection"
            yield Part("pos_embeder", [_convolution(name, projection, patches)])

    def _stem(self, name: str) -> Iterator[Layer]:
        into = self.in_chans
        strides = itertools.accumulate(self.strides(), operator.mul)
        for i, (out, stride) in enumerate(zip(self.stem_widths(), strides, strict=True)):
            places = Places(stride)
            yield _convolution(f"{name}.{2 * i}.0", (out, into, 3, 3), places, bias=False)
            yield layers.batch_norm(f"{name}.{2 * i}.1", out)
            yield Layer(places=places, kept=3 * out)  # convolution, norm, GELU
            into = out

    def _block(self, name: str, covariance: bool) -> Iterator[Layer]:
        """XCA, MLP and LPI over the tokens."""
        d, head, tokens = self.embed_dim, self.embed_dim // self.num_heads, Places(self.patch_size)
        hidden = int(d * self.mlp_ratio)
        yield from self._scales(name, 3)
        yield layers.norm(f"{name}.norm1", d)
        yield layers.parameter(f"{name}.attn.temperature", (self.num_heads, 1, 1), layers.ONES)
        if covariance:
            # G = X^T X and Y = X M run over the tokens. The rest is d x d: qkv is applied to the
            # rows of G, and proj to the rows of a head's attention. The extra products by which
            # PyTorch gets squares and products in one are not counted.
            yield from self._qkv_and_proj(name, Places(besides=d), Places(besides=head))
            yield Layer(places=tokens, work=2 * d * d)
            yield Layer(work=d * d * head)
        else:
            yield from self._qkv_and_proj(name, tokens, tokens)
            yield Layer(places=tokens, work=2 * d * head)
        yield layers.norm(f"{name}.norm2", d)
        yield from _mlp(f"{name}.mlp", d, hidden, tokens)
        yield layers.norm(f"{name}.norm3", d)
        yield _convolution(f"{name}.local_mp.conv1", (d, 1, 3, 3), tokens)
        yield layers.batch_norm(f"{name}.local_mp.bn", d)
        yield _convolution(f"{name}.local_mp.conv2", (d, 1, 3, 3), tokens)
        # XCA keeps 8, LPI 5, their scales and sums 3; the MLP twice its hidden width.
        yield Layer(places=tokens, kept=16 * d + 2 * hidden)

    def _class_attention(self, name: str, covariance: bool) -> Iterator[Layer]:
        """CLS attends to itself and the patches; the MLP is of CLS alone."""
        d, tokens, both = self.embed_dim, Places(self.patch_size), Places(self.patch_size, 1)
        yield from self._scales(name, 2)
        yield layers.norm(f"{name}.norm1", d)
        if covariance:
            yield from self._qkv_and_proj(name, ONCE, ONCE)
            yield Layer(places=both, work=2 * d * self.num_heads)
        else:
            yield from self._qkv_and_proj(name, both, ONCE)
            yield Layer(places=both, work=2 * d)
        yield layers.norm(f"{name}.norm2", d)
        yield from _mlp(f"{name}.mlp", d, int(d * self.mlp_ratio), ONCE)
        yield Layer(places=tokens, kept=8 * d)

    def _scales(self, name: str, count: int) -> Iterator[Layer]:
        for i in range(1, count + 1):
            yield layers.parameter(f"{name}.gamma{i}", (self.embed_dim,), layers.constant(self.eta))

    def _qkv_and_proj(self, name: str, on_qkv: Places, on_proj: Places) -> Iterator[Layer]:
        d = self.embed_dim
        yield _linear(f"{name}.attn.qkv", 3 * d, d, on_qkv, bias=self.qkv_bias)
        yield _linear(f"{name}.attn.proj", d, d, on_proj)

    # ---- from shapes -----------------------------------------------------------------------------

    @classmethod
    def read(cls, named: Mapping[str, Shape]) -> Self:
        """As `Family.read`.

        ``tokens_norm`` and ``eta`` leave no trace in the shapes: they are taken from the published
        model of the same width, depth and heads, else of the same width and heads.
        """
        width = shape_of(named, "cls_token", 3)[2]
        convolutions = _count(named, lambda i: f"patch_embed.proj.{2 * i}.0.weight")
        hidden = shape_of(named, "blocks.0.mlp.fc1.weight", 2)[0]
        ratio = hidden / width
        if int(width * ratio) != hidden:
            ratio = (hidden + 0.5) / width  # the quotient was rounded down
        if not 1 <= convolutions <= 4:
            raise XciteError(f"the stem has {convolutions} convolutions; XCiT has 1 to 4")
        architecture = cls(
            patch_size=2**convolutions,
            embed_dim=width,
            depth=_count(named, lambda i: f"blocks.{i}.attn.temperature"),
            num_heads=shape_of(named, "blocks.0.attn.temperature", 3)[0],
            num_classes=named["head.weight"][0] if "head.weight" in named else 0,
            in_chans=shape_of(named, cls.first_convolution, 4)[1],
            cls_attn_layers=_count(named, lambda i: f"cls_attn_blocks.{i}.gamma1"),
            mlp_ratio=ratio,
            qkv_bias="blocks.0.attn.qkv.bias" in named,
            use_pos="pos_embeder.token_projection.weight" in named,
        )
        for fields in (("embed_dim", "num_heads", "depth"), ("embed_dim", "num_heads")):
            for row in (*ARCHITECTURES.values(), *RELATIVES.values()):
                if all(getattr(row, name) == getattr(architecture, name) for name in fields):
                    return replace(architecture, tokens_norm=row.tokens_norm, eta=row.eta)
        return architecture


def _linear(name: str, out: int, into: int, places: Places, bias: bool = True) -> Layer:
    return layers.affine(name, (out, into), _NORMAL, places, layers.ZEROS if bias else None)


def _convolution(name: str, shape: Shape, places: Places, bias: bool = True) -> Layer:
    drawn = layers.uniform(math.prod(shape[1:]))
    return layers.affine(name, shape, drawn, places, drawn if bias else None)


def _mlp(name: str, width: int, hidden: int, places: Places) -> Iterator[Layer]:
    yield _linear(f"{name}.fc1", hidden, width, places)
    yield _linear(f"{name}.fc2", width, hidden, places)


def _count(named: Mapping[str, Shape], name: Callable[[int], str]) -> int:
    """How many consecutive indices, from 0, have a tensor of that name."""
    return next(i for i in itertools.count() if name(i) not in named)


class XCiTSettings(BaseModel):
    """The fields of an XCiT that a recipe's model section may set."""

    patch_size: Literal[2, 4, 8, 16] | None = None
    embed_dim: int | None = Field(None, ge=1)
    depth: int | None = Field(None, ge=1)
    num_heads: int | None = Field(None, ge=1)
    mlp_ratio: float | None = Field(None, gt=0)
    cls_attn_layers: int | None = Field(None, ge=1)
    eta: float | None = Field(None, gt=0)
    tokens_norm: bool | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | Literal["paper"] | None = Field(
        None, description="probability of dropping a branch; paper: as the variant was trained"
    )
    drop_rate: float | None = Field(None, ge=0, lt=1)
    attn_drop_rate: float | None = Field(None, ge=0, lt=1)


# ---- the published models ------------------------------------------------------------------------

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

ARCHITECTURES = {
    f"xcit_{size}_p{patch}": XCiTArchitecture(patch, *fields)
    for patch in (16, 8)
    for size, fields in _SIZES.items()
}

# Models that others published (the Light Recipe, Debenedetti et al. 2022), by the names they have
# there; robust ones of CIFAR have the stem of 16-pixel patches with other strides.
RELATIVES = {
    "xcit_medium_12_p16": XCiTArchitecture(16, 512, 12, 8),
    "xcit_large_12_p16": XCiTArchitecture(16, 768, 12, 16),
    **{
        f"xcit_{size}_12_p4_32": XCiTArchitecture(4, *fields, stem_strides=(1, 1, 2, 2))
        for size, fields in (
            ("small", (384, 12, 8)),
            ("medium", (512, 12, 8)),
            ("large", (768, 12, 16)),
        )
    },
}

# Published top-1 at 224, 224 distilled, 384 distilled (README of facebookresearch/xcit).
_TOP1 = {
    "xcit_nano_12_p16": (69.9, 72.2, 75.4),
    "xcit_tiny_12_p16": (77.1, 78.6, 80.9),
    "xcit_tiny_24_p16": (79.4, 80.4, 82.6),
    "xcit_small_12_p16": (82.0, 83.3, 84.7),
    "xcit_small_24_p16": (82.6, 83.9, 85.1),
    "xcit_medium_24_p16": (82.7, 84.3, 85.4),
    "xcit_large_24_p16": (82.9, 84.9, 85.8),
    "xcit_nano_12_p8": (73.8, 76.3, 77.8),
    "xcit_tiny_12_p8": (79.7, 81.2, 82.4),
    "xcit_tiny_24_p8": (81.9, 82.6, 83.7),
    "xcit_small_12_p8": (83.4, 84.2, 85.1),
    "xcit_small_24_p8": (83.9, 84.9, 85.6),
    "xcit_medium_24_p8": (83.7, 85.1, 85.8),
    "xcit_large_24_p8": (84.4, 85.4, 86.0),
}

PUBLISHED = [
    Published(f"{name}_{resolution}{suffix}", name, resolution, bool(suffix), top1)
    for name, accuracies in _TOP1.items()
    for (resolution, suffix), top1 in zip(
        ((224, ""), (224, "_dist"), (384, "_dist")), accuracies, strict=True
    )
]

# Drop-path rate of each size, for patches of 16 and 8. They are recalled from the paper's appendix
# and not checked against it: the public code names none, but its detection recipes agree for
# tiny_12, small_12 and small_24.
_DROP_PATH = {
    "nano_12": (0.0, 0.0),
    "tiny_12": (0.0, 0.0),
    "tiny_24": (0.05, 0.05),
    "small_12": (0.05, 0.05),
    "small_24": (0.1, 0.1),
    "medium_24": (0.15, 0.15),
    "large_24": (0.25, 0.3),
}

PAPER_DROP_PATH = {
    f"xcit_{size}_p{patch}": rate
    for size, rates in _DROP_PATH.items()
    for patch, rate in zip((16, 8), rates, strict=True)
}
