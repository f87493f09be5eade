"""The MLP a few hundred tokens at a time."""

import math
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from xcite.choices import Choices
from xcite.engines.paddle.fast.expected import as_built, has_bias
from xcite.engines.paddle.fast.layer_scale import scaled
from xcite.engines.paddle.kernels import library, operators
from xcite.engines.paddle.xcit import Mlp


class FastMlp(Mlp):
    """In slices on a CPU, if nothing drops."""

    choices: Choices

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.branch(x) if self.is_as_built() else super().forward(x)

    def is_as_built(self) -> bool:
        """Whether `branch` may read the layers' weights."""
        return (
            as_built(self.fc1, nn.Linear)
            and as_built(self.act, nn.GELU)
            and as_built(self.fc2, nn.Linear)
            and as_built(self.drop, nn.Dropout)
            and has_bias(self.fc1)
            and has_bias(self.fc2)
        )

    def branch(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """gamma * Mlp(x): (B, N, C) -> (B, N, C)."""
        weight, bias = scaled(self.fc2, gamma)
        if self._whole(x):
            return self.drop(F.linear(self.drop(self.act(self.fc1(x))), weight, bias))
        keep = paddle.is_grad_enabled()
        tensors = (x, self.fc1.weight, self.fc1.bias, weight, bias)
        as_wide = weight.shape == self.fc1.weight.shape[::-1]
        compiled = as_wide and library.usable(self.choices, *tensors)
        kind = operators.Mlp if compiled else SlicedMlp
        y: Tensor = kind.apply(*tensors, keep, self.choices.slice_bytes)
        return y

    def _whole(self, x: Tensor) -> bool:
        """Not in slices: in a program, with dropout or autocast, or where no small cache is."""
        if not paddle.in_dynamic_mode() or paddle.is_autocast_enabled():
            return True
        return (self.drop.training and self.drop.p > 0) or not x.place.is_cpu_place()


class SlicedMlp(PyLayer):
    """gelu(x W1 + b1) W2 + b2, a few hundred tokens at a time.

    The hidden layer is four times as wide as the tokens: a slice of it stays in the cache where the
    whole would go to memory and back for every operation. The backward pass needs x W1 + b1, which
    is kept, and its GELU, which is computed again rather than kept.

    `paddle.grad` of inputs alone refuses a `PyLayer`, and Paddle's kernel of LayerNorm errs under
    it: `backward` is the way to gradients. Paddle has no second derivative of LayerNorm, GELU or
    softmax, so those of a model are an error of Paddle with plain operators, too.
    """

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
        """x: (..., C); weights as in nn.Linear; keep: there will be a backward pass.

        slice_bytes: of one channel of a slice.
        """
        inputs = (x, weight1, bias1, weight2, bias2)
        ctx.needs = [not tensor.stop_gradient for tensor in inputs]
        kept, outputs = [], []
        with paddle.no_grad():
            weight1, bias1, weight2 = (t * math.sqrt(0.5) for t in (weight1, bias1, weight2))
            for part in slices(x.reshape([-1, x.shape[-1]]), slice_bytes):
                hidden = paddle.addmm(bias1, part, weight1)
                outputs.append(paddle.addmm(bias2, stretched_gelu(hidden)[0], weight2))
                if keep:
                    kept.append(hidden)
            y = paddle.concat(outputs).reshape(x.shape)
        ctx.slice_bytes = slice_bytes
        ctx.save_for_backward(x, weight1, weight2, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, *kept = ctx.saved_tensor()
        parts, grads = (slices(t.reshape([-1, t.shape[-1]]), ctx.slice_bytes) for t in (x, grad))
        grad_x = []
        totals: list[Tensor] = []
        for hidden, part, g in zip(kept, parts, grads, strict=True):
            activated, g_hidden = stretched_gelu(
                hidden, paddle.matmul(g, weight2, transpose_y=True)
            )
            # A product with ones is faster than a sum over rows.
            ones = paddle.ones([1, len(g)], g.dtype)
            sums = (
                paddle.matmul(part, g_hidden, transpose_x=True),
                ones @ g_hidden,
                paddle.matmul(activated, g, transpose_x=True),
                ones @ g,
            )
            totals = [a.add_(b) for a, b in zip(totals, sums, strict=True)] if totals else [*sums]
            grad_x.append(paddle.matmul(g_hidden, weight1, transpose_y=True))
        w1, b1, w2 = (total.scale_(math.sqrt(0.5)) for total in totals[:3])
        b2 = totals[3]
        answers = (paddle.concat(grad_x).reshape(x.shape), w1, b1.flatten(), w2, b2.flatten())
        return tuple(a if needs else None for a, needs in zip(answers, ctx.needs, strict=True))


def slices(rows: Tensor, slice_bytes: int) -> list[Tensor]:
    """Parts of (T, C) small enough for a CPU's cache."""
    step = slice_bytes // rows.element_size()
    return [rows[i : i + step] for i in range(0, rows.shape[0], step)]


def stretched_gelu(x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x (1 + erf x), and the gradient of x for that of the result.

    It is sqrt(2) times the GELU of sqrt(2) x. Weights around it take the factors, since each
    operation on the hidden layer takes a third of the time of a matrix product.
    """
    twice_cdf = paddle.erf(x).scale_(1.0, bias=1.0)
    if grad is None:
        return twice_cdf.multiply_(x), None
    slope = paddle.square(x).scale_(-1.0).exp_().multiply_(x).scale_(2 / math.sqrt(math.pi))
    slope.add_(twice_cdf).multiply_(grad)
    return twice_cdf.multiply_(x), slope
