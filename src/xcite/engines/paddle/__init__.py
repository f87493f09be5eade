"""XCiT, RegNetY and EfficientNet-Lite on PaddlePaddle, and the engine that trains them."""

from typing import TYPE_CHECKING

from xcite.engines.paddle.build import build
from xcite.engines.paddle.canonical_state import load_weights, read_weights
from xcite.engines.paddle.efficientnet_lite import EfficientNetLite
from xcite.engines.paddle.engine import Engine
from xcite.engines.paddle.peak import linear_map
from xcite.engines.paddle.regnet import RegNet
from xcite.engines.paddle.xcit import XCiT
from xcite.lazy_modules import lazy_modules

__all__ = [
    "EfficientNetLite",
    "Engine",
    "RegNet",
    "XCiT",
    "build",
    "linear_map",
    "load_weights",
    "read_weights",
]

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
