"""The yardstick: the official model's computation, operation by operation, on PyTorch.

A plain transcription of what facebookresearch/xcit's xcit.py computes (our own words, the same
operations in the same order: q, k and v for all tokens, normalisation over tokens, copies around
the convolutions, LayerScale as a product, class attention over all tokens). It is slow on purpose:
speed is compared with it. Weights carry the official names.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.variants import XCiTArchitecture


class PatchEmbed(nn.Module):
    """3x3 convolutions of stride 2 with BatchNorm and GELU."""

    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        into = a.in_chans
        for out in a.stem_widths():
            convolution = nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(convolution, nn.BatchNorm2d(out)), nn.GELU()]
            into = out
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(images)
        height, width = x.shape[2:]
        return x.flatten(2).transpose(1, 2), height, width


class PositionalEncoding(nn.Module):
    """Fourier features computed anew for every batch, as images of every picture."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(64, dim, 1)

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        ones = torch.ones(batch, height, width, device=self.token_projection.weight.device)
        y, x = ones.cumsum(1), ones.cumsum(2)
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        channel = torch.arange(32, dtype=torch.float32, device=ones.device)
        wavelength = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / 32)
        parts = []
        for angle in (y[..., None] / wavelength, x[..., None] / wavelength):
            waves = (angle[..., 0::2].sin(), angle[..., 1::2].cos())
            parts.append(torch.stack(waves, dim=4).flatten(3))
        features = torch.cat(parts, dim=3).permute(0, 3, 1, 2)
        return self.token_projection(features.to(self.token_projection.weight.dtype))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class LPI(nn.Module):
    """Tokens copied into an image, two depthwise convolutions, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, dim = x.shape
        x = x.permute(0, 2, 1).reshape(batch, dim, height, width).contiguous()
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.reshape(batch, dim, tokens).permute(0, 2, 1)


class XCA(nn.Module):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        self.num_heads = a.num_heads
        self.temperature = nn.Parameter(torch.ones(a.num_heads, 1, 1))
        self.qkv = nn.Linear(a.embed_dim, 3 * a.embed_dim, bias=a.qkv_bias)
        self.attn_drop = nn.Dropout(a.attn_drop_rate)
        self.proj = nn.Linear(a.embed_dim, a.embed_dim)
        self.proj_drop = nn.Dropout(a.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = (part.transpose(-2, -1) for part in qkv.permute(2, 0, 3, 1, 4))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1)) * self.temperature
        attention = self.attn_drop(attention.softmax(dim=-1))
        x = (attention @ v).permute(0, 3, 1, 2).reshape(batch, tokens, dim)
        return self.proj_drop(self.proj(x))


class ClassAttention(nn.Module):
    """q, k and v for all tokens, although only CLS asks."""

    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        self.num_heads = a.num_heads
        self.scale = a.attention_scale or (a.embed_dim // a.num_heads) ** -0.5
        self.qkv = nn.Linear(a.embed_dim, 3 * a.embed_dim, bias=a.qkv_bias)
        self.attn_drop = nn.Dropout(a.attn_drop_rate)
        self.proj = nn.Linear(a.embed_dim, a.embed_dim)
        self.proj_drop = nn.Dropout(a.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q[:, :, :1] * k).sum(dim=-1) * self.scale
        attention = self.attn_drop(logits.softmax(dim=-1))
        cls = (attention.unsqueeze(2) @ v).transpose(1, 2).reshape(batch, 1, dim)
        return torch.cat([self.proj_drop(self.proj(cls)), x[:, 1:]], dim=1)


class ClassAttentionBlock(nn.Module):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        dim = a.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(a)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * a.mlp_ratio), a.drop_rate)
        self.gamma1 = nn.Parameter(a.eta * torch.ones(dim))
        self.gamma2 = nn.Parameter(a.eta * torch.ones(dim))
        self.tokens_norm = a.tokens_norm

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        if self.tokens_norm:
            x = self.norm2(x)
        else:  # the official code assigns to a slice, which PyTorch no longer differentiates
            x = torch.cat([self.norm2(x[:, :1]), x[:, 1:]], dim=1)
        cls = self.gamma2 * self.mlp(x[:, :1])
        return x + torch.cat([cls, x[:, 1:]], dim=1)


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        return x / keep * torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device).add(keep).floor()


class XCABlock(nn.Module):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        dim = a.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = XCA(a)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * a.mlp_ratio), a.drop_rate)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.local_mp = LPI(dim)
        self.drop_path = DropPath(a.drop_path)
        self.gamma1 = nn.Parameter(a.eta * torch.ones(dim))
        self.gamma2 = nn.Parameter(a.eta * torch.ones(dim))
        self.gamma3 = nn.Parameter(a.eta * torch.ones(dim))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class XCiT(nn.Module):
    """``model(images)`` gives logits (B, K)."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        a = architecture
        self.cls_token = nn.Parameter(torch.zeros(1, 1, a.embed_dim))
        self.patch_embed = PatchEmbed(a)
        self.blocks = nn.ModuleList(XCABlock(a) for _ in range(a.depth))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(a) for _ in range(a.cls_attn_layers)
        )
        self.norm = nn.LayerNorm(a.embed_dim, eps=1e-6)
        self.head = nn.Linear(a.embed_dim, a.num_classes) if a.num_classes else nn.Identity()
        self.pos_embeder = PositionalEncoding(a.embed_dim) if a.use_pos else None
        self.pos_drop = nn.Dropout(a.drop_rate)

    def forward(self, images: Tensor) -> Tensor:
        batch = len(images)
        x, height, width = self.patch_embed(images)
        if self.pos_embeder is not None:
            positions = self.pos_embeder(batch, height, width)
            x = x + positions.reshape(batch, -1, x.shape[1]).permute(0, 2, 1)
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x, height, width)
        x = torch.cat((self.cls_token.expand(batch, -1, -1), x), dim=1)
        for block in self.cls_attn_blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def load_weights(model: XCiT, weights: dict[str, Any]) -> None:
    """Set canonical weights."""
    model.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
