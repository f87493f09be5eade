"""Local patch interaction on the tokens as they lie in memory."""

import torch.nn.functional as F
from torch import Tensor, nn

from xcite.engines.torch.fast.expected import as_built
from xcite.engines.torch.fast.layer_scale import scaled
from xcite.engines.torch.fast.precision import autocast_dtype
from xcite.engines.torch.xcit import LPI


class FastLPI(LPI):
    """Without a copy: (B, N, C) seen as (B, C, Hp, Wp) is channels-last."""

    def is_as_built(self) -> bool:
        """Whether `branch` may read the modules' weights."""
        return as_built(self.conv2, nn.Conv2d)

    def branch(self, x: Tensor, height: int, width: int, gamma: Tensor | None = None) -> Tensor:
        """gamma * LPI(x): normalised tokens (B, N, C) -> (B, N, C)."""
        # Changing the dtype before it is seen so is the faster order.
        x = x.to(autocast_dtype(x))
        x = x.transpose(1, 2).unflatten(2, (height, width))
        x = self.bn(self.act(self.conv1(x)))
        conv, (weight, bias) = self.conv2, scaled(self.conv2, gamma)
        x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return x.flatten(2).transpose(1, 2)
