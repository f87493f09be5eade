"""Attention without queries, keys and values of every token, where that is cheaper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.choices import Choices
from xcite.engines.attention_form import uses_covariance
from xcite.engines.torch.fast.expected import as_built, ordinary
from xcite.engines.torch.fast.head_products import HeadProducts
from xcite.engines.torch.fast.layer_scale import scaled
from xcite.engines.torch.fast.matmul import linear, linear_of_each
from xcite.engines.torch.fast.precision import autocast_dtype, full_precision
from xcite.engines.torch.xcit import XCA, ClassAttention

# F.normalize divides by max(|q|, 1e-12); here the squares are bounded.
NORMALIZE_EPS = 1e-12


class FastXCA(XCA):
    """Two forms of the same numbers.

    The usual one makes q, k and v. The covariance form uses that q k^T = Wq (X^T X) Wk^T is a
    product of small matrices once the tokens' covariance X^T X is known, and that values, attention
    and projection are one matrix per picture (paper, section 3).
    """

    form: str
    choices: Choices

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> (B, N, C)."""
        return self.branch(x) if ordinary(x) and self.is_as_built() else super().forward(x)

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, c, c) of normalised tokens: rows are q's channels."""
        if not (ordinary(x) and self.is_as_built()):
            return super().attention(x)
        if self._covariance_pays(x):
            return self._covariance(x).permute(2, 0, 1, 3)
        return self._usual(x)[0]

    def is_as_built(self) -> bool:
        """Whether `branch` may read the modules' weights."""
        return (
            as_built(self.qkv, nn.Linear, without_bias=True)
            and as_built(self.attn_drop, nn.Dropout)
            and as_built(self.proj, nn.Linear)
            and as_built(self.proj_drop, nn.Dropout)
        )

    def branch(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """gamma * XCA(x): normalised tokens (B, N, C) -> (B, N, C)."""
        weight, bias = scaled(self.proj, gamma)
        if self._covariance_pays(x):
            x = x.to(autocast_dtype(x))
            matrix, offset = self._as_matrix(x, weight, bias)
            # (B, 1, C) + (B, N, C) @ (B, C, C)
            y = linear_of_each(x, matrix, offset, self.choices)
        else:
            attention, v = self._usual(x)
            attention = self.attn_drop(attention)
            # (B, h, c, c) @ (B, h, c, N) -> (B, N, C)
            y = (attention.to(v.dtype) @ v).flatten(1, 2).transpose(1, 2)
            y = linear(y.contiguous(), weight, bias, self.choices)
        dropped: Tensor = self.proj_drop(y)
        return dropped

    def _covariance_pays(self, x: Tensor) -> bool:
        # With attention dropout the usual form draws what the plain operator draws.
        if self.attn_drop.training and self.attn_drop.p > 0:
            return False
        return uses_covariance(self.form, x.shape[1], x.shape[2], self.choices.covariance_above)

    def _usual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = linear(x, self.qkv.weight, self.qkv.bias, self.choices)
        qkv = qkv.view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 4, 1)  # each (B, h, c, N)
        # Scaling the (c, c) products is cheaper than normalising q and k.
        precise = torch.promote_types(q.dtype, torch.float32)
        q_norm, k_norm = (
            torch.linalg.vector_norm(t, dim=-1, dtype=precise).clamp_min(NORMALIZE_EPS)
            for t in (q, k)
        )
        scale = (self.temperature / q_norm[..., None]) / k_norm[..., None, :]
        return (q @ k.transpose(-2, -1) * scale).softmax(-1), v

    def _covariance(self, x: Tensor) -> Tensor:
        """Attention (h, c, B, c)."""
        dim, precise = x.shape[2], torch.promote_types(x.dtype, torch.float32)
        with full_precision(x):
            # queries' and keys' channels of a head lie together: (h, 2c, C) and (h, 2c)
            weight, bias = (
                None
                if t is None
                else t[: 2 * dim]
                .to(precise)
                .unflatten(0, (2, self.num_heads, -1))
                .transpose(0, 1)
                .flatten(1, 2)
                for t in (self.qkv.weight, self.qkv.bias)
            )
            squares, products = HeadProducts.apply(x, weight, bias, self.choices)
            width = dim // self.num_heads
            inverse = squares.clamp_min(NORMALIZE_EPS**2).rsqrt()
            inverse_q, inverse_k = inverse[..., :width].transpose(1, 2), inverse[..., width:]
            scale = self.temperature * inverse_q  # (h, c, B)
            logits = products * scale[..., None] * inverse_k[:, None]
            return logits.softmax(-1).to(self.qkv.weight.dtype)

    def _as_matrix(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The whole layer as x @ matrix + offset: (B, C, C) and (B, 1, C)."""
        batch, _, dim = x.shape
        attention = self._covariance(x).flatten(1, 2)  # (h, c * B, c)
        with full_precision(x):
            weight_v = self.qkv.weight[2 * dim :].unflatten(0, (self.num_heads, -1))
            # values mixed by attention, still as a product with x: (C, B * C)
            mixed = torch.bmm(attention, weight_v).view(dim, batch * dim)
        matrix = (mixed.t() @ weight.t()).view(batch, dim, dim)
        with full_precision(x):
            if self.qkv.bias is None:
                return matrix, bias.expand(batch, 1, dim)
            bias_v = self.qkv.bias[2 * dim :].view(self.num_heads, -1, 1)
            constant = torch.bmm(attention, bias_v).view(dim, batch)
            return matrix, F.linear(constant.t(), weight, bias)[:, None]


class FastClassAttention(ClassAttention):
    """With CLS as the only query, k and v need not exist.

    q k^T = X (Wk^T q), up to a constant that softmax removes, and a v = (a X) Wv^T + bv.
    """

    form: str

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + N, C), CLS first -> the same with CLS updated."""
        if not (ordinary(x) and self.is_as_built()):
            return super().forward(x)
        return torch.cat((self.answer(x[:, :1], x[:, 1:]), x[:, 1:]), dim=1)

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, 1 + N) of CLS to itself and the patches."""
        if not (ordinary(x) and self.is_as_built()):
            return super().attention(x)
        return self._cheap(x[:, :1], x[:, 1:])[0]

    def is_as_built(self) -> bool:
        """Whether `answer` may read the modules' weights and gives what is asked for."""
        # `_cheap` adds bv whole, since a row of a sums to 1. With dropout it does not.
        return (
            self.form != "usual"
            and as_built(self.qkv, nn.Linear, without_bias=True)
            and as_built(self.attn_drop, nn.Dropout)
            and not (self.attn_drop.training and self.attn_drop.p > 0)
        )

    def answer(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Normalised CLS (B, 1, C) and patches (B, N, C) -> the update of CLS (B, 1, C)."""
        learnt: Tensor = self.proj_drop(self.proj(self._cheap(cls, patches)[1]))
        return learnt

    def _cheap(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, dim = patches.shape
        heads = (self.num_heads, dim // self.num_heads)
        weight_q, weight_k, weight_v = self.qkv.weight.chunk(3)
        bias_q, _, bias_v = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        with full_precision(cls):
            q = F.linear(cls, weight_q, bias_q).mul(self.scale).view(batch, *heads)
            # The heads are the batch of the small products: (h, B, c) @ (h, c, C) -> (B, h, C)
            asked = torch.bmm(q.transpose(0, 1), weight_k.unflatten(0, heads)).transpose(0, 1)
            logits = torch.cat(
                (asked @ cls.transpose(1, 2), asked @ patches.transpose(1, 2)), dim=2
            )
            attention = logits.softmax(-1)  # (B, h, 1 + N)
            seen = torch.baddbmm(attention[:, :, :1] * cls, attention[:, :, 1:], patches)
            # (h, B, C) @ (h, C, c) -> (B, 1, C)
            v = torch.bmm(seen.transpose(0, 1), weight_v.unflatten(0, heads).transpose(1, 2))
            v = v.transpose(0, 1).reshape(batch, 1, dim)
            return attention, v if bias_v is None else v + bias_v
