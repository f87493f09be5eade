"""LayerNorm that may be frozen."""

import paddle.nn.functional as F
from paddle import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose input gets its gradient also where the weight gets none."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over the last axis: (..., C)."""
        return layer_norm(x, self.weight, self.bias, self._epsilon)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Weight times x normalised over the last axis (..., C), plus bias; both (C,).

    Paddle 3.3's kernel for CPUs leaves a frozen weight out of the gradient of x, without a word.
    """
    width = x.shape[-1:]
    if weight.stop_gradient and not x.stop_gradient:
        return F.layer_norm(x, width, epsilon=epsilon) * weight + bias
    return F.layer_norm(x, width, weight, bias, epsilon)
