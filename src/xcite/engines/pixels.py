"""The last steps from a batch's bytes to the model's input, in NumPy, shared by the engines.

So both engines see the same bits. NumPy is also the fastest of the three on a CPU: it normalises 16
pictures of 224 x 224 in 2 ms, PyTorch in 3 ms, and Paddle in 32 ms, because its element-wise
kernels run on one thread and broadcast slowly.
"""

import numpy as np

from xcite.data.batch import Batch, Mixing
from xcite.data.transforms import normalise
from xcite.preprocessing import Preprocessing

ErasedBox = tuple[int, int, int, int, int]
"""Position in the batch, top, left, height, width."""


def model_input(batch: Batch, preprocessing: Preprocessing) -> np.ndarray:
    """The batch as the model sees it: normalised, erased, mixed, in this order.

    Returns:
        float32 (B, C, H, W).

    Raises:
        XciteError: the pictures' channels are not the preprocessing's.
    """
    images = normalise(batch.pictures, preprocessing)
    for position, top, left, noise in batch.erased:
        height, width = noise.shape[1:]
        images[position, :, top : top + height, left : left + width] = noise
    return images if batch.mixing is None else mix(images, batch.mixing)


def mix(images: np.ndarray, mixing: Mixing) -> np.ndarray:
    """Mix (B, C, H, W) with its own reverse: a blend (mixup) or a pasted box (cutmix).

    The partner's share is rounded to float32 from the precision that `share` comes in, as timm
    does: a float64 share of a whole batch gives timm's pixels bit for bit.
    """
    blended = (mixing.boxes < 0).all(1)  # (B,)
    own = np.where(blended, mixing.share, 1)
    partner = images[::-1]
    if (own != 1).any():
        weights = own.astype(np.float32)[:, None, None, None]
        rest = (1 - own).astype(np.float32)[:, None, None, None]
        mixed = images * weights
        mixed += partner * rest
    else:
        mixed = images.copy()
    for i in np.flatnonzero(~blended):
        top, bottom, left, right = mixing.boxes[i]
        mixed[i, :, top:bottom, left:right] = partner[i, :, top:bottom, left:right]
    return mixed
