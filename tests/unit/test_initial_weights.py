"""Initial weights: the official distributions, and nothing that should be drawn is constant."""

import numpy as np
import pytest

from xcite.canonical import initial_weights
from xcite.variants import find


@pytest.mark.parametrize("name", ["xcit_nano_12_p8", "regnety_160"])
def test_every_kernel_is_drawn(name):
    small = {"depth": 2} if name.startswith("xcit") else {"w0": 24, "wa": 20.0, "group_size": 8}
    for tensor, values in initial_weights(find(name, **small)).items():
        if tensor.endswith("weight") and values.ndim > 1:
            assert values.std() > 0, tensor
            assert abs(values.mean()) < values.std(), tensor


def test_convolutions_are_uniform_within_pytorchs_bound():
    weights = initial_weights(find("xcit_nano_12_p8", depth=1))
    kernel = weights["patch_embed.proj.2.0.weight"]  # (64, 32, 3, 3)
    bound = 1 / np.sqrt(32 * 9)
    assert np.abs(kernel).max() <= bound
    # the deviation of a uniform distribution; 18,432 draws come within 2 % of it
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    bias = weights["blocks.0.local_mp.conv1.bias"]
    assert 0 < np.abs(bias).max() <= 1 / 3
