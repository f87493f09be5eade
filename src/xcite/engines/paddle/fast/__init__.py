"""What makes XCiT fast on a CPU: the plain layers' parameters and names, another computation.

Each fast operator is a subclass of the plain one and gives its numbers but for rounding. It reads
weights past a layer's call; `expected` says when it does not.
"""

from typing import Any

from paddle import nn

from xcite.choices import Choices, default_choices
from xcite.engines.paddle.fast.attention import FastClassAttention, FastXCA
from xcite.engines.paddle.fast.blocks import (
    FastClassAttentionBlock,
    FastConvPatchEmbed,
    FastXCABlock,
    FastXCiT,
)
from xcite.engines.paddle.fast.local import FastLPI
from xcite.engines.paddle.fast.mlp import FastMlp
from xcite.engines.paddle.fast.norm import FastLayerNorm
from xcite.engines.paddle.fast.positions import FastPositionalEncodingFourier
from xcite.engines.paddle.kernels import library

FAST = {
    kind.__base__: kind
    for kind in (
        FastConvPatchEmbed,
        FastPositionalEncodingFourier,
        FastXCA,
        FastLPI,
        FastMlp,
        FastLayerNorm,
        FastXCABlock,
        FastClassAttention,
        FastClassAttentionBlock,
        FastXCiT,
    )
}

# Those with a choice of how to compute.
CHOOSING = (FastConvPatchEmbed, FastXCA, FastLPI, FastMlp, FastLayerNorm)


def accelerate(model: nn.Layer, attention: str = "auto", choices: Choices | None = None) -> Any:
    """Make a plain model, or a part of one, fast in place.

    Only layers of exactly a plain type become fast ones.

    Args:
        attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
        choices: among exact alternatives; by default what this processor is known for.
    """
    for layer in model.sublayers(include_self=True):
        layer.__class__ = FAST.get(type(layer), type(layer))
        if isinstance(layer, (FastXCA, FastClassAttention)):
            layer.form = attention
        elif isinstance(layer, FastPositionalEncodingFourier):
            layer.kept = {}
    use(model, choices or default_choices("paddle", compiled=library.available()))
    return model


def use(model: nn.Layer, choices: Choices) -> None:
    """Have the fast operators of a model compute as chosen from now on."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, CHOOSING):
            layer.choices = choices
