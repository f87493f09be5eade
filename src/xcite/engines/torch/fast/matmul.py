"""Linear maps by the faster of PyTorch's two libraries.

On a CPU PyTorch computes float32 matrix products with MKL, which leaves the AVX-512 of AMD's
processors unused, and convolutions with oneDNN, which uses it: the same linear map takes half the
time as a 1 x 1 convolution on Zen 5, and half as long again on Zen 3, which has no AVX-512. So it
is one of the `Choices`. The numbers differ by rounding only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xcite.choices import Choices

# Fewer rows than this gain nothing.
FEWEST_ROWS = 128
# PyTorch leaves 1 x 1 convolutions to oneDNN with several threads, or with this many pictures.
PICTURES = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, choices: Choices) -> Tensor:
    """x W^T + b: x (..., C), weight (K, C), bias (K,) -> (..., K)."""
    if not (_as_convolution(x, choices) and len(weight)):
        return F.linear(x, weight, bias)
    y = F.conv2d(_image(x), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def linear_of_each(x: Tensor, matrix: Tensor, offset: Tensor, choices: Choices) -> Tensor:
    """x_b M_b + o_b for each picture b: (B, N, C), (B, C, K), (B, 1, K) -> (B, N, K)."""
    if not (_as_convolution(x, choices) and _large(x, matrix.shape[2], choices)):
        return torch.baddbmm(offset, x, matrix)
    pictures = zip(x, matrix.transpose(1, 2), offset[:, 0], strict=True)
    maps = [linear(*picture, choices) for picture in pictures]
    return torch.stack(maps) if len(maps) > 1 else maps[0][None]  # one may be huge: no copy


def gram_of_each(x: Tensor, choices: Choices) -> Tensor:
    """x_b^T x_b for each picture b: (B, N, C) -> (B, C, C)."""
    if not (_as_convolution(x, choices) and _large(x, x.shape[2], choices)):
        return torch.bmm(x.transpose(1, 2), x)
    return torch.stack([weight_gradient(picture, picture, choices) for picture in x])


def weight_gradient(grad: Tensor, x: Tensor, choices: Choices) -> Tensor:
    """grad^T x: (T, K), (T, C) -> (K, C), the gradient of a linear map's weight."""
    if not (_as_convolution(x, choices) and grad.is_contiguous()):
        return grad.t() @ x
    shape = x.new_empty(grad.shape[1], x.shape[1], 1, 1)  # only its shape counts
    one, nothing = [1, 1], [0, 0]
    _, gradient, _ = torch.ops.aten.convolution_backward(
        _image(grad),
        _image(x),
        shape,
        None,
        one,
        nothing,
        one,
        False,
        nothing,
        1,
        [False, True, False],
    )
    return gradient.flatten(1)


def add_linear(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, choices: Choices, out: Tensor
) -> None:
    """out = residual + x W^T + b: (T, K), (T, C), (K, C), (K,)."""
    if x.dtype == residual.dtype and choices.products == "matrix":
        # the product adds itself to the residual
        torch.add(residual, bias, out=out).addmm_(x, weight.t())
    else:
        torch.add(residual, linear(x, weight, bias, choices).to(residual.dtype), out=out)


def add_weight_gradient(total: Tensor, grad: Tensor, x: Tensor, choices: Choices) -> None:
    """total += grad^T x, whose sum keeps the precision of the total: (K, C), (T, K), (T, C)."""
    if grad.dtype == total.dtype and not _as_convolution(x, choices):
        total.addmm_(grad.t(), x)
    else:
        total += weight_gradient(grad, x, choices).to(total.dtype)


def _as_convolution(x: Tensor, choices: Choices) -> bool:
    if choices.products == "matrix":
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and x.is_contiguous()
    )


def _large(x: Tensor, columns: int, choices: Choices) -> bool:
    return x.shape[1] * x.shape[2] * columns >= choices.apart_from


def _image(x: Tensor) -> Tensor:
    """Contiguous (..., C) as pictures (P, C, T / P, 1), channels-last: a view."""
    rows = x.numel() // x.shape[-1]
    pictures = 1 if rows % PICTURES else PICTURES
    return x.view(pictures, rows // pictures, 1, x.shape[-1]).permute(0, 3, 1, 2)
