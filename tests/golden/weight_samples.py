"""The sample weight files of other programs, and the rule their numbers follow."""

import lzma
import tarfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from xcite.canonical import shapes
from xcite.variants import RegNetArchitecture, XCiTArchitecture

FIXTURES = Path(__file__).parents[1] / "fixtures/weights"

# The nets the samples were written from.
XCIT = XCiTArchitecture(
    patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10, tokens_norm=False
)
REGNET = RegNetArchitecture(w0=16, wa=16.0, wm=1.6, group_size=8, depth=5, num_classes=10)


def unpack(folder):
    """All sample files, in ``folder``."""
    for name in ("xcit.tar.xz", "regnet.tar.xz"):
        with lzma.open(FIXTURES / name) as packed, tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")
    return folder


def reference_tensor(name, shape, seed=0):
    """The numbers of a tensor, which depend on its official name, its shape and a seed alone."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    bounds = {"running_var": (0.5, 1.5), "temperature": (0.5, 2.0)}.get(leaf)
    if leaf.startswith("gamma"):
        bounds = (0.1, 1.0)
    if bounds:
        return random.uniform(*bounds, shape).astype(np.float32)
    normal = random.standard_normal(shape)
    if leaf == "weight" and len(shape) == 1:
        return (1.0 + 0.1 * normal).astype(np.float32)
    if leaf == "weight":
        return (normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return ({"cls_token": 0.5}.get(leaf, 0.1) * normal).astype(np.float32)


@cache
def reference(architecture):
    """Canonical weights of a sample net."""
    return {name: reference_tensor(name, shape) for name, shape in shapes(architecture).items()}


def images(shape):
    """Normalised input (B, C, H, W) that the expected logits belong to."""
    return np.random.default_rng([0, 7]).standard_normal(shape).astype(np.float32)
