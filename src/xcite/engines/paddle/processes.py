"""Several processes on `paddle.distributed`: joining, gradients and BatchNorm over all.

One process is the case of world size 1 and initialises nothing.
"""

import os
from contextlib import AbstractContextManager
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from xcite.engines.paddle.batch_norm import BatchNorm2D
from xcite.engines.paddle.device import find
from xcite.engines.paddle.layers.sync_batch_norm import GpuSyncBatchNorm2D
from xcite.processes import environment
from xcite.processes.line import hidden_errors
from xcite.processes.lost import not_joined


def start(device: str) -> tuple[int, int]:
    """Join the group that the launcher's environment describes; (rank, number of processes).

    Args:
        device: as a recipe's ``run.device``; on GPUs each process takes the one of its number.

    Raises:
        XciteError: the environment contradicts itself, or not all processes come.
    """
    place = environment.joined("paddle")
    if place.size > 1 and not dist.is_initialized():
        if find(device) == "cpu":
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
        os.environ.setdefault("FLAGS_stop_check_timeout", str(int(environment.joining_seconds())))
        try:
            with hidden_errors():  # a table of Paddle's own flags
                dist.init_parallel_env()
        except (RuntimeError, OSError, ValueError) as error:
            raise not_joined(place, error) from error
    return place.rank, place.size


def processes_here() -> int:
    """Processes that share this machine's cores."""
    return environment.joined("paddle").local_size


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    with paddle.no_grad():
        flat = paddle.concat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat = flat / dist.get_world_size()
        for tensor, mean in zip(tensors, flat.split([t.size for t in tensors]), strict=True):
            paddle.assign(mean.reshape(tensor.shape), tensor)


def parallel(model: nn.Layer) -> paddle.DataParallel:
    """The model as a function whose backward pass gives the mean gradients of all processes.

    They are exchanged while the backward pass still computes.
    """
    return paddle.DataParallel(model)


def accumulating(model: paddle.DataParallel) -> AbstractContextManager[None]:
    """Backward passes in here leave their gradients to the first one outside to exchange."""
    return model.no_sync()


class SumOverProcesses(PyLayer):
    """Sum over all processes; so is its gradient, as every process uses every summand."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        """The sum, on every process."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """The sum of the gradients of all processes."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(BatchNorm2D):
    """BatchNorm whose batch is that of all processes.

    Paddle's own operator works on GPUs alone (`GpuSyncBatchNorm2D`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of all processes' batches: (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        axes, spread = [0, 2, 3], [-1, 1, 1]
        full = x.astype("float32")
        channels = len(self.weight)
        count = SumOverProcesses.apply(paddle.full([1], float(full.size // channels)))
        mean = SumOverProcesses.apply(full.sum(axes)) / count  # (C,)
        centred = full - mean.reshape(spread)
        variance = SumOverProcesses.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            with paddle.no_grad():
                momentum = self._momentum
                unbiased = variance * (count / (count - 1))
                self._mean.set_value(momentum * self._mean + (1 - momentum) * mean)
                self._variance.set_value(momentum * self._variance + (1 - momentum) * unbiased)
                self.num_batches_tracked.set_value(self.num_batches_tracked + 1)
        scale = self.weight * paddle.rsqrt(variance + self._epsilon)
        result = centred * scale.reshape(spread) + self.bias.reshape(spread)
        return result.astype(x.dtype)


def synchronise(model: nn.Layer) -> nn.Layer:
    """Make every BatchNorm of the model use the statistics of all processes."""
    on_gpu = model.parameters()[0].place.is_gpu_place()
    for layer in model.sublayers():
        if type(layer) is BatchNorm2D:
            layer.__class__ = GpuSyncBatchNorm2D if on_gpu else SyncBatchNorm
    return model
