"""Positions on a grid as sines and cosines (Vaswani et al. 2017, for two axes)."""

import math

import torch
from torch import Tensor

from xcite.families.xcit import POSITION_CHANNELS

CHANNELS = POSITION_CHANNELS // 2  # of an axis
TEMPERATURE = 10000
EPS = 1e-6


@torch.fx.wrap  # one operation for symbolic tracing, which cannot follow sizes into `ones`
def features(like: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(B, 64, Hp, Wp) in like's dtype: 32 channels of y, then 32 of x; sine, cosine, sine, ..."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    ones = torch.ones(batch, height, width, dtype=dtype, device=like.device)
    y, x = ones.cumsum(1), ones.cumsum(2)
    y = y / (y[:, -1:, :] + EPS) * (2 * math.pi)
    x = x / (x[:, :, -1:] + EPS) * (2 * math.pi)
    channel = torch.arange(CHANNELS, dtype=dtype, device=like.device)
    pair = torch.div(channel, 2, rounding_mode="floor")
    wavelength = TEMPERATURE ** (2 * pair / CHANNELS)
    axes = []
    for angle in (y[..., None] / wavelength, x[..., None] / wavelength):
        waves = (angle[..., 0::2].sin(), angle[..., 1::2].cos())
        axes.append(torch.stack(waves, dim=4).flatten(3))
    return torch.cat(axes, dim=3).permute(0, 3, 1, 2).to(like.dtype)
