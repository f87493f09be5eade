"""GELU, its place in the MLP, and local patch interaction as compiled operators.

Each takes and gives float32 tensors on the CPU; `library.usable` says when.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xcite.engines.kernels.binding import fit
from xcite.engines.torch.kernels.library import call
from xcite.engines.torch.kernels.second_order import differentiated


def activate(hidden: Tensor, bias: Tensor) -> Tensor:
    """gelu(hidden + bias), which hidden (T, C), contiguous, then is."""
    fit([*bias.shape], [hidden.shape[1]])
    activated = torch.empty_like(hidden)
    call("activate", *hidden.shape, hidden, bias, activated)
    return activated


def activate_back(hidden: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(hidden) and the sum over rows of the gradient of hidden, which ``slope`` becomes.

    Args:
        hidden: (T, C), contiguous.
        slope: the gradient of gelu(hidden), contiguous too.
    """
    activated, sums = torch.empty_like(hidden), hidden.new_empty(hidden.shape[1])
    call("activate_back", *hidden.shape, hidden, slope, activated, sums)
    return activated, sums


def layer_norm_back(
    x: Tensor,
    weight: Tensor,
    statistics: tuple[Tensor, Tensor],
    grad: Tensor,
    residual: Tensor,
    grad_x: Tensor,
) -> Tensor:
    """Write the gradient of x plus residual, return those of weight and bias (2, C).

    Args:
        x: (T, C), contiguous as are grad, that of the normalised x, residual and grad_x.
        statistics: mean and inverse deviation of the rows.
    """
    found = x.new_empty(2, x.shape[1])
    given = (x, weight, *statistics, grad, residual)
    call("layer_norm_back", *x.shape, *given, grad_x, found[0], found[1])
    return found


class Gelu(torch.autograd.Function):
    """x times the normal distribution's function of x; x lies dense in memory, in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Of any shape."""
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        call("gelu", x.numel(), x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated, too
            return differentiated(F.gelu, (x,), (grad,), ctx.needs_input_grad)[0]
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        grad_x = torch.empty_like(x)
        call("gelu_back", x.numel(), x, grad, grad_x)
        return grad_x


@dataclass(frozen=True)
class Statistics:
    """What BatchNorm normalises by.

    Attributes:
        mean, variance: (C,), the biased one.
        batch: they are to be written: those of the batch.
    """

    mean: Tensor
    variance: Tensor
    batch: bool
    epsilon: float


class Local(torch.autograd.Function):
    """Depthwise 3x3 convolution, GELU, BatchNorm, depthwise 3x3 convolution, on tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        grid: tuple[int, int],
        statistics: Statistics,
        *weights: Tensor,
    ) -> Tensor:
        """x: (B, N, C), the tokens of a grid, row by row.

        weights: of the first convolution (C, 1, 3, 3), its bias (C,), BatchNorm's weight and bias
        (C,), of the last convolution and its bias.
        """
        x, weights = x.contiguous(), tuple(weight.contiguous() for weight in weights)
        hidden, y = torch.empty_like(x), torch.empty_like(x)
        mean, variance = statistics.mean, statistics.variance
        tokens, width = x.shape[1:]
        fit([tokens], [grid[0] * grid[1]])
        shapes = [[width, 1, 3, 3], [width], [width], [width], [width, 1, 3, 3], [width]]
        fit([[*t.shape] for t in (*weights, mean, variance)], [*shapes, [width], [width]])
        ctx.sizes = (len(x), *grid, x.shape[2], statistics.batch, statistics.epsilon)
        call("local", *ctx.sizes, x, *weights, hidden, mean, variance, y)
        ctx.save_for_backward(x, hidden, mean, variance, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, mean, variance, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated, too
            _, height, width, _, batch, epsilon = ctx.sizes
            kept = (None, None) if batch else (mean, variance)

            def plain(x: Tensor, *weights: Tensor) -> Tensor:
                return plain_local(x, (height, width), kept, epsilon, *weights)

            needed = ctx.needs_input_grad
            found = differentiated(plain, (x, *weights), (grad,), needed[:1] + needed[3:])
            return found[0], None, None, *found[1:]
        weight1, _, norm_weight, norm_bias, weight2, _ = weights
        given = (x, weight1, norm_weight, norm_bias, weight2, hidden, mean, variance)
        space, grad_x, *grads = (torch.empty_like(t) for t in (x, x, *weights))
        call("local_back", *ctx.sizes, *given, grad.contiguous(), space, grad_x, *grads)
        return grad_x, None, None, *grads


def plain_local(
    x: Tensor,
    grid: tuple[int, int],
    statistics: tuple[Tensor | None, Tensor | None],
    epsilon: float,
    weight1: Tensor,
    bias1: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """What `Local` computes, by PyTorch's own; without statistics by those of the batch."""
    x = x.transpose(1, 2).unflatten(2, grid)
    channels = x.shape[1]
    x = F.gelu(F.conv2d(x, weight1, bias1, padding=1, groups=channels))
    batch = statistics[0] is None
    x = F.batch_norm(x, *statistics, norm_weight, norm_bias, batch, eps=epsilon)
    return F.conv2d(x, weight2, bias2, padding=1, groups=channels).flatten(2).transpose(1, 2)
