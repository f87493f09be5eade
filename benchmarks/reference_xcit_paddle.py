"""The yardstick: the official model's computation, operation by operation, on Paddle.

A plain transcription of what facebookresearch/xcit's xcit.py computes (our own words, the same
operations in the same order: q, k and v for all tokens, normalisation over tokens, copies around
the convolutions, LayerScale as a product, class attention over all tokens). It is slow on purpose:
speed is compared with it. Weights carry the official names, but for Paddle's BatchNorm buffers.
"""

import math
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.variants import XCiTArchitecture


class PatchEmbed(nn.Layer):
    """3x3 convolutions of stride 2 with BatchNorm and GELU."""

    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        layers: list[nn.Layer] = []
        into = a.in_chans
        for out in a.stem_widths():
            convolution = nn.Conv2D(into, out, 3, stride=2, padding=1, bias_attr=False)
            layers += [nn.Sequential(convolution, nn.BatchNorm2D(out)), nn.GELU()]
            into = out
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(images)
        height, width = x.shape[2:]
        return x.flatten(2).transpose([0, 2, 1]), height, width


class PositionalEncoding(nn.Layer):
    """Fourier features computed anew for every batch, as images of every picture."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2D(64, dim, 1)

    def forward(self, batch: int, height: int, width: int) -> Tensor:
        ones = paddle.ones([batch, height, width])
        y, x = ones.cumsum(1), ones.cumsum(2)
        y = y / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = x / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        channel = paddle.arange(32, dtype="float32")
        wavelength = 10000 ** (2 * (channel / 2).floor() / 32)
        parts = []
        for angle in (y.unsqueeze(3) / wavelength, x.unsqueeze(3) / wavelength):
            waves = (angle[:, :, :, 0::2].sin(), angle[:, :, :, 1::2].cos())
            parts.append(paddle.stack(waves, axis=4).flatten(3))
        features = paddle.concat(parts, axis=3).transpose([0, 3, 1, 2])
        return self.token_projection(features)


class Mlp(nn.Layer):
    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class LPI(nn.Layer):
    """Tokens copied into an image, two depthwise convolutions, and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2D(dim)
        self.conv2 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, dim = x.shape
        x = x.transpose([0, 2, 1]).reshape([batch, dim, height, width])
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.reshape([batch, dim, tokens]).transpose([0, 2, 1])


