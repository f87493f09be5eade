"""Which dtype an operator computes in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with x."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if enabled else x.dtype


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: covariances, norms and softmax stay float32."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
