"""Which model a set of canonical shapes belongs to."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from xcite.canonical import Shape
from xcite.errors import XciteError
from xcite.variants import (
    ARCHITECTURES,
    Architecture,
    RegNetArchitecture,
    XCiTArchitecture,
    list_published_names,
)

# What no tensor shows: it follows the published model of the same width and heads.
UNREADABLE = ("tokens_norm", "eta")


def architecture_of(named: Mapping[str, Shape]) -> Architecture:
    """Read an architecture from canonical names and shapes.

    ``tokens_norm`` and ``eta`` leave no trace in the shapes: they are taken from the published
    model of the same width, depth and heads, else of the same width and heads.

    Raises:
        XciteError: when a tensor that decides is missing or has an impossible shape.
    """
    try:
        return _xcit(named) if "cls_token" in named else _regnet(named)
    except (KeyError, IndexError) as error:
        raise XciteError(
            f"the architecture cannot be read: {error.args[0]} is missing or misshapen"
        ) from error


def _shape(named: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    shape = named.get(name, ())
    if len(shape) != dimensions or 0 in shape:
        raise KeyError(name)
    return shape


def _count(named: Mapping[str, Shape], pattern: str) -> int:
    """How many consecutive indices, from 0, fill the pattern."""
    index = 0
    while pattern.format(index) in named:
        index += 1
    return index


def _xcit(named: Mapping[str, Shape]) -> XCiTArchitecture:
    width = _shape(named, "cls_token", 3)[2]
    convolutions = 0
    while f"patch_embed.proj.{2 * convolutions}.0.weight" in named:
        convolutions += 1
    hidden = _shape(named, "blocks.0.mlp.fc1.weight", 2)[0]
    ratio = hidden / width
    if int(width * ratio) != hidden:
        ratio = (hidden + 0.5) / width  # the quotient was rounded down
    if not 1 <= convolutions <= 4:
        raise XciteError(f"the stem has {convolutions} convolutions; XCiT has 1 to 4")
    architecture = XCiTArchitecture(
        patch_size=2**convolutions,
        embed_dim=width,
        depth=_count(named, "blocks.{}.attn.temperature"),
        num_heads=_shape(named, "blocks.0.attn.temperature", 3)[0],
        num_classes=named["head.weight"][0] if "head.weight" in named else 0,
        in_chans=_shape(named, "patch_embed.proj.0.0.weight", 4)[1],
        cls_attn_layers=_count(named, "cls_attn_blocks.{}.gamma1"),
        mlp_ratio=ratio,
        qkv_bias="blocks.0.attn.qkv.bias" in named,
        use_pos="pos_embeder.token_projection.weight" in named,
    )
    known = [row for row in ARCHITECTURES.values() if isinstance(row, XCiTArchitecture)]
    for fields in (("embed_dim", "num_heads", "depth"), ("embed_dim", "num_heads")):
        for row in known:
            if all(getattr(row, name) == getattr(architecture, name) for name in fields):
                return replace(architecture, tokens_norm=row.tokens_norm, eta=row.eta)
    return architecture


def _regnet(named: Mapping[str, Shape]) -> RegNetArchitecture:
    stages = []
    for s in range(1, 5):
        depth = sum(1 for name in named if re.fullmatch(rf"s{s}\.b\d+\.conv1\.conv\.weight", name))
        if depth:
            width, group = _shape(named, f"s{s}.b1.conv2.conv.weight", 4)[:2]
            stages.append((width, depth, group))
    if not stages:
        raise KeyError("s1.b1.conv1.conv.weight")
    stem = _shape(named, "stem.conv.weight", 4)
    squeezed = named.get("s1.b1.se.fc1.weight", (0,))[0]
    fixed = {
        "group_size": max(group for _, _, group in stages),
        "depth": sum(depth for _, depth, _ in stages),
        "se_ratio": squeezed / stem[0],
        "stem_width": stem[0],
        "num_classes": named["head.fc.weight"][0] if "head.fc.weight" in named else 0,
        "in_chans": stem[1],
    }
    wanted = [(width, depth) for width, depth, _ in stages]
    for candidate in _generators(wanted):
        architecture = RegNetArchitecture(*candidate, **fixed)  # type: ignore[arg-type]
        if [stage[:2] for stage in architecture.stages()] == wanted:
            return architecture
    raise XciteError(f"no RegNet has stages of widths and depths {wanted}")


def _generators(stages: list[tuple[int, int]]) -> Iterator[tuple[int, float, float]]:
    """(w0, wa, wm) that may give these (width, depth), published ones first.

    Only the stages matter to the model: any generating triple describes the same one. For a first
    width w0 and a factor wm each block's width bounds wa from both sides, so a grid over w0 and wm
    is searched.
    """
    for row in ARCHITECTURES.values():
        if isinstance(row, RegNetArchitecture):
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


def variant_of(architecture: Architecture, stem: str = "") -> str | None:
    """The published name behind an architecture; a file's name may say which of its three files."""
    for name, row in ARCHITECTURES.items():
        if _structure(row) == _structure(architecture):
            spoken = stem.replace("_distill", "_dist")
            spoken = re.sub(r"_(224|384)\.fb_dist_in1k", r"_\1_dist", spoken)
            spoken = spoken.removesuffix(".fb_in1k")
            known = spoken in list_published_names() and spoken.startswith(f"{name}_")
            return spoken if known else name
    return None


def _structure(architecture: Architecture) -> tuple[object, ...]:
    """What two models of the same variant share: all but channels, classes and training fields."""
    a = architecture
    if isinstance(a, RegNetArchitecture):
        return (*a.stages(), a.stem_width, a.se_ratio)
    return (
        *(a.patch_size, a.embed_dim, a.depth, a.num_heads, a.cls_attn_layers, a.mlp_ratio),
        *(a.qkv_bias, a.use_pos, a.tokens_norm),
    )
