"""Layers as plain facts: their tensors, how those start, and what one picture costs them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Initial = Callable[[np.random.Generator, Shape], np.ndarray]


class Tensor(NamedTuple):
    """A tensor's shape, and the rule that draws its initial values."""

    shape: Shape
    initial: Initial


class Places(NamedTuple):
    """How often a layer works on one picture: in every cell of a grid, and some times besides.

    Attributes:
        stride: pixels from one cell to the next; 0: there is no grid.
        besides: 1 for what is done once a picture, or for CLS beside the patches.
    """

    stride: int = 0
    besides: int = 0

    def times(self, height: int, width: int) -> int:
        """How often it works on a picture of that many pixels."""
        cells = -(-height // self.stride) * -(-width // self.stride) if self.stride else 0
        return cells + self.besides


ONCE = Places(besides=1)


@dataclass(frozen=True)
class Layer:
    """One layer; or products and activations, which have no tensors.

    Attributes:
        tensors: canonical name to tensor, in the reference's order.
        places: where the layer works.
        work: multiply-adds in one place; norms and activations count none.
        kept: values of one place that the backward pass reads again.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    places: Places = ONCE
    work: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Part:
    """A part of the model with a name of its own, such as "blocks.3", "s1.b2" or "head".

    Attributes:
        checkpoint: all that activation checkpointing keeps of a block, which it computes again;
            None: the part is no such block.
    """

    name: str
    layers: list[Layer]
    checkpoint: Layer | None = None


# ---- how tensors start ---------------------------------------------------------------------------


def constant(value: float) -> Initial:
    return lambda _, shape: np.full(shape, value, np.float64)


def truncated_normal(deviation: float) -> Initial:
    """Cut off at -2 and 2, not at two deviations: PyTorch's `trunc_normal_` does so too."""
    limit = 2 / deviation
    return lambda random, shape: np.clip(random.standard_normal(shape), -limit, limit) * deviation


def he_normal(fan_out: int) -> Initial:
    return lambda random, shape: random.standard_normal(shape) * math.sqrt(2 / fan_out)


def uniform(fan_in: int) -> Initial:
    """PyTorch's own rule for convolutions and their biases."""
    bound = 1 / math.sqrt(fan_in)
    return lambda random, shape: random.uniform(-bound, bound, shape)


def counter(_: np.random.Generator, shape: Shape) -> np.ndarray:
    """Zeros that stay integers."""
    return np.zeros(shape, np.int64)


ZEROS, ONES = constant(0.0), constant(1.0)


# ---- kinds of layers -----------------------------------------------------------------------------


def parameter(name: str, shape: Shape, initial: Initial) -> Layer:
    """A tensor by itself."""
    return Layer({name: Tensor(shape, initial)})


def affine(
    name: str,
    shape: Shape,
    weight: Initial,
    places: Places,
    bias: Initial | None = None,
) -> Layer:
    """A linear map (out, in) or convolution (out, in / groups, height, width).

    In each place it multiplies once with every weight.
    """
    tensors = {f"{name}.weight": Tensor(shape, weight)}
    if bias is not None:
        tensors[f"{name}.bias"] = Tensor(shape[:1], bias)
    return Layer(tensors, places, work=math.prod(shape))


def norm(name: str, width: int) -> Layer:
    """Scale and shift of a LayerNorm."""
    return Layer(
        {f"{name}.weight": Tensor((width,), ONES), f"{name}.bias": Tensor((width,), ZEROS)}
    )


def batch_norm(name: str, width: int) -> Layer:
    """Scale and shift, and the running statistics."""
    statistics = {
        f"{name}.running_mean": Tensor((width,), ZEROS),
        f"{name}.running_var": Tensor((width,), ONES),
        f"{name}.num_batches_tracked": Tensor((), counter),
    }
    return Layer(norm(name, width).tensors | statistics)
