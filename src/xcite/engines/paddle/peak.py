"""The linear map whose speed is the machine's peak for `xcite benchmark`."""

import numpy as np
import paddle


def linear_map(x: np.ndarray, weight: np.ndarray, *, precision: str, operators: str) -> np.ndarray:
    """x W^T in the way and precision of linear layers: (N, C), (K, C) -> (N, K), all float32."""
    bf16 = paddle.amp.auto_cast(precision == "bf16", dtype="bfloat16", level="O1")
    with paddle.no_grad(), bf16:
        left, right = paddle.to_tensor(x), paddle.to_tensor(weight)
        product = paddle.matmul(left, right, transpose_y=True)
        result: np.ndarray = product.astype("float32").numpy()
    return result
