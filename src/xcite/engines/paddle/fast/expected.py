"""The guard: a fast operator reads weights past a layer's call only while the layer is as built.

Otherwise it would bypass a hook, a LoRA or quantising wrapper, another activation or a replaced
`forward`; so it then calls the layer, as the plain operator does.
"""

from typing import Any

from paddle import nn

from xcite.engines.paddle.batch_norm import BatchNorm2D
from xcite.engines.paddle.fast.norm import FastLayerNorm
from xcite.engines.paddle.xcit import LAYER_NORM_EPS

# What a type leaves open, as our models set it.
SETTINGS: dict[type[nn.Layer], tuple[tuple[str, Any], ...]] = {
    nn.Conv2D: (("_stride", [1, 1]), ("_dilation", [1, 1]), ("_padding_mode", "zeros")),
    nn.Dropout: (("mode", "upscale_in_train"), ("axis", None)),
    nn.GELU: (("_approximate", False),),
    FastLayerNorm: (("_epsilon", LAYER_NORM_EPS),),
    BatchNorm2D: (("_data_format", "NCHW"), ("_use_global_stats", None)),
}


def as_built(layer: nn.Layer, kind: type[nn.Layer], **settings: Any) -> bool:
    """Whether calling the layer does what its type says, and nothing else.

    Args:
        kind: the exact type, since a subclass may compute anything.
        settings: attributes and the values they must have, besides or instead of those of
            `SETTINGS`.
    """
    own = vars(layer)
    if type(layer) is not kind or "forward" in own:
        return False
    if own["_forward_pre_hooks"] or own["_forward_post_hooks"]:
        return False
    wanted = {**dict(SETTINGS.get(kind, ())), **settings}
    return all(own[name] == value for name, value in wanted.items())


def has_bias(layer: nn.Layer) -> bool:
    """Whether the layer has both a weight and a bias; either may be switched off."""
    parameters = layer._parameters
    return parameters.get("weight") is not None and parameters.get("bias") is not None
