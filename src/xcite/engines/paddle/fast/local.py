"""Local patch interaction with biases added apart from the convolutions."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.engines.paddle.fast.expected import as_built, has_parameters
from xcite.engines.paddle.fast.layer_scale import scaled
from xcite.engines.paddle.fast.repeating import add_bias, add_channel_bias
from xcite.engines.paddle.xcit import LPI


class FastLPI(LPI):
    """Convolutions without bias, which Paddle adds slowly."""

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Normalised tokens (B, N, C) -> (B, N, C)."""
        if not self.is_as_built():
            return super().forward(x, height, width)
        return self.branch(x, height, width)

    def is_as_built(self) -> bool:
        """Whether `branch` may read the layers' weights."""
        return (
            as_built(self.conv1, nn.Conv2D, _padding=1)
            and as_built(self.act, nn.GELU)
            and as_built(self.conv2, nn.Conv2D, _padding=1)
            and has_parameters(self.conv1)
            and has_parameters(self.conv2)
        )

    def branch(self, x: Tensor, height: int, width: int, gamma: Tensor | None = None) -> Tensor:
        """gamma * LPI(x): normalised tokens (B, N, C) -> (B, N, C)."""
        # Tokens are channels-last already, but Paddle's convolution turns such an image round, and
        # back, at each call: one that is channels-first takes half the time.
        dim = self.conv1.weight.shape[0]
        x = x.transpose([0, 2, 1]).reshape([x.shape[0], dim, height, width])
        weight, bias = scaled(self.conv2, gamma)
        if not paddle.in_dynamic_mode():  # there the bias costs nothing
            x = F.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1, groups=dim)
            x = F.conv2d(self.bn(self.act(x)), weight, bias, padding=1, groups=dim)
            return x.flatten(2).transpose([0, 2, 1])
        x = F.conv2d(x, self.conv1.weight, padding=1, groups=dim)
        x = self.bn(self.act(add_channel_bias(x, self.conv1.bias)))
        x = F.conv2d(x, weight, padding=1, groups=dim)
        return add_bias(x.flatten(2).transpose([0, 2, 1]), bias)
