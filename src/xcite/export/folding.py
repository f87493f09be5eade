"""Norms and scales folded into the maps beside them, in float64, exact."""

from collections.abc import Mapping

import numpy as np

BATCH_NORM_EPS = 1e-5


def fold_batch_norm(
    weights: Mapping[str, np.ndarray], convolution: str, norm: str, eps: float = BATCH_NORM_EPS
) -> tuple[np.ndarray, np.ndarray]:
    """The convolution with the BatchNorm behind it: weight and bias."""
    scale, shift = batch_norm(weights, norm, eps)
    return weights[f"{convolution}.weight"] * scale[:, None, None, None], shift


def batch_norm(
    weights: Mapping[str, np.ndarray], norm: str, eps: float = BATCH_NORM_EPS
) -> tuple[np.ndarray, np.ndarray]:
    """BatchNorm in evaluation mode as x * scale + shift."""
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + eps)
    return scale, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale


def centred(value: np.ndarray, axis: int) -> np.ndarray:
    """With the mean over ``axis``, the output channels, taken out."""
    result: np.ndarray = value - value.mean(axis=axis, keepdims=True)
    return result


def behind_norm(
    weights: Mapping[str, np.ndarray], linear: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (in, out) and bias of a linear map with the shift of the LayerNorm before it."""
    weight = weights[f"{linear}.weight"].T
    bias = weights.get(f"{linear}.bias", np.zeros(weight.shape[1]))
    return weight, bias + weights[f"{norm}.bias"] @ weight


def scaled(
    weights: Mapping[str, np.ndarray], linear: str, gamma: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (in, out) and bias of a linear map with the LayerScale behind it."""
    scale = weights[gamma]
    return weights[f"{linear}.weight"].T * scale, weights[f"{linear}.bias"] * scale
