"""Biases, copies and sums without the kernels of Paddle that are slow on a CPU.

Operations that repeat one operand, and the sums in their gradients, take five times as long there
as products with ones that do the same.
"""

import paddle
from paddle import Tensor


def repeats_slowly(x: Tensor) -> bool:
    """Whether broadcasting is the slower way: on a CPU, outside of programs."""
    cpu: bool = paddle.in_dynamic_mode() and x.place.is_cpu_place()
    return cpu


def repeated(x: Tensor, times: int) -> Tensor:
    """(...) -> (times, ...), or as it is where broadcasting is fast."""
    if not repeats_slowly(x):
        return x
    return (paddle.ones([times, 1], x.dtype) @ x.reshape([1, -1])).reshape([times, *x.shape])


def token_sums(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, C)."""
    if not repeats_slowly(x):
        return x.sum(1)
    return (paddle.ones([1, 1, x.shape[1]], x.dtype) @ x).squeeze(1)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x (B, N, C) + bias, (C,) or (B, 1, C)."""
    if not repeats_slowly(x):
        return x + bias
    if bias.ndim == 1:
        return x + repeated(bias, len(x) * x.shape[1]).reshape(x.shape)
    return x + paddle.ones([len(x), x.shape[1], 1], x.dtype) @ bias


def add_channel_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x (B, C, H, W) + bias (C,)."""
    if not repeats_slowly(x):
        return x + bias.reshape([-1, 1, 1])
    ones = paddle.ones([1, x.shape[2] * x.shape[3]], x.dtype)
    return x + repeated(bias.unsqueeze(1) @ ones, len(x)).reshape(x.shape)
