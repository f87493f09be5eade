"""What the loader hands to an engine: bytes, and in numbers what is still to be done with them."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Mixing:
    """Mixup or CutMix of a batch with its own reverse: the partner of picture i is B - 1 - i.

    Attributes:
        share: float32 (B,), the picture's own share of the mixture (mixup) or of the target.
        boxes: int32 (B, 4): row start, row end, column start, column end of the pasted box;
            all -1 where the picture is mixed by mixup.
    """

    share: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One batch of pictures.

    Attributes:
        pictures: uint8 (B, H, W, C), augmented but neither normalised, erased nor mixed.
        labels: int64 (B,).
        views: int64 (B, 2): the picture's index in its source and the number of its repetition.
        targets: float32 (B, K), smoothed and mixed; None in evaluation.
        erased: per erased box (position in the batch, top, left, noise), where noise is float32
            (C, h, w), standard normal, to be put in place after normalising and before mixing.
        mixing: how the batch is mixed with its reverse after erasing; None when it is not.
        epoch: counted from 0.
    """

    pictures: np.ndarray
    labels: np.ndarray
    views: np.ndarray
    targets: np.ndarray | None = None
    erased: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)
    mixing: Mixing | None = None
    epoch: int = 0
