"""XCiT on PyTorch (El-Nouby et al. 2021, arXiv 2106.09681).

Dimensions: B pictures, N = Hp * Wp patch tokens, C channels (d in the paper), h heads of c = C / h.
Names of parts are those of facebookresearch/xcit, because they become the names of weights.

Each residual branch returns gamma * f(x): LayerScale is multiplied into the branch's last weight,
which is smaller than its output.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from xcite.engines.attention_form import check_form, uses_covariance
from xcite.engines.torch.linear import gram_of_each, linear, linear_of_each, weight_gradient
from xcite.errors import XciteError
from xcite.variants import XCiTArchitecture

LAYER_NORM_EPS = 1e-6
# F.normalize divides by max(|q|, 1e-12); here the squares are bounded.
NORMALIZE_EPS = 1e-12
# Bytes of one channel of the tokens that the MLP takes at a time on a CPU.
SLICE = 6272


def conv3x3(into: int, out: int) -> nn.Sequential:
    """3x3 convolution of stride 2, BatchNorm: (B, into, H, W) -> (B, out, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(nn.Conv2d(into, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out))


class GridGELU(nn.Module):
    """GELU of channels-last pictures (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if x.dtype == torch.bfloat16:
            # In bfloat16 oneDNN's kernel is the faster one, and it takes plain tensors only.
            return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.gelu(x)


class ConvPatchEmbed(nn.Module):
    """The stem: a chain of `conv3x3` with GELU between, none after the last."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in zip([in_chans, *widths[:-1]], widths, strict=True):
            layers += [conv3x3(into, out), GridGELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, in_chans, H, W) -> tokens (B, N, C), Hp, Wp; Hp = ceil(H / patch)."""
        # Channels last, so that the result seen as (B, N, C) needs no copy.
        x = self.proj(images.contiguous(memory_format=torch.channels_last))
        return x.flatten(2).transpose(1, 2), x.shape[2], x.shape[3]


class PositionalEncodingFourier(nn.Module):
    """Sines and cosines of the position, projected to C channels; defined for any grid."""

    hidden_dim = 32
    temperature = 10000
    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.hidden_dim, dim, 1)
        self._cache: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, height: int, width: int) -> Tensor:
        """(N, C)."""
        projection = self.token_projection
        with full_precision(projection.weight):
            return F.linear(
                self.features(height, width), projection.weight.flatten(1), projection.bias
            )

    def features(self, height: int, width: int) -> Tensor:
        """(N, 64): 32 channels of y, then 32 of x; computed once per grid."""
        weight = self.token_projection.weight
        if torch.compiler.is_compiling():
            return self._features(height, width, weight)
        key = (height, width, weight.device, weight.dtype)
        if key not in self._cache:
            if len(self._cache) >= 16:  # evaluation at many sizes must not fill the memory
                self._cache.clear()
            # Under inference_mode the tensor could not be used in a later training step.
            with torch.inference_mode(False):
                self._cache[key] = self._features(height, width, weight)
        return self._cache[key]

    def _features(self, height: int, width: int, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        exponent = torch.arange(self.hidden_dim // 2, dtype=dtype, device=like.device)
        wavelength = self.temperature ** (2 * exponent / self.hidden_dim)

        def waves(count: int) -> Tensor:  # (count, 32): sine, cosine, sine, ...
            position = torch.arange(1, count + 1, dtype=dtype, device=like.device)
            angle = position / (count + self.eps) * (2 * math.pi)
            angle = angle[:, None] / wavelength
            return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)

        y = waves(height)[:, None].expand(-1, width, -1)
        x = waves(width)[None].expand(height, -1, -1)
        return torch.cat((y, x), dim=2).flatten(0, 1).to(like.dtype)


class XCA(nn.Module):
    """Cross-covariance attention: the channels of a head attend to each other.

        attention = softmax(temperature * (q / |q|) (k / |k|)^T), q and k: (B, h, c, N)

    Two forms of the same numbers. The usual one makes q, k and v. The covariance form uses that
    q k^T = Wq (X^T X) Wk^T is a product of small matrices once the tokens' covariance X^T X is
    known, and that values, attention and projection are one matrix per picture (paper, section 3).
    """

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.num_heads
        self.form = attention
        self.attn_drop = architecture.attn_drop_rate
        self.proj_drop = architecture.drop_rate
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=architecture.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> gamma * XCA (B, N, C)."""
        weight = self.proj.weight * gamma[:, None]
        bias = self.proj.bias * gamma
        if self._covariance_pays(x):
            x = x.to(autocast_dtype(x))
            matrix, offset = self._as_matrix(x, weight, bias)
            # (B, 1, C) + (B, N, C) @ (B, C, C)
            y = linear_of_each(x, matrix, offset)
        else:
            attention, v = self._usual(x)
            attention = F.dropout(attention, self.attn_drop, self.training)
            # (B, h, c, c) @ (B, h, c, N) -> (B, N, C)
            y = (attention.to(v.dtype) @ v).flatten(1, 2).transpose(1, 2)
            y = linear(y.contiguous(), weight, bias)
        return F.dropout(y, self.proj_drop, self.training)

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, c, c) of normalised tokens: rows are q's channels."""
        if self._covariance_pays(x):
            return self._covariance(x).permute(2, 0, 1, 3)
        return self._usual(x)[0]

    def _covariance_pays(self, x: Tensor) -> bool:
        # Attention dropout acts on single entries of every head: the usual form, in its meaning.
        if self.training and self.attn_drop > 0:
            return False
        return uses_covariance(self.form, x.shape[1], x.shape[2], "torch")

    def _usual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = linear(x, self.qkv.weight, self.qkv.bias)
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
            squares, products = HeadProducts.apply(x, weight, bias)
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


