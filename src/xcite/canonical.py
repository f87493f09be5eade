"""Canonical weights: the official PyTorch names and shapes, as NumPy arrays.

XCiT is named as in facebookresearch/xcit, RegNetY as in timm. Linear weights are (out, in),
convolutions (out, in / groups, height, width). Every engine reads and gives this form, and every
dialect in `xcite.weights.dialects` is a table to and from it.
"""

import math
from collections.abc import Mapping

import numpy as np

from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.families.layers import Shape, Tensor
from xcite.randomness import generator

__all__ = [
    "Shape",
    "Weights",
    "check",
    "initial_weights",
    "is_parameter",
    "parameter_count",
    "shapes",
]

Weights = dict[str, np.ndarray]


def is_parameter(name: str) -> bool:
    """Whether the tensor is trained; the others are BatchNorm's buffers."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _tensors(architecture: Architecture) -> dict[str, Tensor]:
    layers = (layer for part in architecture.parts() for layer in part.layers)
    return {name: tensor for layer in layers for name, tensor in layer.tensors.items()}


def shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every canonical tensor of the architecture and its shape, in the reference's order."""
    return {name: tensor.shape for name, tensor in _tensors(architecture).items()}


def parameter_count(architecture: Architecture) -> int:
    """Number of trained values (buffers such as running means are not counted)."""
    named = shapes(architecture).items()
    return sum(math.prod(shape) for name, shape in named if is_parameter(name))


def initial_weights(architecture: Architecture, seed: int = 0) -> Weights:
    """Weights to start training from, the same on every engine.

    The distributions are the official ones (xcit.py, timm's regnet.py on PyTorch), as the family's
    layers say; float32, but for BatchNorm's counters. Each tensor has random numbers of its own.
    """
    weights = {}
    for name, (shape, initial) in _tensors(architecture).items():
        value = initial(generator(seed, f"initial {name}"), shape)
        weights[name] = value.astype(np.float32) if value.dtype.kind == "f" else value
    return weights


def check(weights: Mapping[str, np.ndarray], architecture: Architecture) -> None:
    """Refuse weights that do not fit the architecture exactly.

    ``num_batches_tracked`` may be missing: it counts batches and changes no number.

    Raises:
        XciteError: naming missing, left-over and misshapen tensors.
    """
    expected = shapes(architecture)
    missing = [n for n in expected if n not in weights and not n.endswith("num_batches_tracked")]
    extra = [n for n in weights if n not in expected]
    misshapen = [
        f"{n} is {tuple(weights[n].shape)}, expected {shape}"
        for n, shape in expected.items()
        if n in weights and tuple(weights[n].shape) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for title, names in (
            ("missing", missing),
            ("not part of the model", extra),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise XciteError(f"the weights do not fit the model; {'; '.join(problems)}")
