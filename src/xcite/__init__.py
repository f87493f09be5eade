"""XCiT for PaddlePaddle and PyTorch. Importing this package imports no framework."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcite.errors import XciteError
from xcite.variants import list_models

if TYPE_CHECKING:
    import numpy as np

    from xcite.runtime.predictor import Predictor

__all__ = ["Predictor", "XciteError", "create_model", "list_models", "load_weights", "read_weights"]
# imported when first used
SUBMODULES = (
    *("alignment", "engines", "export", "families", "preprocessing", "randomness", "runtime"),
    *("server", "weights"),
)
__version__ = "0.1.0"


def create_model(
    name: str,
    *,
    engine: str = "paddle",
    num_classes: int = 1000,
    in_chans: int = 3,
    operators: str = "fast",
    attention: str = "auto",
    weights: "str | Path | Mapping[str, np.ndarray] | None" = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    **overrides: Any,
) -> Any:
    """Build a model as the framework's own module.

    Args:
        name: an architecture or a published name, see `list_models`; also "regnety_160".
        engine: "paddle" gives a `paddle.nn.Layer`, "torch" a `torch.nn.Module`.
        num_classes: 0 for features (B, D) instead of logits.
        operators: "fast", or "plain": slower, computed as the paper writes it.
        attention: "auto", "usual" or "covariance" form, see docs/performance.md.
        weights: a file of any dialect, a published name, or canonical names to arrays; None draws
            them. Published names are downloaded once into the cache.
        reset_head: draw the head anew instead of loading the file's.
        adapt_channels: fit the first convolution when they have other input channels.
        overrides: fields of `xcite.variants.XCiTArchitecture` to replace, such as ``depth``.

    Returns:
        A module; ``model(images)`` takes normalised float32 (B, in_chans, H, W) of any H and W.

    Raises:
        XciteError: unknown name, engine, operators or attention, or weights that do not fit.
    """
    from xcite import variants
    from xcite.engines import engine_package

    architecture = variants.find(name, num_classes=num_classes, in_chans=in_chans, **overrides)
    model = engine_package(engine).build(architecture, operators=operators, attention=attention)
    if weights is not None:
        load_weights(model, weights, reset_head=reset_head, adapt_channels=adapt_channels)
    return model


def load_weights(
    model: Any,
    weights: "str | Path | Mapping[str, np.ndarray]",
    *,
    reset_head: bool = False,
    adapt_channels: bool = False,
) -> Any:
    """Set the weights of a model made by `create_model`; returns the model.

    Args:
        weights: a file of any dialect, a run folder, a published name, or canonical names to
            arrays, which must fit as they are.
        reset_head: keep the model's own head instead of loading the file's.
        adapt_channels: fit the file's first convolution to the model's input channels.

    Raises:
        XciteError: unreadable file, or missing, left-over or misshapen tensors.
    """
    from xcite.engines import engine_package

    if not isinstance(weights, Mapping):
        from xcite.weights import open_weights

        opened = open_weights(
            weights,
            architecture=model.architecture,
            reset_head=reset_head,
            adapt_channels=adapt_channels,
        )
        weights = opened.tensors
        if opened.missing:
            own = read_weights(model)
            weights = {**weights, **{name: own[name] for name in opened.missing}}
    engine_package(model.engine).load_weights(model, weights)
    return model


def read_weights(model: Any) -> "dict[str, np.ndarray]":
    """Canonical (official PyTorch) names to NumPy arrays, copies, of a model of either engine."""
    from xcite.engines import engine_package

    result: dict[str, np.ndarray] = engine_package(model.engine).read_weights(model)
    return result


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from xcite.runtime.predictor import Predictor

        return Predictor
    if name in SUBMODULES:
        return importlib.import_module(f"xcite.{name}")
    raise AttributeError(f"module 'xcite' has no attribute {name!r}")
