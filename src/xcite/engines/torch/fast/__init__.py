"""What makes XCiT fast on a CPU: the plain modules' parameters and names, another computation.

Each fast operator is a subclass of the plain one and gives its numbers but for rounding. It reads
weights past a module's call; `expected` says when it does not.
"""

from typing import TypeVar

from torch import nn

from xcite.choices import Choices, default_choices
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

Module = TypeVar("Module", bound=nn.Module)

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


def accelerate(model: Module, attention: str = "auto", choices: Choices | None = None) -> Module:
    """Make a plain model or a part of one fast, in place.

    Each module of exactly a plain type becomes its fast one.

    Args:
        attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
        choices: among exact alternatives; by default what this processor is known for.
    """
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))
        if isinstance(module, (FastXCA, FastClassAttention)):
            module.form = attention
        elif isinstance(module, FastPositionalEncodingFourier):
            module.kept = {}
    use(model, choices or default_choices("torch"))
    return model


def use(model: nn.Module, choices: Choices) -> None:
    """Have the fast operators of a model compute as chosen from now on."""
    for module in model.modules():
        if isinstance(module, (FastXCA, FastLPI, FastMlp, FastGELU)):
            module.choices = choices
