"""XCiT and RegNetY on PaddlePaddle, and the engine that trains them."""

from typing import TYPE_CHECKING, Any

from xcite.engines.paddle.canonical_state import load_weights, read_weights
from xcite.engines.paddle.regnet import RegNet
from xcite.engines.paddle.xcit import XCiT
from xcite.engines.vector_instructions import use_vector_instructions

if TYPE_CHECKING:
    from xcite.engines.paddle.engine import Engine
    from xcite.variants import Architecture

__all__ = ["Engine", "RegNet", "XCiT", "build", "load_weights", "read_weights"]

use_vector_instructions()  # read at the first matrix product


def build(
    architecture: "Architecture",
    *,
    attention: str = "auto",
    activation_checkpointing: bool = False,
    seed: int | None = 0,
) -> Any:
    """Build a model as a `paddle.nn.Layer`.

    Args:
        attention: "auto", "usual" or "covariance"; RegNet has no attention and takes any.
        activation_checkpointing: keep only the blocks' inputs for the backward pass.
        seed: draws `xcite.canonical.initial_weights`; None leaves that out, for weights that are
            loaded anyway.
    """
    from xcite.canonical import initial_weights
    from xcite.variants import RegNetArchitecture

    model: Any
    if isinstance(architecture, RegNetArchitecture):
        model = RegNet(architecture, activation_checkpointing=activation_checkpointing)
    else:
        model = XCiT(
            architecture,
            attention=attention,
            activation_checkpointing=activation_checkpointing,
        )
    if seed is not None:
        load_weights(model, initial_weights(architecture, seed))
    return model


def __getattr__(name: str) -> Any:
    if name == "Engine":  # last and late: the engine itself imports this package
        from xcite.engines.paddle.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
