"""Mixup and CutMix: what is drawn and the targets that follow; engines mix the pixels.

Partner of picture i in a batch of B is B - 1 - i, so mixing needs nothing but the batch reversed.
With an odd B the middle picture is its own partner.
"""

from typing import Any, Protocol

import numpy as np

from xcite.data.batch import Mixing
from xcite.recipe_sections import AugmentRecipe


class Draws(Protocol):
    """The part of `numpy.random.Generator` that mixing draws from."""

    def random(self, *arguments: Any) -> Any: ...
    def beta(self, *arguments: Any) -> Any: ...
    def integers(self, *arguments: Any) -> Any: ...


def draw(
    draws: Draws, batch: int, height: int, width: int, augment: AugmentRecipe
) -> Mixing | None:
    """Draw how a batch of pictures is mixed; None: not at all.

    Raises:
        ValueError: mode "pair" with an odd batch.
    """
    if augment.mixup == 0 and augment.cutmix == 0:
        return None
    if augment.mix_mode == "batch":
        return _draw_for_all(draws, batch, height, width, augment)
    if augment.mix_mode == "pair":
        if batch % 2:
            raise ValueError(f"mode 'pair' needs an even batch, not {batch}")
        half = _draw_for_each(draws, batch // 2, height, width, augment)
        return Mixing(
            share=np.concatenate([half.share, half.share[::-1]]),
            boxes=np.concatenate([half.boxes, half.boxes[::-1]]),
        )
    return _draw_for_each(draws, batch, height, width, augment)


def draw_share(draws: Draws, augment: AugmentRecipe) -> tuple[float, bool] | None:
    """One share (lambda) for a whole batch and whether it is CutMix's; None: not mixed."""
    if not draws.random() < augment.mix_probability:
        return None
    cutmix = augment.cutmix > 0
    if augment.mixup > 0 and augment.cutmix > 0:
        cutmix = draws.random() < augment.switch_probability
    alpha = augment.cutmix if cutmix else augment.mixup
    return float(draws.beta(alpha, alpha)), bool(cutmix)


def draw_shares(draws: Draws, number: int, augment: AugmentRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Shares float32 (number,) and whether each is CutMix's, bool (number,); 1 where not mixed."""
    if augment.mixup > 0 and augment.cutmix > 0:
        cutmix = np.asarray(draws.random(number)) < augment.switch_probability
        # both are drawn for all, so that the draws do not depend on the choice
        shares = np.where(
            cutmix,
            draws.beta(augment.cutmix, augment.cutmix, number),
            draws.beta(augment.mixup, augment.mixup, number),
        )
    else:
        alpha = augment.mixup or augment.cutmix
        cutmix = np.full(number, augment.cutmix > 0)
        shares = np.asarray(draws.beta(alpha, alpha, number))
    mixed = np.asarray(draws.random(number)) < augment.mix_probability
    return np.where(mixed, shares.astype(np.float32), np.float32(1)), cutmix


def cutmix_box(
    height: int, width: int, share: Any, row: int, column: int, rule: str
) -> tuple[int, int, int, int]:
    """Row start, row end, column start, column end (ends exclusive) of the pasted box.

    Args:
        share: the picture's own share; float64 or float32, and computed in that type.
        row, column: centre of the box.
        rule: "timm-0.4.9" (what XCiT used) makes odd lengths one shorter; "timm-1.0" does not.
    """
    ratio = np.sqrt(1 - share)
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    longer = 0 if rule == "timm-0.4.9" else 1
    top = max(0, row - cut_height // 2)
    left = max(0, column - cut_width // 2)
    bottom = min(height, row + (cut_height + longer) // 2)
    right = min(width, column + (cut_width + longer) // 2)
    return top, bottom, left, right


def soft_targets(
    labels: np.ndarray, classes: int, smoothing: float, mixing: Mixing | None
) -> np.ndarray:
    """float32 (B, classes): smoothed labels, mixed with the partners' by their shares."""
    off = smoothing / classes
    targets = np.full((len(labels), classes), off, np.float32)
    targets[np.arange(len(labels)), labels] = 1.0 - smoothing + off
    if mixing is not None:
        share = mixing.share[:, None]
        targets = targets * share + targets[::-1] * (1 - share)
    return targets


def _draw_for_all(
    draws: Draws, batch: int, height: int, width: int, augment: AugmentRecipe
) -> Mixing | None:
    drawn = draw_share(draws, augment)
    if drawn is None:
        return None
    share, cutmix = drawn
    box = (-1, -1, -1, -1)
    if cutmix:
        row, column = int(draws.integers(height)), int(draws.integers(width))
        box = cutmix_box(height, width, share, row, column, augment.cutmix_box)
        share = _kept(box, height, width)
    return Mixing(
        share=np.full(batch, _exact(share), np.float32),
        boxes=np.full((batch, 4), box, np.int32),
    )


def _draw_for_each(
    draws: Draws, number: int, height: int, width: int, augment: AugmentRecipe
) -> Mixing:
    shares, cutmix = draw_shares(draws, number, augment)
    boxes = np.full((number, 4), -1, np.int32)
    for i in range(number):
        if cutmix[i] and shares[i] != 1:
            row, column = int(draws.integers(height)), int(draws.integers(width))
            boxes[i] = cutmix_box(height, width, shares[i], row, column, augment.cutmix_box)
            shares[i] = _kept(tuple(boxes[i]), height, width)
    return Mixing(share=_exact(shares).astype(np.float32), boxes=boxes)


def _kept(box: tuple[int, ...], height: int, width: int) -> float:
    top, bottom, left, right = (int(side) for side in box)
    return 1.0 - (bottom - top) * (right - left) / (height * width)


def _exact(share: Any) -> Any:
    # Rounded to 24 binary places, both the share and 1 - share are exact in float32, so they are
    # the same in either precision.
    return np.round(np.float64(share) * 2**24) / 2**24
