"""Positions computed once per grid."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.engines.torch.fast.expected import as_built, ordinary
from xcite.engines.torch.fast.precision import full_precision
from xcite.engines.torch.fourier import CHANNELS, EPS, TEMPERATURE
from xcite.engines.torch.xcit import PositionalEncodingFourier


class FastPositionalEncodingFourier(PositionalEncodingFourier):
    """One encoding for all pictures of a batch; what is not trained of it is kept per grid."""

    kept: dict[tuple[Any, ...], Tensor]

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        """(1, C, Hp, Wp)."""
        projection = self.token_projection
        if not (as_built(projection, nn.Conv2d) and ordinary(projection.weight)):
            return super().forward(batch, height, width)
        with full_precision(projection.weight):
            tokens = F.linear(
                self.features(height, width), projection.weight.flatten(1), projection.bias
            )
        return tokens.t().unflatten(1, (height, width))[None]

    def features(self, height: int, width: int) -> Tensor:
        """(N, 64): 32 channels of y, then 32 of x; computed once per grid."""
        weight = self.token_projection.weight
        # Under a mode such as FakeTensorMode tensors hold no numbers to keep.
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self._features(height, width, weight)
        key = (height, width, weight.device, weight.dtype)
        if key not in self.kept:
            if len(self.kept) >= 16:  # evaluation at many sizes must not fill the memory
                self.kept.clear()
            # Under inference_mode the tensor could not be used in a later training step.
            with torch.inference_mode(False):
                self.kept[key] = self._features(height, width, weight)
        return self.kept[key]

    def _features(self, height: int, width: int, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        exponent = torch.arange(CHANNELS // 2, dtype=dtype, device=like.device)
        wavelength = TEMPERATURE ** (2 * exponent / CHANNELS)

        def waves(count: int) -> Tensor:  # (count, 32): sine, cosine, sine, ...
            position = torch.arange(1, count + 1, dtype=dtype, device=like.device)
            angle = position / (count + EPS) * (2 * math.pi)
            angle = angle[:, None] / wavelength
            return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)

        y = waves(height)[:, None].expand(-1, width, -1)
        x = waves(width)[None].expand(height, -1, -1)
        return torch.cat((y, x), dim=2).flatten(0, 1).to(like.dtype)
