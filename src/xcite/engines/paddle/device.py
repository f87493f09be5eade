"""The device to compute on, and numbers on their way to it."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import Tensor

from xcite.engines.devices import no_tf32, numbered


def find(asked: str) -> str:
    """The device that a recipe's ``run.device`` means.

    Args:
        asked: "auto" (a GPU if there is one), "cpu", "gpu", "cuda" or "xpu", with ":N" for the
            device of this number.

    Raises:
        XciteError: this machine has no such device.
    """
    kind = asked.partition(":")[0]
    if kind == "auto":
        device: str = "gpu" if paddle.device.cuda.device_count() else paddle.get_device()
        return device
    kind = {"cuda": "gpu"}.get(kind, kind)
    if kind == "cpu":
        return "cpu"
    counts = {"gpu": paddle.device.cuda.device_count, "xpu": paddle.device.xpu.device_count}
    built = kind == "gpu" or (kind == "xpu" and paddle.is_compiled_with_xpu())
    count = counts[kind]() if built else 0
    return numbered("PaddlePaddle", asked, kind, count)


def use_tf32(device: str, wanted: bool) -> None:
    """Whether products of float32 may be rounded to TF32, which NVIDIA's libraries do by default.

    Raises:
        XciteError: wanted on a device that has no such thing.
    """
    if device.startswith("gpu"):
        if not wanted:  # read by the libraries when they are first used
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    elif wanted:
        raise no_tf32()


class Sender:
    """Sends arrays to a device without waiting for what it still computes."""

    def __init__(self, device: str) -> None:
        self._device = device
        # of several steps: they have arrived when they are forgotten
        self._sent: deque[Tensor] = deque(maxlen=1024)

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device, of its own dtype; may share the array's memory."""
        if not self._device.startswith("gpu"):
            return paddle.to_tensor(array)
        # out of other memory a copy would wait for the device
        pinned = paddle.to_tensor(array, place=paddle.CUDAPinnedPlace())
        self._sent.append(pinned)  # it must outlive its copy
        return pinned.cuda(blocking=False)

    @contextmanager
    def ahead(self) -> Iterator[Callable[[list[Tensor]], None]]:
        """What is sent in here travels while the device computes.

        Yields:
            What has the device wait for such tensors, before it uses them.
        """
        # Paddle copies in the order of what it computes, so nothing has to wait.
        yield lambda tensors: None
