"""The linear map whose speed is the machine's peak for `xcite benchmark`."""

import numpy as np
import torch
import torch.nn.functional as F

from xcite.choices import default_choices
from xcite.engines.torch.fast.matmul import linear


def linear_map(x: np.ndarray, weight: np.ndarray, *, precision: str, operators: str) -> np.ndarray:
    """x W^T in the way and precision of linear layers: (N, C), (K, C) -> (N, K), all float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choices = default_choices("torch")
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), bf16:
        left, right = (torch.from_numpy(a).to(device) for a in (x, weight))
        product = (
            linear(left, right, None, choices) if operators == "fast" else F.linear(left, right)
        )
        result: np.ndarray = product.float().cpu().numpy()
    return result
