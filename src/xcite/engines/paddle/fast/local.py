"""Local patch interaction as one compiled operator, or with biases apart from the convolutions."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.choices import Choices
from xcite.engines.paddle.batch_norm import BatchNorm2D
from xcite.engines.paddle.fast.expected import as_built, has_bias
from xcite.engines.paddle.fast.layer_scale import scaled
from xcite.engines.paddle.fast.repeating import add_bias, add_channel_bias
from xcite.engines.paddle.kernels import library, operators
from xcite.engines.paddle.xcit import LPI


class FastLPI(LPI):
    """Compiled, where that is chosen; else without biases, which Paddle adds slowly."""

    choices: Choices

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
            and has_bias(self.conv1)
            and has_bias(self.conv2)
        )

    def branch(self, x: Tensor, height: int, width: int, gamma: Tensor | None = None) -> Tensor:
        """gamma * LPI(x): normalised tokens (B, N, C) -> (B, N, C)."""
        first, last = self.conv1, self.conv2
        weight, bias = scaled(last, gamma)
        if self._compiles(x):
            return self._compiled(height, width, x, weight, bias)
        # Tokens are channels-last already, but Paddle's convolution turns such an image round, and
        # back, at each call: one that is channels-first takes half the time.
        x = x.transpose([0, 2, 1]).reshape([x.shape[0], first._in_channels, height, width])
        if not paddle.in_dynamic_mode():  # there the bias costs nothing
            x = self.bn(self.act(first(x)))
            x = F.conv2d(x, weight, bias, padding=1, groups=last._groups)
            return x.flatten(2).transpose([0, 2, 1])
        x = F.conv2d(x, first.weight, padding=1, groups=first._groups)
        x = self.bn(self.act(add_channel_bias(x, first.bias)))
        x = F.conv2d(x, weight, padding=1, groups=last._groups)
        return add_bias(x.flatten(2).transpose([0, 2, 1]), bias)

    def _compiles(self, x: Tensor) -> bool:
        first, last, norm = self.conv1, self.conv2, self.bn
        if not (as_built(norm, BatchNorm2D) and has_bias(norm)):
            return False
        if not first.weight.shape == last.weight.shape == [x.shape[2], 1, 3, 3]:
            return False
        return library.usable(self.choices, x, *first.parameters(), *norm.parameters())

    def _compiled(self, height: int, width: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first, norm = self.conv1, self.bn
        weights = (first.weight, first.bias, norm.weight, norm.bias, weight, bias)
        if norm.training:
            mean, variance = (paddle.empty([x.shape[2]]) for _ in range(2))
        else:  # copies: the backward pass needs what there was
            mean, variance = norm._mean.clone(), norm._variance.clone()
        statistics = operators.Statistics(mean, variance, norm.training, norm._epsilon)
        y: Tensor = operators.Local.apply(x, *weights, (height, width), statistics)
        norm.count_in(mean, variance, len(x) * height * width)
        return y
