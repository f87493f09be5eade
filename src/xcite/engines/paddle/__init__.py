"""XCiT and RegNetY on PaddlePaddle, and the engine that trains them."""

from xcite.engines.paddle.build import build
from xcite.engines.paddle.canonical_state import load_weights, read_weights
from xcite.engines.paddle.engine import Engine
from xcite.engines.paddle.peak import linear_map
from xcite.engines.paddle.regnet import RegNet
from xcite.engines.paddle.xcit import XCiT

__all__ = ["Engine", "RegNet", "XCiT", "build", "linear_map", "load_weights", "read_weights"]