class LPI(nn.Module):
    """Local patch interaction: two depthwise 3x3 convolutions on the grid of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = GridGELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int, gamma: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> gamma * LPI (B, N, C)."""
        # (B, N, C) seen as (B, C, Hp, Wp) is channels-last: no copy, here and on the way back.
        # Changing the dtype before it is seen so is the faster order.
        x = x.to(autocast_dtype(x))
        x = x.transpose(1, 2).unflatten(2, (height, width))
        x = self.bn(self.act(self.conv1(x)))
        weight = self.conv2.weight * gamma[:, None, None, None]
        x = F.conv2d(x, weight, self.conv2.bias * gamma, padding=1, groups=len(gamma))
        return x.flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU between, as a residual branch."""

    def __init__(self, architecture: XCiTArchitecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        hidden = int(dim * architecture.mlp_ratio)
        self.drop = architecture.drop_rate
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(
        self, x: Tensor, gamma: Tensor, norm: nn.LayerNorm | None, scale: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, N, C) -> x + scale * gamma * Mlp(norm(x)); scale: (B, 1, 1)."""
        weight, bias = self.fc2.weight * gamma[:, None], self.fc2.bias * gamma
        if torch.compiler.is_compiling() or (self.training and self.drop > 0):
            y = x if norm is None else norm(x)
            y = F.dropout(F.gelu(self.fc1(y)), self.drop, self.training)
            y = F.dropout(F.linear(y, weight, bias), self.drop, self.training)
            return add_branch(x, y, scale)
        affine = (None, None) if norm is None else (norm.weight, norm.bias)
        layers = (*affine, self.fc1.weight, self.fc1.bias, weight, bias)
        y = SlicedMlp.apply(x, scale, autocast_dtype(x), torch.is_grad_enabled(), *layers)
        return y


