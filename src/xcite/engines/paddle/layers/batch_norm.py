"""BatchNorm that keeps PyTorch's running variance."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn


class UnbiasedBatchNorm2D(nn.BatchNorm2D):
    """BatchNorm whose running variance is PyTorch's: unbiased, where Paddle keeps the biased one.

    Counts its batches as PyTorch does; ``track_running_stats`` False leaves the buffers alone.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__(width, momentum=0.9, epsilon=epsilon)
        self.track_running_stats = True
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised: (B, C, H, W)."""
        mean, variance = self._mean, self._variance
        if self.training:
            # Paddle's kernel writes into what it is given.
            mean, variance = mean.clone(), variance.clone()
        y = F.batch_norm(
            x,
            mean,
            variance,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
        )
        if self.training and self.track_running_stats:
            with paddle.no_grad():
                old = self._momentum * self._variance
                self._keep(mean, old, variance - old, x.size // len(self.weight))
        return y

    def count_in(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Have the running statistics follow a batch's mean and biased variance, both (C,).

        count: values per channel.
        """
        if self.training and self.track_running_stats:
            with paddle.no_grad():
                old, new = self._momentum, 1 - self._momentum
                mean = old * self._mean + new * mean
                self._keep(mean, old * self._variance, new * variance, count)

    def _keep(self, mean: Tensor, old: Tensor, share: Tensor, count: int) -> None:
        self._mean.set_value(mean)
        self._variance.set_value(old + share * (count / max(count - 1, 1)))
        self.num_batches_tracked.set_value(self.num_batches_tracked + 1)
