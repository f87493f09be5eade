"""The MLP on slices of tokens, together with the rest of its residual branch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.choices import Choices
from xcite.engines.torch.fast.expected import as_built
from xcite.engines.torch.fast.gelu import FastGELU, gelu_again, gelu_of_linear
from xcite.engines.torch.fast.layer_scale import scaled
from xcite.engines.torch.fast.matmul import add_linear, add_weight_gradient, linear
from xcite.engines.torch.fast.precision import autocast_dtype, full_precision
from xcite.engines.torch.kernels import library, operators
from xcite.engines.torch.kernels.second_order import differentiated
from xcite.engines.torch.xcit import LAYER_NORM_EPS, Mlp


class FastMlp(Mlp):
    """With its norm, LayerScale, drop path and residual in slices, unless something drops."""

    choices: Choices

    def is_as_built(self) -> bool:
        """Whether `added_to` may read the modules' weights."""
        return (
            as_built(self.fc1, nn.Linear)
            and as_built(self.act, FastGELU)
            and self.act.approximate == "none"
            and as_built(self.fc2, nn.Linear)
            and as_built(self.drop, nn.Dropout)
        )

    def added_to(
        self, x: Tensor, gamma: Tensor, norm: nn.LayerNorm | None, scale: Tensor | None
    ) -> Tensor:
        """Tokens (B, N, C) -> x + scale * gamma * Mlp(norm(x)); scale: (B, 1, 1)."""
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        layers = (*affine, self.fc1.weight, self.fc1.bias, *scaled(self.fc2, gamma))
        drop = self.drop.p if self.drop.training else 0.0
        learnt = scale is not None and scale.requires_grad
        if torch.compiler.is_compiling() or drop > 0 or learnt:
            return whole_mlp(x, scale, autocast_dtype(x), *layers, drop=drop)
        how = (autocast_dtype(x), torch.is_grad_enabled(), self.choices)
        y: Tensor = SlicedMlp.apply(x, scale, *how, *layers)
        return y


def whole_mlp(
    x: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    drop: float = 0.0,
) -> Tensor:
    """What `SlicedMlp` computes, as one piece; drop: probability after each linear layer."""
    y = x
    if norm_weight is not None:
        y = F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, LAYER_NORM_EPS)
    hidden = F.linear(y.to(dtype), weight1.to(dtype), bias1.to(dtype))
    hidden = F.dropout(F.gelu(hidden), drop)
    y = F.dropout(F.linear(hidden, weight2.to(dtype), bias2.to(dtype)), drop)
    return add_branch(x, y, scale)


