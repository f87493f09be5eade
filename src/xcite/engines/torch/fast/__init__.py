"""What makes XCiT fast on a CPU: the plain modules' parameters and names, another computation.

Each fast operator is a subclass of the plain one and gives its numbers but for rounding. It reads
weights past a module's call; `expected` says when it does not.
"""

from torch import nn

from xcite.engines.torch.fast.attention import FastClassAttention, FastXCA
from xcite.engines.torch.fast.blocks import (
    FastClassAttentionBlock,
    FastConvPatchEmbed,
    FastXCABlock,
    FastXCiT,
)
from xcite.engines.torch.fast.gelu import FastGELU
from xcite.engines.torch.fast.local import FastLPI
from xcite.engines.torch.fast.mlp import FastMlp
from xcite.engines.torch.fast.positions import FastPositionalEncodingFourier
from xcite.engines.torch.xcit import XCiT

FAST: dict[type[nn.Module], type[nn.Module]] = {
    kind.__bases__[0]: kind
    for kind in (
        FastConvPatchEmbed,
        FastPositionalEncodingFourier,
        FastXCA,
        FastLPI,
        FastMlp,
        FastGELU,
        FastXCABlock,
        FastClassAttention,
        FastClassAttentionBlock,
        FastXCiT,
    )
}


def accelerate(model: XCiT, attention: str = "auto") -> XCiT:
    """Make a plain model fast, in place: each module of exactly a plain type becomes its fast one.

    Args:
        attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
    """
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))
        if isinstance(module, (FastXCA, FastClassAttention)):
            module.form = attention
        elif isinstance(module, FastPositionalEncodingFourier):
            module.kept = {}
    return model