class SlicedMlp(torch.autograd.Function):
    """x + scale * (gelu(norm(x) W1^T + b1) W2^T + b2), some hundred tokens at a time.

    The hidden layer is four times as wide as the tokens: a slice of it stays in the cache where the
    whole would go to memory and back for every operation, and what surrounds the products is cheap
    there. The backward pass needs W1 norm(x) + b1, which is kept, and its GELU, which is computed
    again unless it is kept in half the size.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        dtype: torch.dtype,
        keep: bool,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """x: (B, N, C); scale: (B, 1, 1) or None; weights as in nn.Linear.

        dtype: of matrix products. keep: there will be a backward pass. Without norm_weight x is
        taken as it is.
        """
        rows, factors = x.flatten(0, 1), per_row(scale, x)
        w1, b1, w2, b2 = (t.to(dtype) for t in (weight1, bias1, weight2, bias2))
        kept: list[Tensor | None] = []
        small = dtype.itemsize < 4
        y = torch.empty_like(rows)
        with full_precision(x):
            for part in slices(rows, dtype):
                normed, mean, rstd = rows[part], None, None
                if norm_weight is not None:
                    normed, mean, rstd = torch.native_layer_norm(
                        normed, norm_weight.shape, norm_weight, norm_bias, LAYER_NORM_EPS
                    )
                normed = normed.to(dtype)
                hidden = linear(normed, w1, b1)
                activated = F.gelu(hidden)
                branch = linear(activated, w2, b2).to(x.dtype)
                if factors is None:
                    torch.add(rows[part], branch, out=y[part])
                else:
                    torch.addcmul(rows[part], branch, factors[part], out=y[part])
                if keep:
                    kept += (normed, mean, rstd, hidden, activated if small else None)
        ctx.dtype = dtype
        ctx.save_for_backward(x, scale, norm_weight, norm_bias, weight1, weight2, *kept)
        return y.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, norm_weight, norm_bias, weight1, weight2, *kept = ctx.saved_tensors
        rows, factors, grads = x.flatten(0, 1), per_row(scale, x), grad.flatten(0, 1)
        w1, w2 = weight1.to(ctx.dtype), weight2.to(ctx.dtype)
        grad_x = torch.empty_like(rows)
        # Sums over slices are at least float32, as sums within a matrix product are.
        grad_w1, grad_w2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_b1, grad_b2 = weight1.new_zeros(len(weight1)), weight2.new_zeros(len(weight2))
        grad_norm = weight1.new_zeros(2, x.shape[-1])
        with full_precision(x):
            for i, part in enumerate(slices(rows, ctx.dtype)):
                normed, mean, rstd, hidden, activated = kept[5 * i : 5 * i + 5]
                scaled = grads[part] if factors is None else grads[part] * factors[part]
                grad_b2 += scaled.sum(0)
                g = scaled.to(ctx.dtype)
                if activated is None:
                    activated = F.gelu(hidden)
                grad_w2 += weight_gradient(g, activated).to(grad_w2.dtype)
                g = torch.ops.aten.gelu_backward(linear(g, w2.t()), hidden)
                grad_w1 += weight_gradient(g, normed).to(grad_w1.dtype)
                grad_b1 += g.sum(0)
                g = linear(g, w1.t()).to(x.dtype)
                if norm_weight is not None:
                    shape, affine = norm_weight.shape, (norm_weight, norm_bias)
                    g, *sums = torch.ops.aten.native_layer_norm_backward(
                        g, rows[part], shape, mean, rstd, *affine, [True] * 3
                    )
                    grad_norm += torch.stack(sums)
                torch.add(grads[part], g, out=grad_x[part])
        grad_affine = (None, None) if norm_weight is None else grad_norm
        grad_x = grad_x.view_as(x)
        return grad_x, None, None, None, *grad_affine, grad_w1, grad_b1, grad_w2, grad_b2


class XCABlock(nn.Module):
    """XCA, local patch interaction, MLP; the local one comes second although its norm is norm3."""

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.gamma1 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma2 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma3 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = XCA(architecture, attention)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(architecture)
        self.norm3 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.local_mp = LPI(dim)

    def forward(self, x: Tensor, height: int, width: int, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); paths: (3, B) scales of the three branches."""
        scales = (None,) * 3 if paths is None else paths.to(x.dtype)[..., None, None]
        x = add_branch(x, self.attn(self.norm1(x), self.gamma1), scales[0])
        x = add_branch(x, self.local_mp(self.norm3(x), height, width, self.gamma3), scales[1])
        return self.mlp(x, self.gamma2, self.norm2, scales[2])