class XCA(nn.Layer):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        self.num_heads = a.num_heads
        self.temperature = constant([a.num_heads, 1, 1], 1.0)
        self.qkv = nn.Linear(a.embed_dim, 3 * a.embed_dim, bias_attr=None if a.qkv_bias else False)
        self.attn_drop = nn.Dropout(a.attn_drop_rate)
        self.proj = nn.Linear(a.embed_dim, a.embed_dim)
        self.proj_drop = nn.Dropout(a.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape([batch, tokens, 3, self.num_heads, dim // self.num_heads])
        qkv = qkv.transpose([2, 0, 3, 1, 4])
        q, k, v = (qkv[i].transpose([0, 1, 3, 2]) for i in range(3))
        q, k = F.normalize(q, axis=-1), F.normalize(k, axis=-1)
        attention = (q @ k.transpose([0, 1, 3, 2])) * self.temperature
        attention = self.attn_drop(F.softmax(attention, axis=-1))
        x = (attention @ v).transpose([0, 3, 1, 2]).reshape([batch, tokens, dim])
        return self.proj_drop(self.proj(x))


class ClassAttention(nn.Layer):
    """q, k and v for all tokens, although only CLS asks."""

    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        self.num_heads = a.num_heads
        self.scale = a.attention_scale or (a.embed_dim // a.num_heads) ** -0.5
        self.qkv = nn.Linear(a.embed_dim, 3 * a.embed_dim, bias_attr=None if a.qkv_bias else False)
        self.attn_drop = nn.Dropout(a.attn_drop_rate)
        self.proj = nn.Linear(a.embed_dim, a.embed_dim)
        self.proj_drop = nn.Dropout(a.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape([batch, tokens, 3, self.num_heads, dim // self.num_heads])
        qkv = qkv.transpose([2, 0, 3, 1, 4])
        q, k, v = qkv[0], qkv[1], qkv[2]
        logits = (q[:, :, :1] * k).sum(axis=-1) * self.scale
        attention = self.attn_drop(F.softmax(logits, axis=-1))
        cls = (attention.unsqueeze(2) @ v).transpose([0, 2, 1, 3]).reshape([batch, 1, dim])
        return paddle.concat([self.proj_drop(self.proj(cls)), x[:, 1:]], axis=1)


class ClassAttentionBlock(nn.Layer):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        dim = a.embed_dim
        self.norm1 = nn.LayerNorm(dim, epsilon=1e-6)
        self.attn = ClassAttention(a)
        self.norm2 = nn.LayerNorm(dim, epsilon=1e-6)
        self.mlp = Mlp(dim, int(dim * a.mlp_ratio), a.drop_rate)
        self.gamma1 = constant([dim], a.eta)
        self.gamma2 = constant([dim], a.eta)
        self.tokens_norm = a.tokens_norm

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        if self.tokens_norm:
            x = self.norm2(x)
        else:  # the official code assigns to a slice
            x = paddle.concat([self.norm2(x[:, :1]), x[:, 1:]], axis=1)
        cls = self.gamma2 * self.mlp(x[:, :1])
        return x + paddle.concat([cls, x[:, 1:]], axis=1)


class DropPath(nn.Layer):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        return x / keep * (paddle.rand([x.shape[0], 1, 1], dtype=x.dtype) + keep).floor()


class XCABlock(nn.Layer):
    def __init__(self, a: XCiTArchitecture) -> None:
        super().__init__()
        dim = a.embed_dim
        self.norm1 = nn.LayerNorm(dim, epsilon=1e-6)
        self.attn = XCA(a)
        self.norm2 = nn.LayerNorm(dim, epsilon=1e-6)
        self.mlp = Mlp(dim, int(dim * a.mlp_ratio), a.drop_rate)
        self.norm3 = nn.LayerNorm(dim, epsilon=1e-6)
        self.local_mp = LPI(dim)
        self.drop_path = DropPath(a.drop_path)
        self.gamma1 = constant([dim], a.eta)
        self.gamma2 = constant([dim], a.eta)
        self.gamma3 = constant([dim], a.eta)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height, width))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class XCiT(nn.Layer):
    """``model(images)`` gives logits (B, K)."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        a = architecture
        self.cls_token = constant([1, 1, a.embed_dim], 0.0)
        self.patch_embed = PatchEmbed(a)
        self.blocks = nn.LayerList([XCABlock(a) for _ in range(a.depth)])
        self.cls_attn_blocks = nn.LayerList(
            [ClassAttentionBlock(a) for _ in range(a.cls_attn_layers)]
        )
        self.norm = nn.LayerNorm(a.embed_dim, epsilon=1e-6)
        self.head = nn.Linear(a.embed_dim, a.num_classes) if a.num_classes else nn.Identity()
        self.pos_embeder = PositionalEncoding(a.embed_dim) if a.use_pos else None
        self.pos_drop = nn.Dropout(a.drop_rate)

    def forward(self, images: Tensor) -> Tensor:
        batch = images.shape[0]
        x, height, width = self.patch_embed(images)
        if self.pos_embeder is not None:
            positions = self.pos_embeder(batch, height, width)
            x = x + positions.reshape([batch, -1, x.shape[1]]).transpose([0, 2, 1])
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x, height, width)
        x = paddle.concat((self.cls_token.expand([batch, -1, -1]), x), axis=1)
        for block in self.cls_attn_blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def constant(shape: list[int], value: float) -> Tensor:
    """A parameter filled with one value."""
    return paddle.create_parameter(
        shape, "float32", default_initializer=nn.initializer.Constant(value)
    )


def load_weights(model: XCiT, weights: dict[str, Any]) -> None:
    """Set canonical weights."""
    from xcite.engines.paddle.canonical_state import from_canonical, state_name

    state = {
        state_name(name): paddle.to_tensor(from_canonical(name, array))
        for name, array in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    missing, extra = model.set_state_dict(state)
    assert not missing, missing
    assert not extra, extra
