"""XCiT and RegNetY on PyTorch, and the engine that trains them."""

from xcite.engines.torch.build import build
from xcite.engines.torch.canonical_state import load_weights, read_weights
from xcite.engines.torch.engine import Engine
from xcite.engines.torch.peak import linear_map
from xcite.engines.torch.regnet import RegNet
from xcite.engines.torch.xcit import XCiT

__all__ = ["Engine", "RegNet", "XCiT", "build", "linear_map", "load_weights", "read_weights"]
