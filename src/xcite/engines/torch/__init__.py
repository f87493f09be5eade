"""XCiT, RegNetY and EfficientNet-Lite on PyTorch, and the engine that trains them."""

from typing import TYPE_CHECKING

from xcite.engines.torch.build import build
from xcite.engines.torch.canonical_state import load_weights, read_weights
from xcite.engines.torch.efficientnet_lite import EfficientNetLite
from xcite.engines.torch.engine import Engine
from xcite.engines.torch.peak import linear_map
from xcite.engines.torch.regnet import RegNet
from xcite.engines.torch.xcit import XCiT
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
