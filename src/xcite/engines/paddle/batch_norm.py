"""BatchNorm as PyTorch has it, and how to leave its statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from paddle import nn

from xcite.engines.paddle.layers.batch_norm import UnbiasedBatchNorm2D

BatchNorm2D = UnbiasedBatchNorm2D


@contextmanager
def untouched_statistics(model: nn.Layer) -> Iterator[None]:
    """BatchNorm in training uses the batch's statistics but does not count them in."""
    layers = [m for m in model.sublayers(include_self=True) if isinstance(m, BatchNorm2D)]
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracks in zip(layers, before, strict=True):
            layer.track_running_stats = tracks
