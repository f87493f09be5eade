"""Activation checkpointing: less memory for a second forward pass (Chen et al. 2016)."""

from collections.abc import Callable
from typing import Any

from paddle import nn

from xcite.engines.paddle.batch_norm import untouched_statistics


def recomputed(block: nn.Layer) -> Callable[..., Any]:
    """The block as a function that forgets its activations; the backward pass runs it again.

    The second time BatchNorm must not count the same batch again.
    """
    from paddle.distributed.fleet.utils import recompute  # slow to import

    runs = 0

    def run(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return block(*inputs)
        with untouched_statistics(block):
            return block(*inputs)

    return lambda *inputs: recompute(run, *inputs, use_reentrant=False)
