"""LayerNorm, local patch interaction, MLP and products of pictures as compiled operators.

Each takes and gives float32 tensors on the CPU; `library.usable` says when. They have a gradient
but no second derivative, and say so when asked.
"""

from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from xcite.engines.kernels.binding import fit
from xcite.engines.paddle.kernels.library import call
from xcite.errors import XciteError

Gradients = tuple[Tensor | None, ...]


class _Operator(PyLayer):
    """A PyLayer whose gradient is computed past Paddle: nothing could differentiate it again."""

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor) -> Gradients:
        if paddle.is_grad_enabled():
            raise XciteError(
                "compiled operators have no second derivative; build the model with plain ones"
            )
        found = cls.gradients(ctx, *(grad.contiguous() for grad in grads))
        return tuple(g if needs else None for g, needs in zip(found, ctx.needs, strict=True))

    @staticmethod
    def gradients(ctx: Any, *grads: Tensor) -> Gradients:
        """Of all tensors that `forward` takes."""
        raise NotImplementedError


def _begin(ctx: Any, *tensors: Tensor | None) -> list[Any]:
    ctx.needs = [not tensor.stop_gradient for tensor in tensors if tensor is not None]
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def _like(*tensors: Tensor) -> list[Tensor]:
    return [paddle.empty(tensor.shape, tensor.dtype) for tensor in tensors]


class Gelu(_Operator):
    """x times the normal distribution's function of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Of any shape."""
        with paddle.no_grad():
            (x,) = _begin(ctx, x)
            (y,) = _like(x)
            call("gelu", x.size, x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        (x,) = ctx.saved_tensor()
        (grad_x,) = _like(x)
        call("gelu_back", x.size, x, grad, grad_x)
        return (grad_x,)


class Convolution(_Operator):
    """3x3 convolution over all channels, padded by a pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """(B, C, H, W) and (D, C, 3, 3) -> (B, D, ceil(H / stride), ceil(W / stride))."""
        with paddle.no_grad():
            x, weight = _begin(ctx, x, weight)
            batch, channels, height, width = x.shape
            out = len(weight)
            fit(weight.shape, [out, channels, 3, 3])
            ctx.sizes = (batch, height, width, channels, out, stride)
            y = paddle.empty([batch, out, -(-height // stride), -(-width // stride)])
            call("convolve", *ctx.sizes, x, weight, y)
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensor()
        grad_x = _like(x)[0] if ctx.needs[0] else None
        (grad_weight,) = _like(weight)
        call("convolve_back", *ctx.sizes, x, weight, grad, grad_x, grad_weight)
        return grad_x, grad_weight


class LayerNorm(_Operator):
    """Weight times x normalised over the last axis, plus bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """x: (..., C), weight and bias: (C,)."""
        with paddle.no_grad():
            x, weight, bias = _begin(ctx, x, weight, bias)
            rows, width = x.size // x.shape[-1], x.shape[-1]
            fit([weight.shape, bias.shape], [[width], [width]])
            (y,) = _like(x)
            mean, inverse = paddle.empty([rows]), paddle.empty([rows])
            call("layer_norm", rows, width, epsilon, x, weight, bias, y, mean, inverse)
        ctx.save_for_backward(x, weight, mean, inverse)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight, mean, inverse = ctx.saved_tensor()
        grad_x, grad_weight, grad_bias = _like(x, weight, weight)
        sizes = (len(mean), len(weight))
        given = (x, weight, mean, inverse, grad)
        call("layer_norm_back", *sizes, *given, None, grad_x, grad_weight, grad_bias)
        return grad_x, grad_weight, grad_bias


@dataclass(frozen=True)
class Statistics:
    """What BatchNorm normalises by; PyLayer would take tensors in a tuple for its own.

    Attributes:
        mean, variance: (C,), the biased one.
        batch: they are to be written: those of the batch.
    """

    mean: Tensor
    variance: Tensor
    batch: bool
    epsilon: float


class Local(_Operator):
    """Depthwise 3x3 convolution, GELU, BatchNorm, depthwise 3x3 convolution, on tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        grid: tuple[int, int],
        statistics: Statistics,
    ) -> Tensor:
        """x: (B, N, C), the tokens of a grid, row by row; weights as in nn.Conv2D."""
        kept = (statistics.mean, statistics.variance)
        with paddle.no_grad():
            x, *rest = _begin(ctx, x, weight1, bias1, norm_weight, norm_bias, weight2, bias2)
            batch, tokens, width = x.shape
            shapes = [[width, 1, 3, 3], [width], [width], [width], [width, 1, 3, 3], [width]]
            fit([t.shape for t in (*rest, *kept)], [*shapes, [width], [width]])
            fit([tokens], [grid[0] * grid[1]])
            hidden, y = _like(x, x)
            ctx.sizes = (batch, *grid, width, statistics.batch, statistics.epsilon)
            call("local", *ctx.sizes, x, *rest, hidden, *kept, y)
        weight1, _, norm_weight, norm_bias, weight2, _ = rest
        ctx.save_for_backward(x, weight1, norm_weight, norm_bias, weight2, hidden, *kept)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight1, norm_weight, norm_bias, weight2, *rest = ctx.saved_tensor()
        given = (x, weight1, norm_weight, norm_bias, weight2, *rest, grad)
        channel = norm_bias
        found = _like(x, weight1, channel, channel, channel, weight2, channel)
        (space,) = _like(x)
        call("local_back", *ctx.sizes, *given, space, *found)
        return tuple(found)


class Mlp(_Operator):
    """gelu(x W1 + b1) W2 + b2, a few hundred tokens at a time, see `fast.mlp.SlicedMlp`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        keep: bool,
        slice_bytes: int,
    ) -> Tensor:
        """x: (..., C); weights as in nn.Linear; keep: there will be a backward pass."""
        with paddle.no_grad():
            x, weight1, bias1, weight2, bias2 = _begin(ctx, x, weight1, bias1, weight2, bias2)
            channels, wide = weight1.shape
            shapes = [t.shape for t in (bias1, weight2, bias2)]
            fit([x.shape[-1], *shapes], [channels, [wide], [wide, channels], [channels]])
            rows = x.size // channels
            step = min(slice_bytes // 4, rows)
            (y,) = _like(x)
            hidden, activated = (paddle.empty([n, wide]) for n in (rows if keep else step, step))
            ctx.sizes = (rows, channels, wide, step)
            call("mlp", *ctx.sizes, keep, x, weight1, bias1, weight2, bias2, hidden, activated, y)
        if keep:
            ctx.save_for_backward(x, weight1, weight2, hidden)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        x, weight1, weight2, hidden = ctx.saved_tensor()
        _, channels, wide, step = ctx.sizes
        activated, grad_hidden = (paddle.empty([step, wide]) for _ in range(2))
        grad_x, grad_weight1, grad_weight2 = _like(x, weight1, weight2)
        grad_bias1, grad_bias2 = paddle.empty([wide]), paddle.empty([channels])
        found = (grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2)
        given = (x, weight1, weight2, hidden, grad)
        call("mlp_back", *ctx.sizes, *given, activated, grad_hidden, *found)
        return found


class Products(_Operator):
    """a @ b + offset of each picture."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offset: Tensor | None) -> Tensor:
        """(B, M, K), (B, K, N) and (B, 1, N) or None -> (B, M, N)."""
        with paddle.no_grad():
            a, b, offset = _begin(ctx, a, b, offset)
            y = _products(a, b, offset)
        ctx.save_for_backward(a, b)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        a, b = ctx.saved_tensor()
        of_a, of_b, *more = ctx.needs
        return (
            _products(grad, b, turn_b=True) if of_a else None,
            _products(a, grad, turn_a=True) if of_b else None,
            *(_row_sums(grad) for _ in more),
        )


class Gram(_Operator):
    """x^T x and x^T 1 of each picture."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) -> (B, C, C) and (B, 1, C)."""
        with paddle.no_grad():
            (x,) = _begin(ctx, x)
            y = _products(x, x, turn_a=True), _row_sums(x)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor, of_sums: Tensor) -> Gradients:
        (x,) = ctx.saved_tensor()
        return (_products(x, grad + grad.transpose([0, 2, 1]), of_sums),)


