"""Blocks of fast operators, and the model in which CLS and patches stay apart to the end."""

from typing import Any

import paddle
from paddle import Tensor, nn

from xcite.choices import Choices
from xcite.engines.paddle.backbone import ignore
from xcite.engines.paddle.fast.attention import FastClassAttention, FastXCA
from xcite.engines.paddle.fast.expected import as_built, has_bias
from xcite.engines.paddle.fast.local import FastLPI
from xcite.engines.paddle.fast.mlp import FastMlp
from xcite.engines.paddle.fast.norm import FastLayerNorm
from xcite.engines.paddle.kernels import library, operators
from xcite.engines.paddle.xcit import (
    ClassAttentionBlock,
    ConvPatchEmbed,
    XCABlock,
    XCiT,
    drop_path,
)


def is_fast(layer: nn.Layer) -> bool:
    """Whether an operator and all in it are as built."""
    kind = type(layer)
    if kind not in (FastXCA, FastLPI, FastMlp, FastClassAttention, FastClassAttentionBlock):
        return False
    own: bool = as_built(layer, kind) and layer.is_as_built()
    return own


def branch(gamma: Tensor, layer: nn.Layer, *inputs: Any) -> Tensor:
    """gamma * layer(*inputs); a layer that is not as built is called for it."""
    if is_fast(layer):
        result: Tensor = layer.branch(*inputs, gamma)
        return result
    return gamma * layer(*inputs)


def convolved(layer: nn.Layer, x: Tensor) -> Tensor:
    """What a `conv3x3` makes of float32 maps (B, C, H, W) on a CPU, by the compiled operator."""
    if not as_built(layer, nn.Sequential) or len(layer) != 2:
        return layer(x)
    first, norm = layer
    stride = getattr(first, "_stride", [])
    known = as_built(first, nn.Conv2D, _padding=1, _groups=1, _stride=stride)
    if not known or len({*stride}) != 1 or first.weight.shape[2:] != [3, 3] or has_bias(first):
        return layer(x)
    y: Tensor = norm(operators.Convolution.apply(x, first.weight, stride[0]))
    return y


class FastConvPatchEmbed(ConvPatchEmbed):
    """The residual stream keeps the weights' dtype, also under autocast."""

    choices: Choices

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, in_chans, H, W) -> tokens (B, N, C), Hp, Wp; Hp = ceil(H / patch)."""
        if as_built(self.proj, nn.Sequential) and library.usable(self.choices, images):
            x = images
            for layer in self.proj:
                x = operators.Gelu.apply(x) if as_built(layer, nn.GELU) else convolved(layer, x)
            return x.flatten(2).transpose([0, 2, 1]), *x.shape[2:]
        x, height, width = super().forward(images)
        return x.astype(self.parameters()[0].dtype), height, width


class FastXCABlock(XCABlock):
    """Each branch has its LayerScale in its last weight."""

    def forward(self, x: Tensor, height: int, width: int, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); paths: drop-path scales (3, B) of the three branches."""
        keep1, keep3, keep2 = (None,) * 3 if paths is None else paths
        x = x + drop_path(branch(self.gamma1, self.attn, self.norm1(x)), keep1)
        x = x + drop_path(branch(self.gamma3, self.local_mp, self.norm3(x), height, width), keep3)
        x = x + drop_path(branch(self.gamma2, self.mlp, self.norm2(x)), keep2)
        return x


class FastClassAttentionBlock(ClassAttentionBlock):
    """CLS and patches apart, since most of the work is for one of them alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), CLS first -> the same."""
        if not self.is_as_built():
            return super().forward(x)
        return paddle.concat(self.apart(x[:, :1], x[:, 1:]), axis=1)

    def is_as_built(self) -> bool:
        """Whether `apart` may read the layers' weights."""
        return (
            as_built(self.norm1, FastLayerNorm)
            and as_built(self.norm2, FastLayerNorm)
            and has_bias(self.norm2)
            and is_fast(self.attn)
            and is_fast(self.mlp)
        )

    def apart(
        self, cls: Tensor, patches: Tensor, last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """CLS (B, 1, C) and patches (B, N, C) -> the same; no patches after the last layer."""
        norm1, norm2 = self.norm1, self.norm2
        normed = norm1(patches)
        cls = cls + self.gamma1 * self.attn.answer(norm1(cls), normed)
        cls = norm2(cls)  # the normalised CLS is also what the MLP is added to
        cls = cls + self.mlp.branch(cls, self.gamma2)
        if last:
            return cls, None
        # The reference concatenates CLS's update with the normalised patches before gamma1, and
        # adds the patches to themselves at the end: they double.
        patches = patches + self.gamma1 * normed
        if self.tokens_norm:
            weight, bias = 2 * norm2.weight, 2 * norm2.bias
            return cls, norm2.normalised(patches, weight, bias)
        return cls, 2 * patches


class FastXCiT(XCiT):
    """The last layer computes CLS alone, since no later layer reads the patches."""

    def forward_features(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """What the classifier sees: CLS after the final norm (B, C)."""
        last = len(self.cls_attn_blocks)
        if not (as_built(self.norm, FastLayerNorm) and all(map(is_fast, self.cls_attn_blocks))):
            return super().forward_features(images, paths)
        x = self._patches(images, paths, ignore)
        cls = self.cls_token.expand([x.shape[0], -1, -1])
        for i, block in enumerate(self.cls_attn_blocks, 1):
            cls, x = block.apart(cls, x, last=i == last)
        features: Tensor = self.norm(cls).squeeze(1)
        return features
