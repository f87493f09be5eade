"""Builds the models of `xcite.variants` on PyTorch: the one place that chooses their parts."""

from typing import Any

from xcite.canonical import initial_weights
from xcite.choices import Choices
from xcite.engines.attention_form import check_form
from xcite.engines.operators import check_operators
from xcite.engines.torch.canonical_state import load_weights
from xcite.engines.torch.efficientnet_lite import EfficientNetLite
from xcite.engines.torch.fast import accelerate
from xcite.engines.torch.regnet import RegNet
from xcite.engines.torch.xcit import XCiT
from xcite.variants import Architecture, EfficientNetLiteArchitecture, RegNetArchitecture


def build(
    architecture: Architecture,
    *,
    operators: str = "fast",
    attention: str = "auto",
    choices: Choices | None = None,
    activation_checkpointing: bool = False,
    seed: int | None = 0,
) -> Any:
    """Build a model as a `torch.nn.Module`.

    Args:
        operators: "fast" or "plain", see `xcite.engines.operators`.
        attention: "auto", "usual" or "covariance"; others than XCiT have none and take any.
        choices: of the fast operators; by default what this processor is known for.
        activation_checkpointing: keep only the blocks' inputs for the backward pass.
        seed: draws `xcite.canonical.initial_weights`; None leaves that out, for weights that are
            loaded anyway.

    Raises:
        XciteError: unknown operators or form of attention, or two that do not go together.
    """
    check_form(attention)
    check_operators(operators, attention)
    model: Any
    if isinstance(architecture, RegNetArchitecture):
        model = RegNet(architecture, activation_checkpointing=activation_checkpointing)
    elif isinstance(architecture, EfficientNetLiteArchitecture):
        model = EfficientNetLite(architecture, activation_checkpointing=activation_checkpointing)
    else:
        model = XCiT(architecture, activation_checkpointing=activation_checkpointing)
        if operators == "fast":
            accelerate(model, attention, choices)
    if seed is not None:
        load_weights(model, initial_weights(architecture, seed))
    return model
