"""Which choices matter for a piece of work, and which values of them are worth a try."""

from dataclasses import dataclass
from typing import Any, Literal

from xcite.families import Architecture, XCiTArchitecture

# Bytes of one channel of a slice of the MLP, from 392 tokens of float32 to whole feature maps.
SLICES = (1568, 3136, 6272, 12544, 25088, 1 << 30)
NEVER = 1e9  # tokens per channel; no picture has so many


@dataclass(frozen=True)
class Work:
    """What is to be fast.

    Attributes:
        batch: pictures of one forward pass (a step's batch over accumulation and processes).
        height, width: pixels.
        kind: training steps, or forward passes.
        attention: its form; "auto" leaves it to the choices.
    """

    architecture: Architecture
    engine: str
    batch: int
    height: int
    width: int
    precision: str
    kind: Literal["train", "forward"] = "train"
    attention: str = "auto"


def knobs(work: Work) -> dict[str, tuple[Any, ...]]:
    """Name of a choice to the values to try, the one that may gain most first."""
    if not isinstance(work.architecture, XCiTArchitecture):
        return {}  # RegNet has one way of computing
    found: dict[str, tuple[Any, ...]] = {}
    if work.engine == "torch" and work.precision == "float32":
        found["products"] = ("matrix", "convolution")
    if work.precision == "float32":
        found["compiled"] = (True, False)
    found["slice_bytes"] = SLICES
    if work.attention == "auto":
        found["covariance_above"] = (0.0, NEVER)
    if work.engine == "torch" and work.precision == "float32":
        found["apart_from"] = (0, 25_000_000, 1 << 60)
    if work.engine == "torch" and work.precision == "bf16":
        found["turned_gelu"] = (True, False)
    return found
