"""Deterministic weights and inputs that the reference numbers in fixtures/goldens were made with.

A tensor depends on its canonical name, its shape and a seed alone, so none of them is stored.
"""

import importlib
import math
import zlib
from pathlib import Path

import numpy as np

from xcite import canonical

GOLDENS = Path(__file__).parent / "fixtures/goldens"


def reference_weights(architecture, seed):
    """Canonical names to float32 arrays."""
    return {n: _tensor(n, s, seed) for n, s in canonical.shapes(architecture).items()}


def reference_images(shape, seed):
    """float32 (B, 3, H, W), standard normal."""
    return np.random.default_rng([seed, 7]).standard_normal(shape).astype(np.float32)


def _tensor(name, shape, seed):
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    ranges = {"running_var": (0.5, 1.5), "gamma": (0.1, 1.0), "temperature": (0.5, 2.0)}
    bounds = ranges.get(leaf.rstrip("123"))
    if bounds:
        return random.uniform(*bounds, shape).astype(np.float32)
    normal = random.standard_normal(shape)
    if leaf == "cls_token":
        normal = 0.5 * normal
    elif leaf in ("bias", "running_mean"):
        normal = 0.1 * normal
    elif len(shape) == 1:
        normal = 1 + 0.1 * normal
    else:
        normal = normal / math.sqrt(math.prod(shape[1:]))
    return normal.astype(np.float32)


def epsilon_probe(weights):
    """The same weights made so small in places that a wrong epsilon moves the logits visibly."""
    norms = [name.removesuffix(".running_var") for name in weights if name.endswith("running_var")]
    stem = [int(norm.split(".")[2]) for norm in norms if norm.startswith("patch_embed")]
    scales = {}
    for norm in norms:
        scales |= {f"{norm}.running_var": 1e-4, f"{norm}.running_mean": 1e-2}
        scales[f"{norm}.weight"] = 1e-2
    if stem:
        last = f"patch_embed.proj.{max(stem)}.1"
        scales[f"{last}.weight"] = 1e-2 * 1e-3
        scales[f"{last}.bias"] = scales["cls_token"] = 1e-3
        in_blocks = ("attn.proj.", "local_mp.conv2.", "mlp.fc2.")
        for name in weights:
            small = name.startswith("pos_embeder.") or (
                any(part in name for part in in_blocks)
                if name.startswith("blocks.")
                else name.startswith("cls_attn_blocks.") and "attn.proj." in name
            )
            if small:
                scales[name] = 1e-3
    return {
        name: (weights[name] * np.float64(scales.get(name, 1))).astype(weights[name].dtype)
        for name in weights
    }


def build(engine, architecture, weights, *, train=False, **options):
    """A model of the engine, in evaluation mode unless ``train``; weights None: to be loaded."""
    model = importlib.import_module(f"xcite.engines.{engine}").build(
        architecture, seed=None, **options
    )
    if weights is not None:
        load(model, weights)
    model.train() if train else model.eval()
    return model


def load(model, weights):
    """Set a model's weights."""
    importlib.import_module(f"xcite.engines.{model.engine}").load_weights(model, weights)


def tensor(engine, array):
    """The framework's tensor."""
    framework = importlib.import_module(engine)
    return framework.to_tensor(array) if engine == "paddle" else framework.from_numpy(array)


def call(function, engine, images):
    """Run a method of a model on NumPy images without gradients; arrays come back."""
    framework = importlib.import_module(engine)
    with framework.no_grad():
        return _arrays(function(tensor(engine, images)))


def _arrays(result):
    if isinstance(result, dict):
        return {name: _arrays(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return [_arrays(value) for value in result]
    return result.numpy()


def relative_error(found, expected):
    """Largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
