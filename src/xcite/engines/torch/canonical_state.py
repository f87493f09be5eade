"""Canonical weights in and out of a PyTorch model, which has the canonical names and layouts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

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
    with torch.no_grad():
        for name, shape in canonical.shapes(model.architecture).items():
            # Only a counter may be missing.
            array = weights.get(name, np.zeros(shape, np.int64))
            state[state_name(name)].copy_(torch.as_tensor(from_canonical(name, array)))


def to_canonical(name: str, tensor: torch.Tensor) -> np.ndarray:
    """A tensor of the model, or a gradient or moment of it, as a canonical array (a copy)."""
    kind = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
    array: np.ndarray = tensor.detach().to("cpu", kind).numpy().copy()
    return array


def from_canonical(name: str, array: np.ndarray) -> np.ndarray:
    """The array in the layout that the model's tensor has."""
    return array


def state_name(name: str) -> str:
    """The name of a canonical tensor in a PyTorch model's state: itself."""
    return name


def canonical_name(name: str) -> str:
    """The canonical name of a tensor in a PyTorch model's state: itself."""
    return name
