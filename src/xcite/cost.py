"""What a model costs, counted over its family's layers.

The multiply-adds of convolutions, linear maps and attention products count, for one image; norms,
activations, softmax and sums do not: they move memory rather than multiply. The usual form agrees
with timm's published counts to 1 % (class attention is where counters differ).
"""

from collections.abc import Iterable

from xcite.families import Architecture
from xcite.families.layers import Layer


def multiply_adds(
    architecture: Architecture, height: int, width: int, *, form: str = "usual"
) -> int:
    """Multiply-adds of one forward pass of one image.

    Args:
        height, width: input size in pixels.
        form: "usual" is the published computation, "covariance" the exact cheaper one (XCA through
            X^T X, class attention for CLS alone, only CLS in the last layer).
    """
    return sum(
        layer.work * layer.places.times(height, width)
        for part in architecture.parts(form)
        for layer in part.layers
    )


def activations(
    architecture: Architecture, height: int, width: int, *, recompute: bool = False
) -> int:
    """Values that the backward pass of one image reads again: one per channel of each such output.

    Args:
        height, width: input size in pixels.
        recompute: activation checkpointing: the blocks are computed again, one at a time.
    """

    def kept(layers: Iterable[Layer]) -> int:
        return sum(layer.kept * layer.places.times(height, width) for layer in layers)

    if not recompute:
        return sum(kept(part.layers) for part in architecture.parts())
    total, largest = 0, 0
    for part in architecture.parts():
        if part.checkpoint is None:
            total += kept(part.layers)
        else:
            total += kept([part.checkpoint])
            largest = max(largest, kept(part.layers))
    return total + largest
