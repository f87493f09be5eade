"""What stays float32 under autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import paddle
from paddle import Tensor


def precise(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == paddle.float64 else x.astype(paddle.float32)


def full_precision() -> AbstractContextManager[Any]:
    """Switches autocast off: covariances, norms and softmax stay float32."""
    if paddle.is_autocast_enabled():
        return paddle.amp.auto_cast(enable=False)
    return nullcontext()
