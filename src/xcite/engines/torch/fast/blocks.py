"""Blocks of fast operators, and the model in which CLS and patches stay apart to the end."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.engines.torch.backbone import ignore
from xcite.engines.torch.fast.attention import FastClassAttention, FastXCA
from xcite.engines.torch.fast.expected import as_built, ordinary
from xcite.engines.torch.fast.local import FastLPI
from xcite.engines.torch.fast.mlp import FastMlp, add_branch
from xcite.engines.torch.xcit import ClassAttentionBlock, ConvPatchEmbed, XCABlock, XCiT


class FastConvPatchEmbed(ConvPatchEmbed):
    """Channels last, so that the result seen as (B, N, C) needs no copy."""

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, in_chans, H, W) -> tokens (B, N, C), Hp, Wp; Hp = ceil(H / patch)."""
        if ordinary(images):
            images = images.contiguous(memory_format=torch.channels_last)
        x, height, width = super().forward(images)
        # The residual stream keeps the weights' dtype, also under autocast.
        return x.to(next(self.parameters()).dtype), height, width


class FastXCABlock(XCABlock):
    """Each branch has its LayerScale in its last weight."""

    def forward(self, x: Tensor, height: int, width: int, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); paths: drop-path scales (3, B) of the three branches."""
        if not ordinary(x):
            return super().forward(x, height, width, paths)
        keep1, keep3, keep2 = (None,) * 3 if paths is None else paths.to(x.dtype)[..., None, None]
        x = add_branch(x, branch(self.gamma1, self.attn, self.norm1(x)), keep1)
        x = add_branch(x, branch(self.gamma3, self.local_mp, self.norm3(x), height, width), keep3)
        return add_mlp(x, self.gamma2, self.mlp, self.norm2, keep2)


class FastClassAttentionBlock(ClassAttentionBlock):
    """CLS and patches apart, since most of the work is for one of them alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), CLS first -> the same."""
        if not (ordinary(x) and self.is_as_built()):
            return super().forward(x)
        return torch.cat(self.apart(x[:, :1], x[:, 1:]), dim=1)

    def is_as_built(self) -> bool:
        """Whether `apart` may read the modules' weights and show the norms a part of the tokens."""
        norms = as_built(self.norm1, nn.LayerNorm) and as_built(self.norm2, nn.LayerNorm)
        return norms and is_fast(self.attn, FastClassAttention)

    def apart(self, cls: Tensor, patches: Tensor, last: bool = False) -> list[Tensor]:
        """CLS (B, 1, C) and patches (B, N, C) -> the same; no patches after the last layer."""
        norm1, norm2 = self.norm1, self.norm2
        normed = norm1(patches)
        cls = torch.addcmul(cls, self.gamma1, self.attn.answer(norm1(cls), normed))
        cls = norm2(cls)  # the normalised CLS is also what the MLP is added to
        cls = add_mlp(cls, self.gamma2, self.mlp)
        if last:
            return [cls]
        # The reference concatenates CLS's update with the normalised patches before gamma1, and
        # adds the patches to themselves at the end: they double.
        patches = torch.addcmul(patches, self.gamma1, normed)
        if self.tokens_norm:
            shape, weight, bias = norm2.normalized_shape, 2 * norm2.weight, 2 * norm2.bias
            return [cls, F.layer_norm(patches, shape, weight, bias, norm2.eps)]
        return [cls, 2 * patches]


class FastXCiT(XCiT):
    """The last layer computes CLS alone, since no later layer reads the patches."""

    def forward_features(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """What the classifier sees: CLS after the final norm (B, C)."""
        blocks = list(self.cls_attn_blocks)
        apart = ordinary(images) and as_built(self.norm, nn.LayerNorm)
        if not (apart and all(is_fast(block, FastClassAttentionBlock) for block in blocks)):
            return super().forward_features(images, paths)
        x = self._patches(images, paths, ignore)
        cls, *rest = self.cls_token.expand(x.shape[0], -1, -1), x
        for block in blocks:
            cls, *rest = block.apart(cls, *rest, last=block is blocks[-1])
        features: Tensor = self.norm(cls).squeeze(1)
        return features


def branch(gamma: Tensor, module: nn.Module, *inputs: Any) -> Tensor:
    """gamma * module(*inputs); a module that is not as built is called for it."""
    if is_fast(module, FastXCA) or is_fast(module, FastLPI):
        result: Tensor = module.branch(*inputs, gamma)
        return result
    return gamma * module(*inputs)


def add_mlp(
    x: Tensor,
    gamma: Tensor,
    mlp: nn.Module,
    norm: nn.LayerNorm | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """x + scale * gamma * mlp(norm(x)); modules that are not as built are called for it."""
    if is_fast(mlp, FastMlp) and (norm is None or as_built(norm, nn.LayerNorm)):
        result: Tensor = mlp.added_to(x, gamma, norm, scale)
        return result
    return add_branch(x, gamma * mlp(x if norm is None else norm(x)), scale)


def is_fast(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a fast operator and all in it are as built."""
    return as_built(module, kind) and module.is_as_built()