class ClassAttention(nn.Module):
    """Attention in which CLS alone asks.

    Because one query suffices, k and v need not exist (the cheap form, exact):
    q k^T = X (Wk^T q), up to a constant that softmax removes, and a v = (a X) Wv^T + bv.
    """

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.num_heads = architecture.num_heads
        self.form = attention
        self.scale = architecture.attention_scale or (dim // self.num_heads) ** -0.5
        self.attn_drop = architecture.attn_drop_rate
        self.proj_drop = architecture.drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=architecture.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Normalised CLS (B, 1, C) and patches (B, N, C) -> what CLS learns of them (B, 1, C)."""
        dropping = self.training and self.attn_drop > 0
        form = self._usual if dropping or self.form == "usual" else self._cheap
        return F.dropout(self.proj(form(cls, patches)[1]), self.proj_drop, self.training)

    def attention(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Attention (B, h, 1 + N) of CLS to itself and the patches."""
        return (self._usual if self.form == "usual" else self._cheap)(cls, patches)[0]

    def _usual(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = patches.shape
        x = torch.cat((cls, patches), dim=1)
        qkv = self.qkv(x).view(batch, tokens + 1, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, 1 + N, c)
        logits = (q[:, :, :1] * self.scale) @ k.transpose(-2, -1)
        precise = torch.promote_types(logits.dtype, torch.float32)
        attention = logits.softmax(-1, dtype=precise)
        dropped = F.dropout(attention, self.attn_drop, self.training)
        seen = (dropped.to(v.dtype) @ v).transpose(1, 2).reshape(batch, 1, dim)
        return attention.squeeze(2), seen

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


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP on CLS; the patches are carried along as the reference does it."""

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.tokens_norm = architecture.tokens_norm
        self.gamma1 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.gamma2 = nn.Parameter(torch.full((dim,), architecture.eta))
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = ClassAttention(architecture, attention)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(architecture)

    def forward(
        self, cls: Tensor, patches: Tensor, last: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """CLS (B, 1, C) and patches (B, N, C) -> the same; no patches after the last layer."""
        norm1, norm2 = self.norm1, self.norm2
        normed = norm1(patches)
        cls = torch.addcmul(cls, self.gamma1, self.attn(norm1(cls), normed))
        cls = norm2(cls)  # the normalised CLS is also what the MLP is added to
        cls = self.mlp(cls, self.gamma2, None)
        if last:
            return cls, None
        # The reference concatenates CLS's answer with the normalised patches before gamma1, and
        # adds the patches to themselves at the end: they double.
        patches = torch.addcmul(patches, self.gamma1, normed)
        if self.tokens_norm:
            shape, weight, bias = norm2.normalized_shape, 2 * norm2.weight, 2 * norm2.bias
            return cls, F.layer_norm(patches, shape, weight, bias, norm2.eps)
        return cls, 2 * patches


class XCiT(nn.Module):
    """Cross-covariance image transformer.

    Attributes:
        engine: "torch".
        architecture: what it was built from.
    """

    engine = "torch"

    def __init__(
        self,
        architecture: XCiTArchitecture,
        *,
        attention: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        """Build with PyTorch's own initial values; `xcite.engines.torch.build` sets the official.

        Args:
            attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
            activation_checkpointing: keep only each XCA block's input for the backward pass.
        """
        super().__init__()
        check_form(attention)
        self.architecture = architecture
        self.activation_checkpointing = activation_checkpointing
        dim = architecture.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = ConvPatchEmbed(architecture.in_chans, architecture.stem_widths())
        self.blocks = nn.ModuleList(
            XCABlock(architecture, attention) for _ in range(architecture.depth)
        )
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(architecture, attention)
            for _ in range(architecture.cls_attn_layers)
        )
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        classes = architecture.num_classes
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        self.pos_embeder = PositionalEncodingFourier(dim) if architecture.use_pos else None

    def forward(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """Logits (B, K) of normalised images (B, in_chans, H, W) of any H and W.

        Args:
            paths: drop-path scales (depth, 3, B), 0 or 1 / keep, in the order XCA, LPI, MLP. In
                training without them PyTorch's generator draws them; in evaluation nothing drops.
        """
        logits: Tensor = self.head(self.forward_features(images, paths))
        return logits

    def forward_features(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """What the classifier sees: CLS after the final norm (B, C)."""
        x, _, _ = self._patches(images, paths)
        cls = self._cls(x)
        for i, block in enumerate(self.cls_attn_blocks, 1):
            cls, x = block(cls, x, last=i == len(self.cls_attn_blocks))
        features: Tensor = self.norm(cls).squeeze(1)
        return features

    def intermediate_layers(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Patch tokens after the XCA blocks with these numbers, each (B, C, Hp, Wp).

        Raises:
            XciteError: a number that no block has.
        """
        depth = len(self.blocks)
        wrong = [i for i in blocks if not -depth <= i < depth]
        if wrong:
            raise XciteError(f"there is no block {wrong[0]}; the model has blocks 0 to {depth - 1}")
        wanted = [f"blocks.{i % depth}" for i in blocks]
        kept: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            if name in wanted:
                kept[name] = x

        _, height, width = self._patches(images, None, keep)
        return [kept[name].transpose(1, 2).unflatten(2, (height, width)) for name in wanted]

    def feature_pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, C, H / s, W / s) of strides s = 4, 8, 16, 32, see `FeaturePyramid`.

        The pyramid's own weights are no part of this model's state: to train or save them, build
        a `FeaturePyramid` around the model.
        """
        if "_pyramid" not in self.__dict__:  # past nn.Module, which would register its weights
            self.__dict__["_pyramid"] = FeaturePyramid(self).levels
        levels = self.__dict__["_pyramid"].to(images.device, images.dtype).train(self.training)
        maps = self.intermediate_layers(images, pyramid_blocks(self.architecture.depth))
        return [level(x) for level, x in zip(levels, maps, strict=True)]

    def attention_maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Attention: per class-attention layer (B, h, 1 + N), and per XCA block (B, h, c, c)."""
        channels = []
        x, height, width = self._embed(images)
        for block in self.blocks:
            channels.append(block.attn.attention(block.norm1(x)))
            x = block(x, height, width)
        classes = []
        cls = self._cls(x)
        for block in self.cls_attn_blocks:
            classes.append(block.attn.attention(block.norm1(cls), block.norm1(x)))
            cls, x = block(cls, x)
        return classes, channels

    def named_outputs(self, images: Tensor, paths: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs of the parts in forward order.

        Keys: "patch_embed" (before positions), "blocks.{i}" as (B, N, C); "cls_attn_blocks.{i}",
        "norm" as (B, 1 + N, C) with CLS first; "head" (B, K).
        """
        outputs: dict[str, Tensor] = {}
        x, _, _ = self._patches(images, paths, outputs.__setitem__)
        cls = self._cls(x)
        for i, block in enumerate(self.cls_attn_blocks):
            cls, x = block(cls, x)
            outputs[f"cls_attn_blocks.{i}"] = torch.cat((cls, x), dim=1)
        outputs["norm"] = self.norm(torch.cat((cls, x), dim=1))
        outputs["head"] = self.head(outputs["norm"][:, 0])
        return outputs

    def _embed(
        self, images: Tensor, keep: Callable[[str, Tensor], None] | None = None
    ) -> tuple[Tensor, int, int]:
        """Tokens (B, N, C) with positions, Hp, Wp; the residual stream keeps the weights' dtype."""
        x, height, width = self.patch_embed(images)
        if keep is not None:
            keep("patch_embed", x)
        x = x.to(self.cls_token.dtype)
        if self.pos_embeder is not None:
            x = x + self.pos_embeder(height, width)
        return F.dropout(x, self.architecture.drop_rate, self.training), height, width

    def _patches(
        self,
        images: Tensor,
        paths: Tensor | None,
        keep: Callable[[str, Tensor], None] | None = None,
    ) -> tuple[Tensor, int, int]:
        """Tokens after the XCA blocks; ``keep`` sees the name and output of each part."""
        x, height, width = self._embed(images, keep)
        rate = self.architecture.drop_path
        if paths is None and self.training and rate > 0:
            draws = torch.rand(len(self.blocks), 3, len(x), device=x.device)
            paths = (draws >= rate).to(x.dtype) / (1 - rate)
        for i, block in enumerate(self.blocks):
            scales = None if paths is None else paths[i]
            if self.activation_checkpointing and self.training:
                x = checkpointed(block, x, height, width, scales)
            else:
                x = block(x, height, width, scales)
            if keep is not None:
                keep(f"blocks.{i}", x)
        return x, height, width

    def _cls(self, x: Tensor) -> Tensor:
        return self.cls_token.expand(x.shape[0], -1, -1)  # len(x) would fix it in an export


def pyramid_blocks(depth: int) -> list[int]:
    """The blocks whose tokens make the pyramid: [3, 5, 7, 11] of 12, [7, 11, 15, 23] of 24."""
    return [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1]


class FeaturePyramid(nn.Module):
    """Four maps of strides 4, 8, 16 and 32 for dense tasks, as the official detection backbone.

    Tokens of four blocks are enlarged by transposed convolutions or reduced by maximum pooling.
    """

    def __init__(self, model: XCiT) -> None:
        super().__init__()
        self.model = model
        self.levels = nn.ModuleList(
            self._level(model.architecture, stride) for stride in (4, 8, 16, 32)
        )

    @staticmethod
    def _level(architecture: XCiTArchitecture, stride: int) -> nn.Module:
        dim, patch = architecture.embed_dim, architecture.patch_size
        if stride == patch:
            return nn.Identity()
        if stride > patch:
            return nn.MaxPool2d(stride // patch)
        layers: list[nn.Module] = [nn.ConvTranspose2d(dim, dim, 2, 2)]
        for _ in range(int(math.log2(patch // stride)) - 1):
            layers += [nn.BatchNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, in_chans, H, W) -> four maps (B, C, H / s, W / s)."""
        blocks = pyramid_blocks(self.model.architecture.depth)
        maps = self.model.intermediate_layers(images, blocks)
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off: covariances, norms and softmax stay float32."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def gram(x: Tensor) -> Tensor:
    """x^T x in at least float32, to 16 bits if x is bfloat16: (B, N, C) -> (B, C, C)."""
    if x.dtype == torch.bfloat16:
        # bfloat16 products are summed in float32 and rounded at the end. What rounding took away
        # is found by a second one, which together take half as long as a float32 product.
        transposed = x.transpose(1, 2)
        rounded = torch.bmm(transposed, x)
        return torch.baddbmm(rounded, transposed, x, beta=-1).float() + rounded
    return gram_of_each(x.to(torch.promote_types(x.dtype, torch.float32)))


class HeadProducts(torch.autograd.Function):
    """Sums over all tokens of products of a head's channels y = x W^T + b, which never exist.

        y^T y = P W^T + u b^T, where P = W x^T x + b s^T, u = W s + N b, s = x^T 1

    The gradient is as short as the value. With R, the gradient of y^T y plus its transpose, it is
    R P and R u for W and b, and x (W^T R W) + 1 (W^T R b)^T for x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Squares of all channels (h, B, 2c), and products of q's with k's (h, c, B, c).

        Args:
            x: tokens (B, N, C), also in bfloat16; the results are then float32 nonetheless.
            weight: (h, 2c, C): for each head c channels of q, then of k.
            bias: (h, 2c).
        """
        batch, tokens, dim = x.shape
        heads, width, _ = weight.shape
        rows = weight.flatten(0, 1)
        # A symmetric matrix is its own transpose: products with it need no copy.
        projected = linear(rows, gram(x).flatten(0, 1)).view(heads, width, batch, dim)
        sums = None
        if bias is not None:
            token_sum = x.sum(1, dtype=weight.dtype)  # (B, C)
            sums = torch.addmm(tokens * bias.view(-1, 1), rows, token_sum.t())
            sums = sums.view(heads, width, batch)
            projected = torch.addcmul(projected, bias[..., None, None], token_sum)
        products = torch.bmm(projected.flatten(1, 2), weight.transpose(1, 2))
        products = products.view(heads, width, batch, width)
        if bias is not None and sums is not None:
            products = torch.addcmul(products, sums[..., None], bias[:, None, None])
        ctx.save_for_backward(x, weight, bias, projected, sums)
        half = width // 2
        return products.diagonal(dim1=1, dim2=3), products[:, :half, :, half:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_squares: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, projected, sums = ctx.saved_tensors
        batch, _, dim = x.shape
        heads, width, _ = weight.shape
        half = width // 2
        both = x.new_zeros(heads, width, batch, width)  # R
        both[:, :half, :, half:] = grad
        both[:, half:, :, :half] = grad.transpose(1, 3)
        both.diagonal(dim1=1, dim2=3).copy_(2 * grad_squares)
        both = both.flatten(1, 2)  # (h, 2c * B, 2c)
        dtype, weight, projected = weight.dtype, weight.to(x.dtype), projected.to(x.dtype)
        rows = weight.flatten(0, 1)
        with full_precision(x):
            grad_weight = torch.bmm(both.transpose(1, 2), projected.flatten(1, 2))
            turned = torch.bmm(both, weight).view(-1, batch * dim)  # R W: (2C, B * C)
            inner = (rows.t() @ turned).view(dim, batch, dim).transpose(0, 1)
            if bias is None:
                return torch.bmm(x, inner), grad_weight.to(dtype), None
            sums, bias = sums.to(x.dtype), bias.to(x.dtype)
            grad_bias = torch.bmm(both.transpose(1, 2), sums.flatten(1, 2)[..., None])
            constant = torch.bmm(both, bias[..., None]).view(-1, batch)  # R b: (2C, B)
            grad_x = linear_of_each(x, inner, (constant.t() @ rows)[:, None])
            return grad_x, grad_weight.to(dtype), grad_bias.squeeze(-1).to(dtype)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with x."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if enabled else x.dtype


def slices(rows: Tensor, dtype: torch.dtype) -> list[slice]:
    """Parts of (T, C) that stay in a CPU's cache when worked on in ``dtype``; elsewhere all."""
    step = SLICE // dtype.itemsize if rows.device.type == "cpu" else len(rows)
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + scale * branch, the scale being one number per picture or row."""
    branch = branch.to(x.dtype)
    return x + branch if scale is None else torch.addcmul(x, branch, scale)


def per_row(scale: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, 1, 1) for x (B, N, C) -> (B * N, 1)."""
    return None if scale is None else scale.expand(-1, x.shape[1], 1).flatten(0, 1)


@contextmanager
def untouched_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm in training uses the batch's statistics but does not count them in."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # It writes into copies. Without any running statistics the layer would keep fewer tensors for
    # the backward pass, which checkpointing refuses.
    before = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, buffers in zip(layers, before, strict=True):
        for name, buffer in buffers.items():
            setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, before, strict=True):
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)


def checkpointed(block: nn.Module, *inputs: Any) -> Any:
    """Run a block and forget its activations; the backward pass runs it again.

    The second time BatchNorm must not count the same batch again.
    """
    runs = 0

    def run(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return block(*inputs)
        with untouched_statistics(block):
            return block(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)