class SlicedMlp(torch.autograd.Function):
    """x + scale * (gelu(norm(x) W1^T + b1) W2^T + b2), one slice of tokens at a time.

    The hidden layer is four times as wide as the tokens: a slice of it stays in the cache where the
    whole would go to memory and back for every operation, and what surrounds the products is cheap
    there. The backward pass needs W1 norm(x) + b1, which is kept, and its GELU, which is computed
    again unless it is kept in half the size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        dtype: torch.dtype,
        keep: bool,
        choices: Choices,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """x: (B, N, C); scale: (B, 1, 1) or None; weights as in nn.Linear.

        dtype: of matrix products. keep: there will be a backward pass. Without norm_weight x is
        taken as it is.
        """
        rows, factors = x.flatten(0, 1), per_row(scale, x)
        layers = (weight1, bias1, weight2, bias2)
        w1, b1, w2, b2 = (t.to(dtype) for t in layers)
        kept: list[Tensor | None] = []
        small = dtype.itemsize < 4
        y = torch.empty_like(rows)
        with full_precision(x):
            for part in slices(rows, dtype, choices):
                normed, mean, rstd = rows[part], None, None
                if norm_weight is not None:
                    normed, mean, rstd = torch.native_layer_norm(
                        normed, norm_weight.shape, norm_weight, norm_bias, LAYER_NORM_EPS
                    )
                normed = normed.to(dtype)
                hidden, activated = gelu_of_linear(normed, w1, b1, choices)
                if factors is None:
                    add_linear(rows[part], activated, w2, b2, choices, y[part])
                else:
                    branch = linear(activated, w2, b2, choices).to(x.dtype)
                    torch.addcmul(rows[part], branch, factors[part], out=y[part])
                if keep:
                    kept += (normed, mean, rstd, hidden, activated if small else None)
        ctx.dtype, ctx.choices = dtype, choices
        ctx.save_for_backward(x, scale, norm_weight, norm_bias, *layers, *kept)
        return y.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, norm_weight, norm_bias, weight1, bias1, weight2, bias2, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated, too
            affine, layers = (norm_weight, norm_bias), (weight1, bias1, weight2, bias2)
            needed = ctx.needs_input_grad[:1] + ctx.needs_input_grad[5:]
            grads = differentiated(
                lambda x, *tensors: whole_mlp(x, scale, ctx.dtype, *tensors),
                (x, *affine, *layers),
                (grad,),
                needed,
            )
            return grads[0], None, None, None, None, *grads[1:]
        rows, grads = (t.contiguous().flatten(0, 1) for t in (x, grad))
        factors = per_row(scale, x)
        choices = ctx.choices
        w1, w2 = weight1.to(ctx.dtype), weight2.to(ctx.dtype)
        grad_x = torch.empty_like(rows)
        # Sums over slices are at least float32, as sums within a matrix product are.
        grad_w1, grad_w2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_b1, grad_b2 = weight1.new_zeros(len(weight1)), weight2.new_zeros(len(weight2))
        grad_norm = weight1.new_zeros(2, x.shape[-1])
        with full_precision(x):
            for i, part in enumerate(slices(rows, ctx.dtype, choices)):
                normed, mean, rstd, hidden, activated = kept[5 * i : 5 * i + 5]
                scaled = grads[part] if factors is None else grads[part] * factors[part]
                grad_b2 += scaled.sum(0)
                g = scaled.to(ctx.dtype)
                slope = linear(g, w2.t(), None, choices)
                activated, slope, sums = gelu_again(hidden, activated, slope, choices)
                add_weight_gradient(grad_w2, g, activated, choices)
                add_weight_gradient(grad_w1, slope, normed, choices)
                grad_b1 += sums
                g = linear(slope, w1.t(), None, choices).to(x.dtype)
                if norm_weight is None:
                    torch.add(grads[part], g, out=grad_x[part])
                    continue
                given = (rows[part], mean, rstd, norm_weight, norm_bias, grads[part], grad_x[part])
                grad_norm += through_norm(g, *given, choices)
        grad_affine = (None, None) if norm_weight is None else grad_norm
        grad_x = grad_x.view_as(x)
        return grad_x, None, None, None, None, *grad_affine, grad_w1, grad_b1, grad_w2, grad_b2


def through_norm(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    grad_x: Tensor,
    choices: Choices,
) -> Tensor:
    """Write residual plus LayerNorm's gradient of x (T, C); return those of its affine (2, C)."""
    if library.usable(choices, grad, x):
        statistics = (mean, rstd)
        return operators.layer_norm_back(x, weight, statistics, grad, residual, grad_x)
    g, *of_affine = torch.ops.aten.native_layer_norm_backward(
        grad, x, weight.shape, mean, rstd, weight, bias, [True] * 3
    )
    torch.add(residual, g, out=grad_x)
    return torch.stack(of_affine)


def slices(rows: Tensor, dtype: torch.dtype, choices: Choices) -> list[slice]:
    """Parts of (T, C) that stay in a CPU's cache when worked on in ``dtype``; elsewhere all."""
    on_cpu = rows.device.type == "cpu"
    step = choices.slice_bytes // dtype.itemsize if on_cpu else len(rows)
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + scale * branch, the scale being one number per picture or row."""
    branch = branch.to(x.dtype)
    return x + branch if scale is None else torch.addcmul(x, branch, scale)


def per_row(scale: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, 1, 1) for x (B, N, C) -> (B * N, 1)."""
    return None if scale is None else scale.expand(-1, x.shape[1], 1).flatten(0, 1)
