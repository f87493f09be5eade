"""GELU by the faster kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.choices import Choices
from xcite.engines.torch.fast.expected import ordinary


class FastGELU(nn.GELU):
    """On bfloat16 pictures that are channels-last, oneDNN's kernel; else PyTorch's own."""

    choices: Choices

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        turns = self.choices.turned_gelu and ordinary(x)
        if turns and x.dtype == torch.bfloat16 and x.ndim == 4:
            # oneDNN takes plain tensors only.
            return F.gelu(x.permute(0, 2, 3, 1), approximate=self.approximate).permute(0, 3, 1, 2)
        return super().forward(x)
