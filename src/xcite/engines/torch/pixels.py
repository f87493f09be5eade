"""The last steps from a batch's bytes to the model's input, on the device.

The rule is `xcite.engines.pixels`', which is NumPy's and the faster one on a CPU; both agree to the
rounding of float32.
"""

import torch
from torch import Tensor

from xcite.engines.pixels import ErasedBox


def model_input(
    pictures: Tensor,
    erased: list[ErasedBox],
    noise: Tensor,
    mixing: tuple[Tensor, Tensor] | None,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """Normalised, erased, mixed, in this order: uint8 (B, H, W, C) to float32 (B, C, H, W).

    Args:
        erased: (position, top, left, height, width) of the erased boxes.
        noise: float32 (n,), what they are filled with, C x height x width numbers for each.
        mixing: share and boxes of `xcite.data.batch.Mixing`.
        mean, std: float32 (C, 1, 1).
    """
    images = pictures.permute(0, 3, 1, 2).contiguous().float()
    images = images.div_(255).sub_(mean).div_(std)
    start = 0
    for position, top, left, height, width in erased:
        stop = start + images.shape[1] * height * width
        box = noise[start:stop].view(-1, height, width)
        images[position, :, top : top + height, left : left + width] = box
        start = stop
    return images if mixing is None else mix(images, *mixing)


def mix(images: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """Mix (B, C, H, W) with its own reverse: a blend (mixup) or a pasted box (cutmix)."""
    partner = images.flip(0)
    top, bottom, left, right = boxes[:, :, None].unbind(1)  # (B, 1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None]
    inside = inside & ((columns >= left) & (columns < right))[:, None, None, :]  # (B, 1, H, W)
    own = torch.where(boxes[:, 0] < 0, share, torch.ones_like(share))[:, None, None, None]
    return torch.where(inside, partner, images * own + partner * (1 - own))
