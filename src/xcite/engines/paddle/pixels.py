"""The last steps from a batch's bytes to the model's input, on the device.

The rule is `xcite.engines.pixels`', which is NumPy's and the faster one on a CPU; both agree to the
rounding of float32.
"""

import paddle
from paddle import Tensor

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
    images = pictures.transpose([0, 3, 1, 2]).astype("float32")
    images = (images / 255 - mean) / std
    start = 0
    for position, top, left, height, width in erased:
        stop = start + images.shape[1] * height * width
        box = noise[start:stop].reshape([-1, height, width])
        images[position, :, top : top + height, left : left + width] = box
        start = stop
    return images if mixing is None else mix(images, *mixing)


def mix(images: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """Mix (B, C, H, W) with its own reverse: a blend (mixup) or a pasted box (cutmix)."""
    partner = images.flip([0])
    top, bottom, left, right = boxes.unsqueeze(2).unbind(1)  # (B, 1)
    rows = paddle.arange(images.shape[2], dtype="int32")
    columns = paddle.arange(images.shape[3], dtype="int32")
    inside = ((rows >= top) & (rows < bottom)).unsqueeze([1, 3])
    inside = inside & ((columns >= left) & (columns < right)).unsqueeze([1, 2])  # (B, 1, H, W)
    own = paddle.where(boxes[:, 0] < 0, share, paddle.ones_like(share)).reshape([-1, 1, 1, 1])
    return paddle.where(inside, partner, images * own + partner * (1 - own))
