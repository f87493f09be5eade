"""What makes XCiT fast on a CPU: the plain layers' parameters and names, another computation.

Each fast operator is a subclass of the plain one and gives its numbers but for rounding. It reads
weights past a layer's call; `expected` says when it does not.
"""

from xcite.engines.paddle.fast.attention import FastClassAttention, FastXCA
from xcite.engines.paddle.fast.blocks import (
    FastClassAttentionBlock,
    FastConvPatchEmbed,
    FastXCABlock,
    FastXCiT,
)
from xcite.engines.paddle.fast.local import FastLPI
from xcite.engines.paddle.fast.mlp import FastMlp
from xcite.engines.paddle.fast.positions import FastPositionalEncodingFourier
from xcite.engines.paddle.xcit import XCiT

FAST = {
    kind.__base__: kind
    for kind in (
        FastConvPatchEmbed,
        FastPositionalEncodingFourier,
        FastXCA,
        FastLPI,
        FastMlp,
        FastXCABlock,
        FastClassAttention,
        FastClassAttentionBlock,
        FastXCiT,
    )
}


def accelerate(model: XCiT, attention: str = "auto") -> XCiT:
    """Make a plain model fast, in place: each layer of exactly a plain type becomes its fast one.

    Args:
        attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
    """
    for layer in model.sublayers(include_self=True):
        kind = FAST.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
        if isinstance(layer, (FastXCA, FastClassAttention)):
            layer.form = attention
        elif isinstance(layer, FastPositionalEncodingFourier):
            layer.kept = {}
    return model
