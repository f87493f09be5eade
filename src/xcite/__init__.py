"""XCiT for PaddlePaddle and PyTorch. Importing this package imports no framework."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from xcite.errors import XciteError
from xcite.lazy_modules import lazy_modules, visible_names
from xcite.variants import list_models

if TYPE_CHECKING:  # for type checkers; when the program runs, __getattr__ imports them
    import numpy as np

    from xcite import alignment as alignment
    from xcite import data as data
    from xcite import engines as engines
    from xcite import evaluation as evaluation
    from xcite import export as export
    from xcite import families as families
    from xcite import figures as figures
    from xcite import preprocessing as preprocessing
    from xcite import randomness as randomness
    from xcite import recipe as recipe
    from xcite import runtime as runtime
    from xcite import server as server
    from xcite import training as training
    from xcite import variants as variants
    from xcite import weights as weights
    from xcite.engines.paddle.backbone import Backbone as PaddleBackbone
    from xcite.engines.torch.backbone import Backbone as TorchBackbone
    from xcite.runtime.predictor import Predictor

__all__ = ["Predictor", "XciteError", "create_model", "list_models", "load_weights", "read_weights"]
__version__ = "0.1.0"


Model = TypeVar("Model")


@overload
def create_model(
    name: str,
    *,
    engine: Literal["paddle"] = "paddle",
    num_classes: int = 1000,
    in_chans: int = 3,
    operators: str = "fast",
    attention: str = "auto",
    weights: "str | Path | Mapping[str, np.ndarray] | None" = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    **overrides: Any,
) -> "PaddleBackbone": ...
@overload
def create_model(
    name: str,
    *,
    engine: Literal["torch"],
    num_classes: int = 1000,
    in_chans: int = 3,
    operators: str = "fast",
    attention: str = "auto",
    weights: "str | Path | Mapping[str, np.ndarray] | None" = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    **overrides: Any,
) -> "TorchBackbone": ...
@overload
def create_model(
    name: str,
    *,
    engine: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    operators: str = "fast",
    attention: str = "auto",
    weights: "str | Path | Mapping[str, np.ndarray] | None" = None,
    reset_head: bool = False,
    adapt_channels: bool = False,
    **overrides: Any,
) -> "Any": ...
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
    model: Model,
    weights: "str | Path | Mapping[str, np.ndarray]",
    *,
    reset_head: bool = False,
    adapt_channels: bool = False,
) -> Model:
    """Set the weights of a model made by `create_model`; returns the model.

    Args:
        model: also one that is compiled, or inside DataParallel and the like.
        weights: a file of any dialect, a run folder, a published name, or canonical names to
            arrays, which must fit as they are; the names may have a prefix in common.
        reset_head: keep the model's own head instead of loading the file's.
        adapt_channels: fit the file's first convolution to the model's input channels.

    Raises:
        XciteError: unreadable file, or missing, left-over or misshapen tensors.
    """
    from xcite.engines import engine_package

    built = _inside(model)
    if not isinstance(weights, Mapping):
        from xcite.weights import open_weights

        opened = open_weights(
            weights,
            architecture=built.architecture,
            reset_head=reset_head,
            adapt_channels=adapt_channels,
        )
        weights = opened.tensors
        if opened.missing:
            own = read_weights(built)
            weights = {**weights, **{name: own[name] for name in opened.missing}}
    else:
        weights = _without_prefix(weights, built.architecture)
    engine_package(built.engine).load_weights(built, weights)
    return model


def read_weights(model: Any) -> "dict[str, np.ndarray]":
    """Canonical (official PyTorch) names to NumPy arrays, copies, of a model of either engine.

    The model may be compiled, or inside DataParallel and the like.

    Raises:
        XciteError: it is no model that `create_model` made.
    """
    from xcite.engines import engine_package

    built = _inside(model)
    result: dict[str, np.ndarray] = engine_package(built.engine).read_weights(built)
    return result


def _inside(model: Any) -> Any:
    """The model that `create_model` made, without what was put around it."""
    around = ("_orig_mod", "module", "_layers")  # torch.compile; DataParallel of PyTorch; of Paddle
    while names := [name for name in around if hasattr(model, name)]:
        model = getattr(model, names[0])
    if not hasattr(model, "engine"):
        raise XciteError(f"{type(model).__name__} is no model that xcite.create_model made")
    return model


def _without_prefix(
    weights: "Mapping[str, np.ndarray]", architecture: Any
) -> "Mapping[str, np.ndarray]":
    """The arrays without what all their names begin with, such as ``module.``."""
    from xcite import canonical

    first = next(iter(canonical.shapes(architecture)))
    prefix = next((n.removesuffix(first) for n in weights if n.endswith(f".{first}")), "")
    if all(name.startswith(prefix) for name in weights):
        return {name.removeprefix(prefix): array for name, array in weights.items()}
    return weights


def __dir__() -> list[str]:
    return visible_names(globals())


if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__, Predictor="runtime.predictor")
