"""The device to compute on, and numbers on their way to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from xcite.engines.devices import no_tf32, numbered


def find(asked: str) -> torch.device:
    """The device that a recipe's ``run.device`` means.

    Args:
        asked: "auto" (a GPU that CUDA or ROCm finds, else the CPU), "cpu", "gpu", "cuda", "mps" or
            "xpu", with ":N" for the device of this number.

    Raises:
        XciteError: this machine has no such device.
    """
    kind = asked.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"gpu": "cuda"}.get(kind, kind)
    if kind == "cpu":
        return torch.device("cpu")
    backend = getattr(torch, kind)
    count = backend.device_count() if backend.is_available() else 0
    return torch.device(numbered("PyTorch", asked, kind, count))


def use_tf32(device: torch.device, wanted: bool) -> None:
    """Whether products of float32 may be rounded to TF32, which PyTorch does to convolutions.

    Raises:
        XciteError: wanted on a device that has no such thing.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted
    elif wanted:
        raise no_tf32()


class Sender:
    """Sends arrays to a device without waiting for what it still computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device, of its own dtype; may share the array's memory."""
        # PyTorch shares a NumPy array's memory, and warns about one that it must not write to
        tensor = torch.as_tensor(np.require(array, requirements=["C", "W"]))
        if self._device.type == "cuda":  # out of other memory a copy would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    @contextmanager
    def ahead(self) -> Iterator[Callable[[list[Tensor]], None]]:
        """What is sent in here travels while the device computes.

        Yields:
            What has the device wait for such tensors, before it uses them.
        """
        if self._device.type != "cuda":
            yield lambda tensors: None
            return
        self._stream = self._stream or torch.cuda.Stream()
        sent = torch.cuda.Event()

        def arrive(tensors: list[Tensor]) -> None:
            here = torch.cuda.current_stream()
            here.wait_event(sent)
            for tensor in tensors:
                tensor.record_stream(here)

        with torch.cuda.stream(self._stream):
            yield arrive
            sent.record()
