"""Which blocks' tokens are wanted of a model: the rules that both engines share."""

from collections.abc import Mapping, Sequence
from typing import Any

from xcite.errors import XciteError
from xcite.families import Architecture


def feature_info(architecture: Architecture) -> list[dict[str, Any]]:
    """Per block "num_chs" (channels), "reduction" (stride in pixels) and "module" (its name)."""
    return [
        {"num_chs": kept.kept, "reduction": kept.places.stride, "module": part.name}
        for part in architecture.parts()
        if (kept := part.checkpoint) is not None  # a block's output
    ]


def chosen_blocks(
    indices: int | Sequence[int] | None, blocks: Sequence[Mapping[str, Any]], output_fmt: str
) -> list[str]:
    """Names of blocks in the order asked for.

    Args:
        indices: numbers, also negative; a number n for the last n; None for all.
        blocks: as `feature_info` gives them.
        output_fmt: "NCHW" or "NLC".

    Raises:
        XciteError: a number that no block has, or another format.
    """
    depth = len(blocks)
    if output_fmt not in ("NCHW", "NLC"):
        raise XciteError(f"unknown output_fmt {output_fmt!r}; choose NCHW or NLC")
    if isinstance(indices, int):
        if not 0 < indices <= depth:
            raise XciteError(f"the last {indices} blocks are asked for; the model has {depth}")
        indices = range(depth - indices, depth)
    numbers = range(depth) if indices is None else indices
    wrong = [i for i in numbers if not -depth <= i < depth]
    if wrong:
        raise XciteError(f"there is no block {wrong[0]}; the model has blocks 0 to {depth - 1}")
    return [blocks[i]["module"] for i in numbers]


def pyramid_blocks(depth: int) -> list[int]:
    """The blocks whose tokens make the pyramid: [3, 5, 7, 11] of 12, [7, 11, 15, 23] of 24."""
    return [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1]
