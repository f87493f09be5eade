"""The guard: a fast operator reads weights past a layer's call only while the layer is as built.

A hook, a LoRA or quantising wrapper, another activation or a replaced `forward` would be bypassed
else. Then the operator calls the layer instead, as the plain one does.
"""

from typing import Any

from paddle import nn

# What a type of Paddle leaves open, as our models set it.
SETTINGS: dict[type[nn.Layer], dict[str, Any]] = {
    nn.Conv2D: {"_stride": [1, 1], "_dilation": [1, 1], "_padding_mode": "zeros"},
    nn.Dropout: {"mode": "upscale_in_train", "axis": None},
    nn.GELU: {"_approximate": False},
    nn.LayerNorm: {"_epsilon": 1e-6},
}


def as_built(layer: nn.Layer, kind: type[nn.Layer], **settings: Any) -> bool:
    """Whether calling the layer does what its type says, and nothing else.

    Args:
        kind: the exact type, since a subclass may compute anything.
        settings: attributes that have to be so, beside those of `SETTINGS`.
    """
    if type(layer) is not kind or layer._forward_pre_hooks or layer._forward_post_hooks:
        return False
    own = vars(layer)
    wanted = {**SETTINGS.get(kind, {}), **settings}
    return "forward" not in own and all(own[name] == value for name, value in wanted.items())


def has_bias(layer: nn.Layer) -> bool:
    """Whether the layer has both a weight and a bias; either may be switched off."""
    return layer.weight is not None and layer.bias is not None
