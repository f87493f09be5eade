"""Gradients that are differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiated(
    function: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of a plain function, as operations that can be differentiated themselves.

    A gradient that is written out has no gradient of its own.

    Args:
        inputs: of the function, as they were saved for the backward pass.
        grads: of its outputs.
        needed: which inputs' gradients are wanted; the others' are None.
    """
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(function(*inputs), wanted, grads, create_graph=True))
    return [next(found) if need else None for need in needed]
