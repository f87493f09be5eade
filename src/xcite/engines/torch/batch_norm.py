"""BatchNorm as PyTorch has it, and how to leave its statistics alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

BatchNorm2D = nn.BatchNorm2d


@contextmanager
def untouched_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm in training uses the batch's statistics but does not count them in."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # It writes into copies. Without any running statistics the layer would keep fewer tensors for
    # the backward pass, which checkpointing refuses.
    before = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, buffers in zip(layers, before, strict=True):
        for name, buffer in buffers.items():
            setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, before, strict=True):
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)
