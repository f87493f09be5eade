"""What the loader hands to an engine: bytes, and the numbers for what is still to be done."""

import itertools
from dataclasses import dataclass, field, replace

import numpy as np

from xcite.errors import XciteError


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

    def of(self, places: np.ndarray) -> "Mixing":
        """How the pictures at ``places`` are mixed; they must be whole pairs of partners."""
        return Mixing(self.share[places], self.boxes[places])


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
        wanted: int64 (B, 2), the views that the epoch's order asks for, each of them once in an
            epoch; ``views`` differ where another picture stands in for a damaged one. None in
            evaluation.
        whole: pictures of the step that this batch is a part of, over all processes; None where
            every process has as many as this one.
        pairs: how many pairs of mixing partners fall into each part of gradient accumulation;
            empty: equally many.
    """

    pictures: np.ndarray
    labels: np.ndarray
    views: np.ndarray
    targets: np.ndarray | None = None
    erased: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)
    mixing: Mixing | None = None
    epoch: int = 0
    wanted: np.ndarray | None = None
    whole: int | None = None
    pairs: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self, repeats: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers int64 (B,) of the wanted and of the shown views, of ``repeats`` a picture."""
        wanted = self.views if self.wanted is None else self.wanted
        return wanted @ np.array([repeats, 1]), self.views @ np.array([repeats, 1])


def share(length: int, parts: int, process: int, processes: int) -> tuple[np.ndarray, list[int]]:
    """The pictures of a step's batch that one process gets, and how they fall into parts.

    A batch is cut into pairs of mixing partners, these into ``parts`` runs for gradient
    accumulation, and each run among the processes. So every part, over all processes, holds the
    pictures that it holds in a run of one process.

    Returns:
        Their places in the batch, int64, partner of the i-th being the i-th from the end, and the
        number of pairs in each part.

    Raises:
        XciteError: there are fewer pairs than parts.
    """
    pairs = (length + 1) // 2  # the middle picture of an odd batch is a pair with itself
    cells = parts * processes
    if cells > pairs and not cells == length == 1:
        raise XciteError(
            f"{cells} parts (optim.accumulate times processes) are too many for the {length} "
            "pictures of a step: they travel with their mixing partner, so at least two go into "
            f"each part; set optim.batch to {2 * cells} or more"
        )
    bounds = [round(cell * pairs / cells) for cell in range(cells + 1)]
    starts = [part * processes + process for part in range(parts)]
    first = np.concatenate([np.arange(bounds[cell], bounds[cell + 1]) for cell in starts])
    places = _with_partners(first, length)
    return places, [bounds[cell + 1] - bounds[cell] for cell in starts]


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into parts for gradient accumulation, keeping mixing partners together.

    Part k holds a run of the first half and its mirror image in the second half, so in every part
    the partner of i is again B - 1 - i and mixing, decided on the whole batch, stays what it was.
    Parts are as `share` made them, else equally long where the number of pairs allows.

    Raises:
        XciteError: more parts than pairs of pictures.
    """
    if parts == 1:
        return [batch]
    pairs = batch.pairs if len(batch.pairs) == parts else share(len(batch), parts, 0, 1)[1]
    result, length = [], len(batch)
    for stop, count in zip(itertools.accumulate(pairs), pairs, strict=True):
        places = _with_partners(np.arange(stop - count, stop), length)
        result.append(_take(batch, places))
    return result


def _with_partners(first: np.ndarray, length: int) -> np.ndarray:
    """Places in the first half of a batch, and those of their partners in mirrored order."""
    second = length - 1 - first[::-1]
    return np.concatenate([first, second[second >= (length + 1) // 2]])


def _take(batch: Batch, indices: np.ndarray) -> Batch:
    moved = {int(old): new for new, old in enumerate(indices)}
    return replace(
        batch,
        pictures=batch.pictures[indices],
        labels=batch.labels[indices],
        views=batch.views[indices],
        wanted=None if batch.wanted is None else batch.wanted[indices],
        targets=None if batch.targets is None else batch.targets[indices],
        erased=[(moved[box[0]], *box[1:]) for box in batch.erased if box[0] in moved],
        mixing=batch.mixing and batch.mixing.of(indices),
        pairs=(),
    )
