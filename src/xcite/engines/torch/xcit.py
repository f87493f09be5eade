"""XCiT on PyTorch (El-Nouby et al. 2021, arXiv 2106.09681): the paper's model, nothing else.

Dimensions: B pictures, N = Hp * Wp patch tokens, C channels (d in the paper), h heads of c = C / h.
Names of parts are those of facebookresearch/xcit, because they become the names of weights.
What makes it fast on a CPU is in `xcite.engines.torch.fast`, with the same parameters.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.engines.torch import fourier
from xcite.engines.torch.backbone import Backbone, See, check_images, classifier, ignore
from xcite.engines.torch.batch_norm import BatchNorm2D
from xcite.engines.torch.recomputation import recomputed
from xcite.variants import XCiTArchitecture

LAYER_NORM_EPS = 1e-6


def conv3x3(into: int, out: int, stride: int = 2) -> nn.Sequential:
    """3x3 convolution, BatchNorm: (B, into, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))."""
    return nn.Sequential(nn.Conv2d(into, out, 3, stride, 1, bias=False), BatchNorm2D(out))


class ConvPatchEmbed(nn.Module):
    """The stem: a chain of `conv3x3` with GELU between, none after the last."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = pairwise([architecture.in_chans, *architecture.stem_widths()])
        for (into, out), stride in zip(widths, architecture.strides(), strict=True):
            layers += [conv3x3(into, out, stride), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, in_chans, H, W) -> tokens (B, N, C), Hp, Wp; Hp = ceil(H / patch)."""
        x = self.proj(images)
        height, width = x.shape[2:]
        return x.flatten(2).transpose(1, 2), height, width


class PositionalEncodingFourier(nn.Module):
    """Sines and cosines of the position, projected to C channels; defined for any grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * fourier.CHANNELS, dim, 1)

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        """(B, C, Hp, Wp)."""
        like = self.token_projection.weight
        return self.token_projection(fourier.features(like, batch, height, width))


class XCA(nn.Module):
    """Cross-covariance attention: the channels of a head attend to each other.

    attention = softmax(temperature * (q / |q|) (k / |k|)^T), q and k: (B, h, c, N)
    """

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.num_heads
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=architecture.qkv_bias)
        self.attn_drop = nn.Dropout(architecture.attn_drop_rate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(architecture.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> (B, N, C)."""
        attention, v = self._attend(x)
        # (B, h, c, c) @ (B, h, c, N) -> (B, N, C)
        x = (self.attn_drop(attention) @ v).permute(0, 3, 1, 2).flatten(2)
        return self.proj_drop(self.proj(x))

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, c, c) of normalised tokens: rows are q's channels."""
        return self._attend(x)[0]

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1), v


class LPI(nn.Module):
    """Local patch interaction: two depthwise 3x3 convolutions on the grid of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = BatchNorm2D(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Normalised tokens (B, N, C) -> (B, N, C)."""
        batch, _, dim = x.shape
        x = x.permute(0, 2, 1).reshape(batch, dim, height, width).contiguous()
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.flatten(2).permute(0, 2, 1)


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        hidden = int(dim * architecture.mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(architecture.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class XCABlock(nn.Module):
    """XCA, local patch interaction, MLP; the local one comes second although its norm is norm3."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.gamma1 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma2 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma3 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = XCA(architecture)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(architecture)
        self.norm3 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.local_mp = LPI(dim)

    def forward(self, x: Tensor, height: int, width: int, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); paths: drop-path scales (3, B) of the three branches."""
        keep1, keep3, keep2 = (None,) * 3 if paths is None else paths
        x = x + drop_path(self.gamma1 * self.attn(self.norm1(x)), keep1)
        x = x + drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width), keep3)
        x = x + drop_path(self.gamma2 * self.mlp(self.norm2(x)), keep2)
        return x


def drop_path(branch: Tensor, scale: Tensor | None) -> Tensor:
    """A residual branch (B, N, C) times one number per picture (B,): 0, or 1 / keep."""
    return branch if scale is None else branch * scale[:, None, None].to(branch.dtype)


class ClassAttention(nn.Module):
    """Attention with a single query, that of CLS."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.num_heads
        self.scale = architecture.attention_scale or (dim // self.num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=architecture.qkv_bias)
        self.attn_drop = nn.Dropout(architecture.attn_drop_rate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(architecture.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + N, C), CLS first -> the same with CLS updated."""
        attention, v = self._attend(x)
        # (B, h, 1, 1 + N) @ (B, h, 1 + N, c) -> (B, 1, C)
        cls = (self.attn_drop(attention).unsqueeze(2) @ v).transpose(1, 2).flatten(2)
        return torch.cat([self.proj_drop(self.proj(cls)), x[:, 1:]], dim=1)

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, 1 + N) of CLS to itself and the patches."""
        return self._attend(x)[0]

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return ((q[:, :, :1] * k).sum(dim=-1) * self.scale).softmax(dim=-1), v


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP on CLS; the patches are carried along as the reference does it."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.tokens_norm = architecture.tokens_norm
        self.gamma1 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma2 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = ClassAttention(architecture)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(architecture)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), CLS first -> the same."""
        # Patches get gamma1 * norm1(patches), because the attention passes them through.
        x = x + self.gamma1 * self.attn(self.norm1(x))
        if self.tokens_norm:
            x = self.norm2(x)
        else:
            x = torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        # The normalised tokens are what is added to; the patches are added to themselves.
        cls = self.gamma2 * self.mlp(x[:, :1])
        return x + torch.cat([cls, x[:, 1:]], dim=1)


