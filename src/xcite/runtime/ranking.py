"""Answers of a model in order: softmax, the most probable classes and their names."""

from collections.abc import Sequence

import numpy as np


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax over the last axis at a temperature, in float64 to sum to 1."""
    logits = logits.astype(np.float64) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def top_classes(shares: np.ndarray, top: int) -> np.ndarray:
    """The ``top`` largest of the last axis (..., K), largest first, equal ones in class order."""
    order: np.ndarray = np.argsort(-shares, axis=-1, kind="stable")[..., :top]
    return order


def ranked(
    shares: np.ndarray, class_names: Sequence[str] | None, top: int
) -> list[tuple[str, float]]:
    """Names and probabilities of one picture's ``top`` classes, the most probable first.

    Args:
        shares: probabilities (K,).
    """
    return [(class_name(class_names, k), float(shares[k])) for k in top_classes(shares, top)]


def class_name(class_names: Sequence[str] | None, index: int) -> str:
    """The name of class ``index``; its number where no name is known."""
    return class_names[index] if class_names and index < len(class_names) else str(index)