class Attend(_Operator):
    """Cross-covariance attention between its linear maps, see `xcit.XCA`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, temperature: Tensor) -> Tensor:
        """(B, N, 3C) and (h, 1, 1) -> (B, N, C)."""
        with paddle.no_grad():
            qkv, temperature = _begin(ctx, qkv, temperature)
            batch, tokens, wide = qkv.shape
            heads = len(temperature)
            width = wide // 3 // heads
            fit([wide, temperature.size], [3 * heads * width, heads])
            covariance, attention = (paddle.empty([batch, heads, width, width]) for _ in range(2))
            inverse = paddle.empty([batch, heads, 2, width])
            y = paddle.empty([batch, tokens, wide // 3])
            kept = (covariance, attention, inverse)
            call("attend", batch, tokens, heads, width, qkv, temperature, *kept, y)
        ctx.save_for_backward(qkv, temperature, *kept)
        return y

    @staticmethod
    def gradients(ctx: Any, grad: Tensor) -> Gradients:
        qkv, temperature, *kept = ctx.saved_tensor()
        found = _like(qkv, temperature)
        sizes = (*qkv.shape[:2], len(temperature), kept[0].shape[-1])
        call("attend_back", *sizes, qkv, temperature, *kept, grad, *found)
        return tuple(found)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., C) times weight (C, D), plus bias (D,) or None."""
    rows = x.reshape([1, -1, x.shape[-1]])
    offset = None if bias is None else bias.reshape([1, 1, -1])
    y: Tensor = Products.apply(rows, weight.unsqueeze(0), offset)
    return y.reshape([*x.shape[:-1], weight.shape[1]])


def _products(
    a: Tensor, b: Tensor, offset: Tensor | None = None, turn_a: bool = False, turn_b: bool = False
) -> Tensor:
    rows, inner = a.shape[:0:-1] if turn_a else a.shape[1:]
    columns = b.shape[1] if turn_b else b.shape[2]
    fit([*b.shape], [len(a), columns, inner] if turn_b else [len(a), inner, columns])
    fit([] if offset is None else offset.shape, [] if offset is None else [len(a), 1, columns])
    out = paddle.empty([len(a), rows, columns], a.dtype)
    call("products", len(a), turn_a, turn_b, rows, columns, inner, a, b, offset, out)
    return out


def _row_sums(x: Tensor) -> Tensor:
    batch, rows, width = x.shape
    out = paddle.empty([batch, 1, width], x.dtype)
    call("row_sums", batch, rows, width, x, out)
    return out
