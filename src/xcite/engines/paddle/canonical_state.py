"""Canonical weights in and out of a Paddle model.

Paddle differs in two things: Linear weights are (in, out), square ones too, and BatchNorm calls its
running statistics ``_mean`` and ``_variance``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from xcite import canonical


def read_weights(model: Any) -> dict[str, np.ndarray]:
    """Canonical names to NumPy copies: float32, the counters int64."""
    state = model.state_dict()
    return {
        name: to_canonical(name, state[state_name(name)])
        for name in canonical.shapes(model.architecture)
    }


def load_weights(model: Any, weights: Mapping[str, np.ndarray]) -> None:
    """Set every tensor of the model.

    Raises:
        XciteError: missing, left-over or misshapen tensors.
    """
    canonical.check(weights, model.architecture)
    state = model.state_dict()
    with paddle.no_grad():
        for name, shape in canonical.shapes(model.architecture).items():
            tensor = state[state_name(name)]
            # Only a counter may be missing.
            array = weights.get(name, np.zeros(shape, np.int64))
            tensor.set_value(paddle.to_tensor(from_canonical(name, array)).astype(tensor.dtype))


def to_canonical(name: str, tensor: paddle.Tensor) -> np.ndarray:
    """A tensor of the model, or a gradient or moment of it, as a canonical array (a copy)."""
    kind = "int64" if name.endswith("num_batches_tracked") else "float32"
    array: np.ndarray = tensor.detach().astype(kind).numpy()
    return from_canonical(name, array).copy()


def from_canonical(name: str, array: np.ndarray) -> np.ndarray:
    """The array in the layout that the model's tensor has (and back: it is its own inverse)."""
    linear = array.ndim == 2 and name.endswith(".weight")
    return np.ascontiguousarray(array.T) if linear else array


def state_name(name: str) -> str:
    """The name of a canonical tensor in a Paddle model's state."""
    if name.endswith(".running_mean"):
        return name.removesuffix("running_mean") + "_mean"
    if name.endswith(".running_var"):
        return name.removesuffix("running_var") + "_variance"
    return name


def canonical_name(name: str) -> str:
    """The canonical name of a tensor in a Paddle model's state."""
    if name.endswith("._mean"):
        return name.removesuffix("_mean") + "running_mean"
    if name.endswith("._variance"):
        return name.removesuffix("_variance") + "running_var"
    return name
