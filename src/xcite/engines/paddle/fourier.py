"""Positions on a grid as sines and cosines (Vaswani et al. 2017, for two axes)."""

import math

import paddle
from paddle import Tensor

from xcite.families.xcit import POSITION_CHANNELS

CHANNELS = POSITION_CHANNELS // 2  # of an axis
TEMPERATURE = 10000
EPS = 1e-6


def features(like: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(B, 64, Hp, Wp) in like's dtype: 32 channels of y, then 32 of x; sine, cosine, sine, ..."""
    dtype = paddle.float64 if like.dtype == paddle.float64 else paddle.float32
    ones = paddle.ones([batch, height, width], dtype)
    y, x = ones.cumsum(1), ones.cumsum(2)
    y = y / (y[:, -1:, :] + EPS) * (2 * math.pi)
    x = x / (x[:, :, -1:] + EPS) * (2 * math.pi)
    pair = (paddle.arange(CHANNELS, dtype=dtype) / 2).floor()
    wavelength = TEMPERATURE ** (2 * pair / CHANNELS)
    axes = []
    for angle in (y[..., None] / wavelength, x[..., None] / wavelength):
        waves = (angle[..., 0::2].sin(), angle[..., 1::2].cos())
        axes.append(paddle.stack(waves, axis=4).flatten(3))
    return paddle.concat(axes, axis=3).transpose([0, 3, 1, 2]).astype(like.dtype)
