"""LayerScale multiplied into a branch's last weight, which is smaller than the branch's output."""

from paddle import Tensor, nn


def scaled(layer: nn.Layer, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of gamma * layer(x); linear weights are (in, out), those of a convolution
    (out, in / groups, kernel, kernel). None stands for ones."""
    if gamma is None:
        return layer.weight, layer.bias
    by_output = gamma.reshape([-1, 1, 1, 1]) if layer.weight.ndim == 4 else gamma
    return layer.weight * by_output, layer.bias * gamma
