"""Local patch interaction on the tokens as they lie in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.choices import Choices
from xcite.engines.torch.batch_norm import BatchNorm2D
from xcite.engines.torch.fast.expected import as_built
from xcite.engines.torch.fast.gelu import FastGELU
from xcite.engines.torch.fast.layer_scale import scaled
from xcite.engines.torch.fast.precision import autocast_dtype
from xcite.engines.torch.kernels import library, operators
from xcite.engines.torch.xcit import LPI


class FastLPI(LPI):
    """As one compiled operator, where that is chosen; else without a copy.

    (B, N, C) seen as (B, C, Hp, Wp) is channels-last.
    """

    choices: Choices

    def is_as_built(self) -> bool:
        """Whether `branch` may read the modules' weights."""
        return as_built(self.conv2, nn.Conv2d)

    def branch(self, x: Tensor, height: int, width: int, gamma: Tensor | None = None) -> Tensor:
        """gamma * LPI(x): normalised tokens (B, N, C) -> (B, N, C)."""
        conv, (weight, bias) = self.conv2, scaled(self.conv2, gamma)
        # Changing the dtype before it is seen so is the faster order.
        x = x.to(autocast_dtype(x))
        if self._compiles(x):
            return self._compiled(x, (height, width), weight, bias)
        x = x.transpose(1, 2).unflatten(2, (height, width))
        x = self.bn(self.act(self.conv1(x)))
        x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return x.flatten(2).transpose(1, 2)

    def _compiles(self, x: Tensor) -> bool:
        norm, convolutions = self.bn, (self.conv1, self.conv2)
        return (
            library.usable(self.choices, x, *self.parameters())
            and all(as_built(conv, nn.Conv2d) and _local(conv, x.shape[2]) for conv in convolutions)
            and as_built(self.act, FastGELU)
            and self.act.approximate == "none"
            and as_built(norm, BatchNorm2D)
            and norm.running_mean is not None
            and library.usable(self.choices, norm.running_mean, norm.running_var)
            and norm.momentum is not None
            # PyTorch has words for a batch of one value
            and not (norm.training and x[..., 0].numel() == 1)
        )

    def _compiled(self, x: Tensor, grid: tuple[int, int], weight: Tensor, bias: Tensor) -> Tensor:
        first, norm = self.conv1, self.bn
        # copies: the backward pass needs what there was
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        statistics = operators.Statistics(mean, variance, norm.training, norm.eps)
        weights = (first.weight, first.bias, norm.weight, norm.bias, weight, bias)
        y: Tensor = operators.Local.apply(x, grid, statistics, *weights)
        if norm.training:
            with torch.no_grad():
                count = x[..., 0].numel()
                norm.num_batches_tracked.add_(1)
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        return y


def _local(conv: nn.Conv2d, channels: int) -> bool:
    """Whether it maps each channel's neighbourhood of 3 x 3."""
    kinds = conv.weight.shape == (channels, 1, 3, 3), conv.groups == channels
    return all(kinds) and (conv.stride, conv.padding, conv.dilation) == ((1, 1),) * 3
