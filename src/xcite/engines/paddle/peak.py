"""The linear map whose speed is the machine's peak for `xcite benchmark`."""

import numpy as np
import paddle

from xcite.choices import default_choices
from xcite.engines.paddle.kernels import library
from xcite.engines.paddle.kernels.operators import linear


def linear_map(x: np.ndarray, weight: np.ndarray, *, precision: str, operators: str) -> np.ndarray:
    """x W^T in the way and precision of linear layers: (N, C), (K, C) -> (N, K), all float32."""
    bf16 = paddle.amp.auto_cast(precision == "bf16", dtype="bfloat16", level="O1")
    choices = default_choices("paddle")
    with paddle.no_grad(), bf16:
        left, right = paddle.to_tensor(x), paddle.to_tensor(weight)
        if operators == "fast" and library.usable(choices, left, right):
            product = linear(left, right.t(), None)
        else:
            product = paddle.matmul(left, right, transpose_y=True)
        result: np.ndarray = product.astype("float32").numpy()
    return result
