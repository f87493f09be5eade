"""Several processes on `torch.distributed`: joining, gradients and BatchNorm over all.

One process is the case of world size 1 and initialises nothing.
"""

import warnings
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xcite.engines.torch.device import find
from xcite.processes import environment
from xcite.processes.lost import not_joined


def start(device: str) -> tuple[int, int]:
    """Join the group that the launcher's environment describes; (rank, number of processes).

    Args:
        device: as a recipe's ``run.device``; on GPUs each process takes the one of its number.

    Raises:
        XciteError: the environment contradicts itself, or not all processes come.
    """
    place = environment.joined("torch")
    if place.size > 1 and not dist.is_initialized():
        gpu = find(device).type == "cuda"
        if gpu:
            torch.cuda.set_device(place.local_rank)
        try:
            dist.init_process_group(
                "nccl" if gpu else "gloo",
                timeout=timedelta(seconds=environment.joining_seconds()),
            )
        except RuntimeError as error:
            raise not_joined(place, error) from error
    return place.rank, place.size


def processes_here() -> int:
    """Processes that share this machine's cores."""
    return environment.joined("torch").local_size


def average(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def parallel(model: nn.Module) -> DistributedDataParallel:
    """The model as a function whose backward pass gives the mean gradients of all processes.

    They are exchanged while the backward pass still computes.
    """
    # A gradient of a one-channel kernel has other strides than its place in the exchange, which
    # costs a copy and is no news to whoever trains.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    # Running statistics are the engine's to keep alike.
    with warnings.catch_warnings():  # the name that replaces it is not in older versions
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


def accumulating(model: DistributedDataParallel) -> AbstractContextManager[None]:
    """Backward passes in here leave their gradients to the first one outside to exchange."""
    return model.no_sync()


class SumOverProcesses(torch.autograd.Function):
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
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose batch is that of all processes.

    `torch.nn.SyncBatchNorm` works on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of all processes' batches; (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        axes = (0, 2, 3)
        full = x.float()
        count = SumOverProcesses.apply(full.new_tensor([full.numel() / full.shape[1]]))
        mean = SumOverProcesses.apply(full.sum(axes)) / count  # (C,)
        centred = full - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                momentum = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, momentum)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased, momentum)
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)


def synchronise(model: nn.Module) -> nn.Module:
    """Make every BatchNorm of the model use the statistics of all processes."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm
    return model
