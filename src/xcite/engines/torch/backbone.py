"""What every model offers besides its layers: one walk gives logits, features, maps and alignment.

Names are timm's where timm has one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xcite.engines.intermediates import chosen_blocks, feature_info
from xcite.engines.torch.layers.scripting import NotScriptable
from xcite.errors import XciteError
from xcite.variants import Architecture

See = Callable[[str, Tensor], object]  # takes the name of a part of the model and its output


def ignore(name: str, output: Tensor) -> None:
    """The `See` of a walk of which only the result is wanted."""


def check_images(images: Any, channels: int) -> None:
    """Refuse what a model cannot take.

    Raises:
        XciteError: anything but a floating tensor (B, channels, H, W).
    """
    if isinstance(images, torch.fx.Proxy) or torch.jit.is_tracing():
        return  # sizes are symbols
    floating = isinstance(images, Tensor) and images.is_floating_point()
    if floating and images.ndim == 4 and images.shape[1] == channels:
        return
    found = getattr(images, "dtype", None), list(getattr(images, "shape", []))
    raise XciteError(
        f"the model takes a floating tensor (batch, {channels}, height, width); "
        f"this is a {type(images).__name__} of {found[0]} {found[1]}"
    )


class Backbone(NotScriptable):
    """A model described by its `walk`.

    Attributes:
        engine: "torch".
        architecture: what it was built from.
        activation_checkpointing: keep only each block's input for the backward pass.
        num_features: width of what the classifier sees.
        feature_info: per block its channels, its stride and its name.
    """

    engine = "torch"

    def __init__(self, architecture: Architecture, activation_checkpointing: bool) -> None:
        super().__init__()
        self.architecture: Any = architecture
        self.activation_checkpointing = activation_checkpointing
        self.feature_info = feature_info(architecture)
        self.num_features: int = self.feature_info[-1]["num_chs"]

    def walk(self, images: Tensor, paths: Tensor | None = None, see: See | None = None) -> Tensor:
        """What the last layer before `pooled` gives; ``see`` is told parts' names and outputs."""
        raise NotImplementedError

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees of the walk's result: (B, num_features)."""
        raise NotImplementedError

    def forward(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """Logits (B, K) of normalised images (B, in_chans, H, W) of any H and W.

        Args:
            paths: drop-path scales, see the model's `walk`.
        """
        logits: Tensor = self.head(self.forward_features(images, paths))
        return logits

    def forward_features(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """What the classifier sees: (B, num_features)."""
        return self.pooled(self.walk(images, paths))

    def named_outputs(self, images: Tensor, paths: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs of the parts in forward order, named as in `walk`; "head" (B, K) is the last."""
        outputs: dict[str, Tensor] = {}
        x = self.walk(images, paths, outputs.__setitem__)
        outputs["head"] = self.head(self.pooled(x))
        return outputs

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of chosen blocks, and the walk's result; timm's arguments.

        Args:
            indices: blocks' numbers, also negative; a number n for the last n; None for all.
            norm: apply the final norm to the blocks' tokens, too.
            output_fmt: "NCHW" for (B, C, Hp, Wp), "NLC" for tokens (B, N, C).
            intermediates_only: give the list alone instead of (result, list).

        Raises:
            XciteError: a number that no block has, or an unknown format.
        """
        wanted = chosen_blocks(indices, self.feature_info, output_fmt)
        kept: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            if name in wanted:
                kept[name] = self.norm(x) if norm else x

        final = self.walk(images, see=keep)
        maps = [kept[name] for name in wanted]
        if output_fmt == "NCHW" and maps[0].ndim == 3:
            patch = self.feature_info[0]["reduction"]
            grid = [-(-side // patch) for side in images.shape[2:]]
            maps = [x.transpose(1, 2).unflatten(2, grid) for x in maps]
        return maps if intermediates_only else (final, maps)

    def attention_maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Attention: per class-attention layer (B, h, 1 + N), and per XCA block (B, h, c, c)."""
        maps: dict[str, list[Tensor]] = {"cls_attn_blocks": [], "blocks": []}
        given = images

        def attend(name: str, x: Tensor) -> None:
            nonlocal given  # to the part that gave x
            kind, _, number = name.partition(".")
            if kind in maps:
                block = getattr(self, kind)[int(number)]
                maps[kind].append(block.attn.attention(block.norm1(given)))
            given = x

        self.walk(images, see=attend)
        return maps["cls_attn_blocks"], maps["blocks"]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly drawn one of ``num_classes``; 0 for features."""
        self.architecture = replace(self.architecture, num_classes=num_classes)
        parameter = next(self.parameters())
        fresh = classifier(self.num_features, num_classes)
        if num_classes:
            nn.init.trunc_normal_(fresh.weight, std=0.02)
            nn.init.zeros_(fresh.bias)
        self.set_classifier(fresh.to(parameter.device, parameter.dtype))

    def set_classifier(self, layer: nn.Module) -> None:
        """Put the classifier where the model has it."""
        self.head = layer


def classifier(width: int, classes: int) -> nn.Module:
    """A linear map to the classes; nothing for features."""
    return nn.Linear(width, classes) if classes else nn.Identity()
