"""Positions computed once per grid."""

import math
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.engines.paddle.fast.expected import as_built, has_bias
from xcite.engines.paddle.fast.precision import full_precision
from xcite.engines.paddle.fourier import CHANNELS, EPS, TEMPERATURE
from xcite.engines.paddle.xcit import PositionalEncodingFourier


class FastPositionalEncodingFourier(PositionalEncodingFourier):
    """One encoding for all pictures of a batch; what is not trained of it is kept per grid."""

    kept: dict[tuple[Any, ...], Tensor]

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        """(1, C, Hp, Wp)."""
        projection = self.token_projection
        if not (as_built(projection, nn.Conv2D, _padding=0) and has_bias(projection)):
            return super().forward(batch, height, width)
        with full_precision():
            tokens = F.linear(
                self.features(height, width), projection.weight.flatten(1).t(), projection.bias
            )
        return tokens.t().reshape([1, -1, height, width])

    def features(self, height: int, width: int) -> Tensor:
        """(N, 64): 32 channels of y, then 32 of x; computed once per grid."""
        weight = self.token_projection.weight
        if not paddle.in_dynamic_mode():
            return self._features(height, width, weight)
        key = (height, width, str(weight.place), weight.dtype)
        if key not in self.kept:
            if len(self.kept) >= 16:  # evaluation at many sizes must not fill the memory
                self.kept.clear()
            with paddle.no_grad():
                self.kept[key] = self._features(height, width, weight)
        return self.kept[key]

    def _features(self, height: int, width: int, like: Tensor) -> Tensor:
        dtype = paddle.float64 if like.dtype == paddle.float64 else paddle.float32
        exponent = paddle.arange(CHANNELS // 2, dtype=dtype)
        wavelength = paddle.pow(paddle.full([], TEMPERATURE, dtype), 2 * exponent / CHANNELS)

        def waves(count: int) -> Tensor:  # (count, 32): sine, cosine, sine, ...
            position = paddle.arange(1, count + 1).astype(dtype)
            angle = position / (position[-1] + EPS) * (2 * math.pi)
            angle = angle.unsqueeze(1) / wavelength
            return paddle.stack((angle.sin(), angle.cos()), axis=2).flatten(1)

        y = waves(height).unsqueeze(1).expand([-1, width, -1])
        x = waves(width).unsqueeze(0).expand([height, -1, -1])
        return paddle.concat((y, x), axis=2).flatten(0, 1).astype(like.dtype)
