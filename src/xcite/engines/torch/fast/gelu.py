"""GELU by the faster kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.choices import Choices
from xcite.engines.torch.fast.expected import ordinary
from xcite.engines.torch.fast.matmul import linear
from xcite.engines.torch.kernels import library, operators


class FastGELU(nn.GELU):
    """The compiled one where that is chosen; on bfloat16 pictures that are channels-last, oneDNN's.

    Else PyTorch's own.
    """

    choices: Choices

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not ordinary(x) or self.approximate != "none":
            return super().forward(x)
        if library.usable(self.choices, x) and is_dense(x):
            y: Tensor = operators.Gelu.apply(x)
            return y
        if self.choices.turned_gelu and x.dtype == torch.bfloat16 and x.ndim == 4:
            # oneDNN takes plain tensors only.
            return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return super().forward(x)


def is_dense(x: Tensor) -> bool:
    """Whether the numbers lie one after the other, in whatever order of the axes."""
    return torch.ops.aten.is_non_overlapping_and_dense(x)


def gelu_of_linear(
    x: Tensor, weight: Tensor, bias: Tensor, choices: Choices
) -> tuple[Tensor, Tensor]:
    """h = x W^T + b and gelu(h), both (T, K), of x (T, C), without a gradient."""
    if library.usable(choices, x):
        hidden = linear(x, weight, None, choices)
        return hidden, operators.activate(hidden, bias)
    hidden = linear(x, weight, bias, choices)
    return hidden, F.gelu(hidden)


def gelu_again(
    hidden: Tensor, activated: Tensor | None, grad: Tensor, choices: Choices
) -> tuple[Tensor, Tensor, Tensor]:
    """gelu(hidden), the gradient of hidden (T, C), and its sum over rows.

    Args:
        hidden: (T, C), contiguous.
        activated: gelu(hidden), if it was kept.
        grad: of gelu(hidden), contiguous; it may be overwritten.
    """
    if activated is None and library.usable(choices, hidden, grad):
        activated, sums = operators.activate_back(hidden, grad)
        return activated, grad, sums
    if activated is None:
        activated = F.gelu(hidden)
    grad = torch.ops.aten.gelu_backward(grad, hidden)
    return activated, grad, grad.sum(0)