class XCiT(Backbone):
    """Cross-covariance image transformer."""

    def __init__(
        self, architecture: XCiTArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        """Build with PyTorch's own initial values; `xcite.engines.torch.build` sets the official.

        Args:
            activation_checkpointing: keep only each XCA block's input for the backward pass.
        """
        super().__init__(architecture, activation_checkpointing)
        dim, depth = architecture.embed_dim, architecture.depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = ConvPatchEmbed(architecture)
        self.blocks = nn.ModuleList(XCABlock(architecture) for _ in range(depth))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(architecture) for _ in range(architecture.cls_attn_layers)
        )
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.head = classifier(dim, architecture.num_classes)
        self.pos_embeder = PositionalEncodingFourier(dim) if architecture.use_pos else None
        self.pos_drop = nn.Dropout(architecture.drop_rate)

    def walk(self, images: Tensor, paths: Tensor | None = None, see: See | None = None) -> Tensor:
        """All tokens after the final norm (B, 1 + N, C), CLS first.

        Args:
            paths: drop-path scales (depth, 3, B), 0 or 1 / keep, in the order XCA, LPI, MLP. In
                training without them PyTorch's generator draws them; in evaluation nothing drops.
            see: is told "patch_embed", "pos_embeder" (tokens with positions) and "blocks.{i}" as
                (B, N, C); "cls_token" (tokens with CLS in front), "cls_attn_blocks.{i}" and "norm"
                as (B, 1 + N, C).
        """
        see = see or ignore
        x = self._patches(images, paths, see)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        see("cls_token", x)
        for i, block in enumerate(self.cls_attn_blocks):
            x = block(x)
            see(f"cls_attn_blocks.{i}", x)
        x = self.norm(x)
        see("norm", x)
        return x

    def _patches(self, images: Tensor, paths: Tensor | None, see: See) -> Tensor:
        """Tokens after the XCA blocks (B, N, C)."""
        check_images(images, self.architecture.in_chans)
        x, height, width = self.patch_embed(images)
        see("patch_embed", x)
        batch = x.shape[0]
        if self.pos_embeder is not None:
            x = x + self.pos_embeder(batch, height, width).flatten(2).transpose(1, 2)
        x = self.pos_drop(x)
        see("pos_embeder", x)
        rate = self.architecture.drop_path
        if isinstance(paths, torch.fx.Proxy):  # a traced graph drops none
            paths = None
        if paths is None and self.training and rate > 0:
            draws = torch.rand(len(self.blocks), 3, batch, device=x.device)
            paths = (draws >= rate).to(x.dtype) / (1 - rate)
        for i, block in enumerate(self.blocks):
            run = recomputed(block) if self.activation_checkpointing and self.training else block
            x = run(x, height, width, None if paths is None else paths[i])
            see(f"blocks.{i}", x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees of the last tokens: CLS (B, C)."""
        return x[:, 0]
