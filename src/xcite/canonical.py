"""Canonical weights: the official PyTorch names and shapes, as NumPy arrays.

XCiT is named as in facebookresearch/xcit, RegNetY as in timm. Linear weights are (out, in),
convolutions (out, in / groups, height, width). Every engine reads and gives this form, and every
dialect in `xcite.weights.dialects` is a table to and from it.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from xcite.errors import XciteError
from xcite.randomness import generator
from xcite.variants import Architecture, RegNetArchitecture, XCiTArchitecture

Shape = tuple[int, ...]
Weights = dict[str, np.ndarray]


def is_parameter(name: str) -> bool:
    """Whether the tensor is trained; the others are BatchNorm's buffers."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def parameter_count(architecture: Architecture) -> int:
    """Number of trained values (buffers such as running means are not counted)."""
    named = shapes(architecture).items()
    return sum(math.prod(shape) for name, shape in named if is_parameter(name))


def shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every canonical tensor of the architecture and its shape, in the reference's order."""
    if isinstance(architecture, RegNetArchitecture):
        return dict(_regnet(architecture))
    return dict(_xcit(architecture))


def _norm(name: str, width: int) -> list[tuple[str, Shape]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _batch_norm(name: str, width: int) -> list[tuple[str, Shape]]:
    return [
        *_norm(name, width),
        (f"{name}.running_mean", (width,)),
        (f"{name}.running_var", (width,)),
        (f"{name}.num_batches_tracked", ()),
    ]


def _linear(name: str, out: int, into: int, bias: bool = True) -> list[tuple[str, Shape]]:
    weight: list[tuple[str, Shape]] = [(f"{name}.weight", (out, into))]
    return weight + ([(f"{name}.bias", (out,))] if bias else [])


def _mlp(name: str, width: int, ratio: float) -> list[tuple[str, Shape]]:
    hidden = int(width * ratio)
    return _linear(f"{name}.fc1", hidden, width) + _linear(f"{name}.fc2", width, hidden)


def _xcit(a: XCiTArchitecture) -> list[tuple[str, Shape]]:
    width = a.embed_dim
    named: list[tuple[str, Shape]] = [("cls_token", (1, 1, width))]
    into = a.in_chans
    for i, out in enumerate(a.stem_widths()):
        named.append((f"patch_embed.proj.{2 * i}.0.weight", (out, into, 3, 3)))
        named += _batch_norm(f"patch_embed.proj.{2 * i}.1", out)
        into = out
    for i in range(a.depth):
        block = f"blocks.{i}"
        named += [(f"{block}.gamma{k}", (width,)) for k in (1, 2, 3)]
        named += _norm(f"{block}.norm1", width)
        named.append((f"{block}.attn.temperature", (a.num_heads, 1, 1)))
        named += _linear(f"{block}.attn.qkv", 3 * width, width, a.qkv_bias)
        named += _linear(f"{block}.attn.proj", width, width)
        named += _norm(f"{block}.norm2", width)
        named += _mlp(f"{block}.mlp", width, a.mlp_ratio)
        named += _norm(f"{block}.norm3", width)
        for conv in ("conv1", "conv2"):
            named.append((f"{block}.local_mp.{conv}.weight", (width, 1, 3, 3)))
            named.append((f"{block}.local_mp.{conv}.bias", (width,)))
            if conv == "conv1":
                named += _batch_norm(f"{block}.local_mp.bn", width)
    for i in range(a.cls_attn_layers):
        block = f"cls_attn_blocks.{i}"
        named += [(f"{block}.gamma{k}", (width,)) for k in (1, 2)]
        named += _norm(f"{block}.norm1", width)
        named += _linear(f"{block}.attn.qkv", 3 * width, width, a.qkv_bias)
        named += _linear(f"{block}.attn.proj", width, width)
        named += _norm(f"{block}.norm2", width)
        named += _mlp(f"{block}.mlp", width, a.mlp_ratio)
    named += _norm("norm", width)
    if a.num_classes:
        named += _linear("head", a.num_classes, width)
    if a.use_pos:
        named.append(("pos_embeder.token_projection.weight", (width, 64, 1, 1)))
        named.append(("pos_embeder.token_projection.bias", (width,)))
    return named


def _regnet(a: RegNetArchitecture) -> list[tuple[str, Shape]]:
    def conv(
        name: str, out: int, into: int, kernel: int, groups: int = 1
    ) -> list[tuple[str, Shape]]:
        weight = (f"{name}.conv.weight", (out, into // groups, kernel, kernel))
        return [weight, *_batch_norm(f"{name}.bn", out)]

    named = conv("stem", a.stem_width, a.in_chans, 3)
    into = a.stem_width
    for s, (width, depth, groups) in enumerate(a.stages(), 1):
        for b in range(1, depth + 1):
            block = f"s{s}.b{b}"
            named += conv(f"{block}.conv1", width, into, 1)
            named += conv(f"{block}.conv2", width, width, 3, groups)
            if a.se_ratio:
                squeezed = round(into * a.se_ratio)
                for k, (out, inner) in enumerate(((squeezed, width), (width, squeezed)), 1):
                    named.append((f"{block}.se.fc{k}.weight", (out, inner, 1, 1)))
                    named.append((f"{block}.se.fc{k}.bias", (out,)))
            named += conv(f"{block}.conv3", width, width, 1)
            if b == 1:
                named += conv(f"{block}.downsample", width, into, 1)
            into = width
    if a.num_classes:
        named += _linear("head.fc", a.num_classes, into)
    return named


def initial_weights(architecture: Architecture, seed: int = 0) -> Weights:
    """Weights to start training from, the same on every engine.

    The distributions are the official ones (xcit.py, timm's regnet.py on PyTorch): truncated normal
    of deviation 0.02 for linear maps and CLS, PyTorch's uniform for XCiT's convolutions and their
    biases, He's normal (fan out) for RegNet's, LayerScale ``eta``, norms 1 and 0, temperature 1.
    """
    regnet = isinstance(architecture, RegNetArchitecture)
    named = shapes(architecture)
    weights = {}
    for name, shape in named.items():
        random = generator(seed, f"initial {name}")
        leaf = name.rsplit(".", 1)[-1]
        kernel = named.get(re.sub("(weight|bias)$", "weight", name), ())
        if leaf == "num_batches_tracked":
            weights[name] = np.zeros(shape, np.int64)
            continue
        if leaf.startswith("gamma"):
            assert isinstance(architecture, XCiTArchitecture)
            value = np.full(shape, architecture.eta)
        elif leaf in ("running_var", "temperature") or (leaf == "weight" and len(shape) == 1):
            value = np.ones(shape)
        elif leaf == "running_mean":
            value = np.zeros(shape)
        elif leaf == "cls_token" or (leaf == "weight" and len(shape) == 2):
            deviation = 0.01 if regnet else 0.02
            value = np.clip(random.standard_normal(shape), -2 / deviation, 2 / deviation)
            value = value * deviation
        elif leaf == "weight" and regnet:
            fan_out = shape[0] * shape[2] * shape[3] // _groups(architecture, name)
            value = random.standard_normal(shape) * math.sqrt(2 / fan_out)
        elif leaf in ("weight", "bias") and len(kernel) == 4 and not regnet:
            bound = 1 / math.sqrt(math.prod(kernel[1:]))
            value = random.uniform(-bound, bound, shape)
        else:
            value = np.zeros(shape)
        weights[name] = value.astype(np.float32)
    return weights


def _groups(architecture: Architecture, name: str) -> int:
    assert isinstance(architecture, RegNetArchitecture)
    found = re.match(r"s(\d+)\.b\d+\.conv2\.", name)
    return architecture.stages()[int(found[1]) - 1][2] if found else 1


def check(weights: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    """Refuse weights that do not fit the architecture exactly.

    ``num_batches_tracked`` may be missing: it counts batches and changes no number.

    Raises:
        XciteError: naming missing, left-over and misshapen tensors.
    """
    expected = shapes(architecture)
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    extra = [n for n in weights if n not in expected]
    misshapen = [
        f"{n} is {tuple(weights[n].shape)}, expected {shape}"
        for n, shape in expected.items()
        if n in weights and tuple(weights[n].shape) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for title, names in (
            ("missing", missing),
            ("not part of the model", extra),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise XciteError(f"the weights do not fit the model; {'; '.join(problems)}")
