"""Products of a head's channels over all tokens, from the tokens' covariance."""

from typing import Any

import torch
from torch import Tensor

from xcite.choices import Choices
from xcite.engines.torch.fast.matmul import gram_of_each, linear, linear_of_each
from xcite.engines.torch.fast.precision import full_precision
from xcite.engines.torch.kernels.second_order import differentiated


class HeadProducts(torch.autograd.Function):
    """Sums over all tokens of products of a head's channels y = x W^T + b, which never exist.

        y^T y = P W^T + u b^T, where P = W x^T x + b s^T, u = W s + N b, s = x^T 1

    The gradient is as short as the value. With R, the gradient of y^T y plus its transpose, it is
    R P and R u for W and b, and x (W^T R W) + 1 (W^T R b)^T for x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, choices: Choices
    ) -> tuple[Tensor, Tensor]:
        """Squares of all channels (h, B, 2c), and products of q's with k's (h, c, B, c).

        Args:
            x: tokens (B, N, C), also in bfloat16; the results are then float32 nonetheless.
            weight: (h, 2c, C): for each head c channels of q, then of k.
            bias: (h, 2c).
        """
        batch, tokens, dim = x.shape
        heads, width, _ = weight.shape
        rows = weight.flatten(0, 1)
        # A symmetric matrix is its own transpose: products with it need no copy.
        covariances = gram(x, choices).flatten(0, 1)
        projected = linear(rows, covariances, None, choices).view(heads, width, batch, dim)
        sums = None
        if bias is not None:
            token_sum = x.sum(1, dtype=weight.dtype)  # (B, C)
            sums = torch.addmm(tokens * bias.view(-1, 1), rows, token_sum.t())
            sums = sums.view(heads, width, batch)
            projected = torch.addcmul(projected, bias[..., None, None], token_sum)
        products = torch.bmm(projected.flatten(1, 2), weight.transpose(1, 2))
        products = products.view(heads, width, batch, width)
        if bias is not None and sums is not None:
            products = torch.addcmul(products, sums[..., None], bias[:, None, None])
        ctx.choices = choices
        ctx.save_for_backward(x, weight, bias, projected, sums)
        half = width // 2
        return products.diagonal(dim1=1, dim2=3), products[:, :half, :, half:]

    @staticmethod
    def backward(ctx: Any, grad_squares: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, projected, sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will be differentiated, too
            inputs, grads = (x, weight, bias), (grad_squares, grad)
            needed = ctx.needs_input_grad[:3]
            return *differentiated(plain_head_products, inputs, grads, needed), None
        batch, _, dim = x.shape
        heads, width, _ = weight.shape
        half = width // 2
        both = x.new_zeros(heads, width, batch, width)  # R
        both[:, :half, :, half:] = grad
        both[:, half:, :, :half] = grad.transpose(1, 3)
        both.diagonal(dim1=1, dim2=3).copy_(2 * grad_squares)
        both = both.flatten(1, 2)  # (h, 2c * B, 2c)
        dtype, weight, projected = weight.dtype, weight.to(x.dtype), projected.to(x.dtype)
        rows = weight.flatten(0, 1)
        with full_precision(x):
            grad_weight = torch.bmm(both.transpose(1, 2), projected.flatten(1, 2))
            turned = torch.bmm(both, weight).view(-1, batch * dim)  # R W: (2C, B * C)
            inner = (rows.t() @ turned).view(dim, batch, dim).transpose(0, 1)
            if bias is None:
                return torch.bmm(x, inner), grad_weight.to(dtype), None, None
            sums, bias = sums.to(x.dtype), bias.to(x.dtype)
            grad_bias = torch.bmm(both.transpose(1, 2), sums.flatten(1, 2)[..., None])
            constant = torch.bmm(both, bias[..., None]).view(-1, batch)  # R b: (2C, B)
            grad_x = linear_of_each(x, inner, (constant.t() @ rows)[:, None], ctx.choices)
            return grad_x, grad_weight.to(dtype), grad_bias.squeeze(-1).to(dtype), None


def plain_head_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `HeadProducts` computes, by way of the channels."""
    channels = torch.einsum("bnd,hwd->hbwn", x.to(weight.dtype), weight)  # (h, B, 2c, N)
    if bias is not None:
        channels = channels + bias[:, None, :, None]
    q, k = channels.chunk(2, dim=2)
    return channels.square().sum(-1), (q @ k.transpose(2, 3)).transpose(1, 2)


def gram(x: Tensor, choices: Choices) -> Tensor:
    """x^T x in at least float32, to 16 bits if x is bfloat16: (B, N, C) -> (B, C, C)."""
    if x.dtype == torch.bfloat16:
        # bfloat16 products are summed in float32 and rounded at the end. What rounding took away
        # is found by a second one, which together take half as long as a float32 product.
        transposed = x.transpose(1, 2)
        rounded = torch.bmm(transposed, x)
        return torch.baddbmm(rounded, transposed, x, beta=-1).float() + rounded
    return gram_of_each(x.to(torch.promote_types(x.dtype, torch.float32)), choices)
