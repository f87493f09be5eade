"""LayerScale inside the last weight of its branch, which is smaller than the branch's output."""

from typing import Any

from torch import Tensor


def scaled(layer: Any, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of gamma * layer(x); gamma: (K,), None for ones."""
    weight, bias = layer.weight, layer.bias
    if gamma is None:
        return weight, bias
    return weight * gamma.view(-1, *[1] * (weight.ndim - 1)), bias * gamma
