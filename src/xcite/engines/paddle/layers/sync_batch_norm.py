"""BatchNorm over all processes by Paddle's own operator, which GPUs alone have."""

import paddle
import paddle.distributed as dist
from paddle import Tensor

from xcite.engines.paddle.layers.batch_norm import UnbiasedBatchNorm2D


class GpuSyncBatchNorm2D(UnbiasedBatchNorm2D):
    """BatchNorm whose batch is that of all processes; keeps PyTorch's running variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the statistics of all processes' batches: (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        mean, variance = self._mean.clone(), self._variance.clone()  # it writes into both
        settings = (False, self._momentum, self._epsilon, "NCHW", False, False)
        y = paddle._C_ops.sync_batch_norm_(x, mean, variance, self.weight, self.bias, *settings)[0]
        if self.track_running_stats:
            with paddle.no_grad():
                old = self._momentum * self._variance
                # Shares differ by one pair at most, which is nothing to so many values.
                count = x.size // len(self.weight) * dist.get_world_size()
                self._keep(mean, old, variance - old, count)
        return y
