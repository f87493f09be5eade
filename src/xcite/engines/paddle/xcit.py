"""XCiT on Paddle (El-Nouby et al. 2021, arXiv 2106.09681).

Dimensions: B pictures, N = Hp * Wp patch tokens, C channels (d in the paper), h heads of c = C / h.
Names of parts are those of facebookresearch/xcit, because they become the names of weights.

Each residual branch returns gamma * f(x): LayerScale is multiplied into the branch's last weight,
which is smaller than its output. Linear weights are (in, out).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from xcite.engines.attention_form import check_form, uses_covariance
from xcite.errors import XciteError
from xcite.variants import XCiTArchitecture

LAYER_NORM_EPS = 1e-6
# F.normalize divides by max(|q|, 1e-12); here the squares are bounded.
NORMALIZE_EPS = 1e-12
# Tokens that the MLP takes at a time on a CPU.
SLICE = 784


class BatchNorm2D(nn.BatchNorm2D):
    """BatchNorm whose running variance is PyTorch's: unbiased, where Paddle keeps the biased one.

    Counts its batches as PyTorch does; ``track_running_stats`` False leaves the buffers alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=0.9, epsilon=1e-5)
        self.track_running_stats = True
        self.register_buffer("num_batches_tracked", paddle.zeros([], "int64"))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self._mean, self._variance
        if self.training:
            # Paddle's kernel writes into what it is given.
            mean, variance = mean.clone(), variance.clone()
        y = F.batch_norm(
            x,
            mean,
            variance,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
        )
        if self.training and self.track_running_stats:
            with paddle.no_grad():
                count = x.size // len(self.weight)
                old = self._momentum * self._variance
                unbiased = (variance - old) * (count / max(count - 1, 1))
                self._mean.set_value(mean)
                self._variance.set_value(old + unbiased)
                self.num_batches_tracked.set_value(self.num_batches_tracked + 1)
        return y


def conv3x3(into: int, out: int) -> nn.Sequential:
    """3x3 convolution of stride 2, BatchNorm: (B, into, H, W) -> (B, out, ceil(H/2), ceil(W/2))."""
    return nn.Sequential(nn.Conv2D(into, out, 3, 2, 1, bias_attr=False), BatchNorm2D(out))


class ConvPatchEmbed(nn.Layer):
    """The stem: a chain of `conv3x3` with GELU between, none after the last."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Layer] = []
        for into, out in zip([in_chans, *widths[:-1]], widths, strict=True):
            layers += [conv3x3(into, out), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """(B, in_chans, H, W) -> tokens (B, N, C), Hp, Wp; Hp = ceil(H / patch)."""
        x = self.proj(images)
        return x.flatten(2).transpose([0, 2, 1]), x.shape[2], x.shape[3]


class PositionalEncodingFourier(nn.Layer):
    """Sines and cosines of the position, projected to C channels; defined for any grid."""

    hidden_dim = 32
    temperature = 10000
    eps = 1e-6

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2D(2 * self.hidden_dim, dim, 1)
        self._cache: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, height: int, width: int) -> Tensor:
        """(N, C)."""
        projection = self.token_projection
        with full_precision():
            return F.linear(
                self.features(height, width), projection.weight.flatten(1).t(), projection.bias
            )

    def features(self, height: int, width: int) -> Tensor:
        """(N, 64): 32 channels of y, then 32 of x; computed once per grid."""
        weight = self.token_projection.weight
        if not paddle.in_dynamic_mode():
            return self._features(height, width, weight)
        key = (height, width, str(weight.place), weight.dtype)
        if key not in self._cache:
            if len(self._cache) >= 16:  # evaluation at many sizes must not fill the memory
                self._cache.clear()
            with paddle.no_grad():
                self._cache[key] = self._features(height, width, weight)
        return self._cache[key]

    def _features(self, height: int, width: int, like: Tensor) -> Tensor:
        dtype = paddle.float64 if like.dtype == paddle.float64 else paddle.float32
        exponent = paddle.arange(self.hidden_dim // 2, dtype=dtype)
        wavelength = paddle.pow(
            paddle.full([], self.temperature, dtype), 2 * exponent / self.hidden_dim
        )

        def waves(count: int) -> Tensor:  # (count, 32): sine, cosine, sine, ...
            position = paddle.arange(1, count + 1).astype(dtype)
            angle = position / (position[-1] + self.eps) * (2 * math.pi)
            angle = angle.unsqueeze(1) / wavelength
            return paddle.stack((angle.sin(), angle.cos()), axis=2).flatten(1)

        y = waves(height).unsqueeze(1).expand([-1, width, -1])
        x = waves(width).unsqueeze(0).expand([height, -1, -1])
        return paddle.concat((y, x), axis=2).flatten(0, 1).astype(like.dtype)


class XCA(nn.Layer):
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
        self.temperature = parameter([self.num_heads, 1, 1], 1.0)
        self.qkv = nn.Linear(dim, 3 * dim, bias_attr=None if architecture.qkv_bias else False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, gamma: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> gamma * XCA (B, N, C)."""
        weight = self.proj.weight * gamma
        bias = self.proj.bias * gamma
        if self._covariance_pays(x):
            matrix, offset = self._as_matrix(x, weight, bias)
            # (B, 1, C) + (B, N, C) @ (B, C, C)
            y = add_bias(paddle.matmul(x, matrix), offset)
        else:
            attention, v = self._usual(x)
            attention = F.dropout(attention, self.attn_drop, training=self.training)
            # (B, h, c, c) @ (B, h, c, N) -> (B, N, C)
            y = F.linear((attention @ v).flatten(1, 2).transpose([0, 2, 1]), weight, bias)
        return F.dropout(y, self.proj_drop, training=self.training)

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, c, c) of normalised tokens: rows are q's channels."""
        return self._covariance(x) if self._covariance_pays(x) else self._usual(x)[0]

    def _covariance_pays(self, x: Tensor) -> bool:
        # Attention dropout acts on single entries of every head: the usual form, in its meaning.
        if self.training and self.attn_drop > 0:
            return False
        return uses_covariance(self.form, x.shape[1], x.shape[2], "paddle")

    def _usual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape([batch, tokens, 3, self.num_heads, dim // self.num_heads])
        q, k, v = qkv.transpose([2, 0, 3, 4, 1]).unbind(0)  # each (B, h, c, N)
        products = q @ k.transpose([0, 1, 3, 2])
        with full_precision():
            # Scaling the (c, c) products is cheaper than normalising q and k.
            q_norm, k_norm = (precise(t).norm(axis=-1).clip(min=NORMALIZE_EPS) for t in (q, k))
            return self._softmax(precise(products), 1 / q_norm, 1 / k_norm), v

    def _covariance(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        heads = [self.num_heads, dim // self.num_heads]
        weight = self.qkv.weight[:, : 2 * dim]
        with full_precision():
            # X^T [Q K] = (X^T X) W + s b^T, where s = X^T 1 and [Q K] = X W + 1 b^T
            products = F.linear(gram(x), weight)  # (B, C, 2C)
            if self.qkv.bias is None:
                squares = token_sums(products * repeated(weight, batch))
            else:
                bias = self.qkv.bias[: 2 * dim]
                token_sum = token_sums(x)  # s: (B, C)
                sums = F.linear(token_sum, weight, tokens * bias)  # [Q K]^T 1: (B, 2C)
                products = products + token_sum.unsqueeze(2) @ bias.reshape([1, 1, -1])
                squares = token_sums(products * repeated(weight, batch)) + sums * bias
            # (B, h, c, C) @ (1, h, C, c): q k^T = (X^T q)^T Wk + (q 1) bk^T
            q_x = products[:, :, :dim].reshape([batch, dim, *heads]).transpose([0, 2, 3, 1])
            weight_k = weight[:, dim:].reshape([dim, *heads]).transpose([1, 0, 2])
            logits = q_x @ weight_k.unsqueeze(0)
            if self.qkv.bias is not None:
                q_sum = sums[:, :dim].reshape([batch, *heads, 1])
                logits = logits + q_sum * bias[dim:].reshape([1, heads[0], 1, heads[1]])
            inverse = squares.clip(min=NORMALIZE_EPS**2).rsqrt().reshape([batch, 2, *heads])
            return self._softmax(logits, inverse[:, 0], inverse[:, 1])

    def _softmax(self, products: Tensor, inverse_q: Tensor, inverse_k: Tensor) -> Tensor:
        scale = (self.temperature * inverse_q.unsqueeze(3)) * inverse_k.unsqueeze(2)
        return F.softmax(products * scale, axis=-1)

    def _as_matrix(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The whole layer as x @ matrix + offset: (B, C, C) and (B, 1, C) or (C,)."""
        batch, _, dim = x.shape
        heads = [self.num_heads, dim // self.num_heads]
        attention = self._covariance(x)
        with full_precision():
            # (B, h, c, c) @ (1, h, c, C) -> (B, C, C)
            weight_v = self.qkv.weight[:, 2 * dim :].reshape([dim, *heads]).transpose([1, 2, 0])
            values = attention @ weight_v.unsqueeze(0)
            matrix = F.linear(values.flatten(1, 2).transpose([0, 2, 1]), weight)
            if self.qkv.bias is None:
                return matrix, bias
            constant = attention @ self.qkv.bias[2 * dim :].reshape([1, *heads, 1])
            return matrix, F.linear(constant.reshape([batch, 1, dim]), weight, bias)


class LPI(nn.Layer):
    """Local patch interaction: two depthwise 3x3 convolutions on the grid of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)
        self.bn = BatchNorm2D(dim)
        self.conv2 = nn.Conv2D(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int, gamma: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> gamma * LPI (B, N, C)."""
        # Tokens are channels-last already, but Paddle's convolution turns such an image round, and
        # back, at each call: one that is channels-first takes half the time.
        dim = self.conv1.weight.shape[0]
        x = x.transpose([0, 2, 1]).reshape([x.shape[0], dim, height, width])
        weight = self.conv2.weight * gamma.reshape([-1, 1, 1, 1])
        bias = self.conv2.bias * gamma
        if not paddle.in_dynamic_mode():  # there the bias costs nothing
            x = F.conv2d(x, self.conv1.weight, self.conv1.bias, padding=1, groups=dim)
            x = F.conv2d(self.bn(F.gelu(x)), weight, bias, padding=1, groups=dim)
            return x.flatten(2).transpose([0, 2, 1])
        x = F.conv2d(x, self.conv1.weight, padding=1, groups=dim)
        x = self.bn(F.gelu(add_channel_bias(x, self.conv1.bias)))
        x = F.conv2d(x, weight, padding=1, groups=dim)
        return add_bias(x.flatten(2).transpose([0, 2, 1]), bias)


class Mlp(nn.Layer):
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
        weight, bias = self.fc2.weight * gamma, self.fc2.bias * gamma
        y = x if norm is None else norm(x)
        if self._whole(y):
            y = F.dropout(F.gelu(self.fc1(y)), self.drop, training=self.training)
            y = F.dropout(F.linear(y, weight, bias), self.drop, training=self.training)
        else:
            keep = paddle.is_grad_enabled()
            y = SlicedMlp.apply(y, self.fc1.weight, self.fc1.bias, weight, bias, keep)
        return add_branch(x, y, scale)

    def _whole(self, x: Tensor) -> bool:
        """Not in slices: in a program, with dropout or autocast, or where no small cache is."""
        if not paddle.in_dynamic_mode() or paddle.is_autocast_enabled():
            return True
        return (self.training and self.drop > 0) or not x.place.is_cpu_place()


class SlicedMlp(PyLayer):
    """gelu(x W1 + b1) W2 + b2, a few hundred tokens at a time.

    The hidden layer is four times as wide as the tokens: a slice of it stays in the cache where the
    whole would go to memory and back for every operation. The backward pass needs x W1 + b1, which
    is kept, and its GELU, which is computed again rather than kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        keep: bool,
    ) -> Tensor:
        """x: (..., C); weights as in nn.Linear; keep: there will be a backward pass."""
        inputs = (x, weight1, bias1, weight2, bias2)
        ctx.needs = [not tensor.stop_gradient for tensor in inputs]
        kept, outputs = [], []
        with paddle.no_grad():
            weight1, bias1, weight2 = (t * math.sqrt(0.5) for t in (weight1, bias1, weight2))
            for part in slices(x.reshape([-1, x.shape[-1]])):
                hidden = paddle.addmm(bias1, part, weight1)
                outputs.append(paddle.addmm(bias2, gelu(hidden)[0], weight2))
                if keep:
                    kept.append(hidden)
            y = paddle.concat(outputs).reshape(x.shape)
        ctx.save_for_backward(x, weight1, weight2, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, *kept = ctx.saved_tensor()
        parts, grads = (slices(t.reshape([-1, t.shape[-1]])) for t in (x, grad))
        grad_x = []
        totals: list[Tensor] = []
        for hidden, part, g in zip(kept, parts, grads, strict=True):
            activated, g_hidden = gelu(hidden, paddle.matmul(g, weight2, transpose_y=True))
            # A product with ones is faster than a sum over rows.
            ones = paddle.ones([1, len(g)], g.dtype)
            sums = (
                paddle.matmul(part, g_hidden, transpose_x=True),
                ones @ g_hidden,
                paddle.matmul(activated, g, transpose_x=True),
                ones @ g,
            )
            totals = [a.add_(b) for a, b in zip(totals, sums, strict=True)] if totals else [*sums]
            grad_x.append(paddle.matmul(g_hidden, weight1, transpose_y=True))
        w1, b1, w2 = (total.scale_(math.sqrt(0.5)) for total in totals[:3])
        b2 = totals[3]
        answers = (paddle.concat(grad_x).reshape(x.shape), w1, b1.flatten(), w2, b2.flatten())
        return tuple(a if needs else None for a, needs in zip(answers, ctx.needs, strict=True))


class XCABlock(nn.Layer):
    """XCA, local patch interaction, MLP; the local one comes second although its norm is norm3."""

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.gamma1 = parameter([dim], architecture.eta)
        self.gamma2 = parameter([dim], architecture.eta)
        self.gamma3 = parameter([dim], architecture.eta)
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = XCA(architecture, attention)
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = Mlp(architecture)
        self.norm3 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.local_mp = LPI(dim)

    def forward(self, x: Tensor, height: int, width: int, paths: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C); paths: (3, B) scales of the three branches."""
        scales = (None,) * 3 if paths is None else paths.astype(x.dtype).unsqueeze([2, 3])
        x = add_branch(x, self.attn(self.norm1(x), self.gamma1), scales[0])
        x = add_branch(x, self.local_mp(self.norm3(x), height, width, self.gamma3), scales[1])
        return self.mlp(x, self.gamma2, self.norm2, scales[2])


class ClassAttention(nn.Layer):
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
        self.qkv = nn.Linear(dim, 3 * dim, bias_attr=None if architecture.qkv_bias else False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Normalised CLS (B, 1, C) and patches (B, N, C) -> what CLS learns of them (B, 1, C)."""
        dropping = self.training and self.attn_drop > 0
        form = self._usual if dropping or self.form == "usual" else self._cheap
        seen = self.proj(form(cls, patches)[1])
        return F.dropout(seen, self.proj_drop, training=self.training)

    def attention(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Attention (B, h, 1 + N) of CLS to itself and the patches."""
        return (self._usual if self.form == "usual" else self._cheap)(cls, patches)[0]

    def _usual(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = patches.shape
        x = paddle.concat((cls, patches), axis=1)
        qkv = self.qkv(x).reshape([batch, tokens + 1, 3, self.num_heads, dim // self.num_heads])
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)  # each (B, h, 1 + N, c)
        logits = (q[:, :, :1] * self.scale) @ k.transpose([0, 1, 3, 2])
        with full_precision():
            attention = F.softmax(precise(logits), axis=-1)
        dropped = F.dropout(attention, self.attn_drop, training=self.training)
        return attention.squeeze(2), (dropped @ v).transpose([0, 2, 1, 3]).reshape([batch, 1, dim])

    def _cheap(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, dim = patches.shape
        heads = [self.num_heads, dim // self.num_heads]
        _, weight_k, weight_v = self.qkv.weight.chunk(3, axis=1)
        bias_v = None if self.qkv.bias is None else self.qkv.bias[2 * dim :]
        with full_precision():
            # k and v of CLS alone cost nothing. In a program a part of weight and bias must not
            # make a linear map: oneDNN keeps them from the first run, freed since then.
            q = (self.qkv(cls)[:, :, :dim] * self.scale).reshape([batch, *heads])
            # The heads are the batch of the small products: (h, B, c) @ (h, c, C) -> (B, h, C)
            weight_k = weight_k.reshape([dim, *heads]).transpose([1, 2, 0])
            asked = paddle.bmm(q.transpose([1, 0, 2]), weight_k).transpose([1, 0, 2])
            logits = paddle.concat(
                (asked @ cls.transpose([0, 2, 1]), asked @ patches.transpose([0, 2, 1])), axis=2
            )
            attention = F.softmax(logits, axis=-1)  # (B, h, 1 + N)
            seen = attention[:, :, :1] * cls + attention[:, :, 1:] @ patches
            # (h, B, C) @ (h, C, c) -> (B, 1, C)
            weight_v = weight_v.reshape([dim, *heads]).transpose([1, 0, 2])
            v = paddle.bmm(seen.transpose([1, 0, 2]), weight_v)
            v = v.transpose([1, 0, 2]).reshape([batch, 1, dim])
            return attention, v if bias_v is None else v + bias_v


class ClassAttentionBlock(nn.Layer):
    """Class attention and an MLP on CLS; the patches are carried along as the reference does it."""

    def __init__(self, architecture: XCiTArchitecture, attention: str) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.tokens_norm = architecture.tokens_norm
        self.gamma1 = parameter([dim], architecture.eta)
        self.gamma2 = parameter([dim], architecture.eta)
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
        cls = cls + self.gamma1 * self.attn(norm1(cls), normed)
        cls = norm2(cls)  # the normalised CLS is also what the MLP is added to
        cls = self.mlp(cls, self.gamma2, None)
        if last:
            return cls, None
        # The reference concatenates CLS's answer with the normalised patches before gamma1, and
        # adds the patches to themselves at the end: they double.
        patches = patches + self.gamma1 * normed
        if self.tokens_norm:
            weight, bias = 2 * norm2.weight, 2 * norm2.bias
            return cls, F.layer_norm(patches, len(weight), weight, bias, LAYER_NORM_EPS)
        return cls, 2 * patches


class XCiT(nn.Layer):
    """Cross-covariance image transformer.

    Attributes:
        engine: "paddle".
        architecture: what it was built from.
    """

    engine = "paddle"

    def __init__(
        self,
        architecture: XCiTArchitecture,
        *,
        attention: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        """Build with Paddle's own initial values; `xcite.engines.paddle.build` sets the official.

        Args:
            attention: "auto", "usual" or "covariance": how XCA and class attention are computed.
            activation_checkpointing: keep only each XCA block's input for the backward pass.
        """
        super().__init__()
        check_form(attention)
        self.architecture = architecture
        self.activation_checkpointing = activation_checkpointing
        dim = architecture.embed_dim
        self.cls_token = parameter([1, 1, dim], 0.0)
        self.patch_embed = ConvPatchEmbed(architecture.in_chans, architecture.stem_widths())
        self.blocks = nn.LayerList(
            [XCABlock(architecture, attention) for _ in range(architecture.depth)]
        )
        self.cls_attn_blocks = nn.LayerList(
            [
                ClassAttentionBlock(architecture, attention)
                for _ in range(architecture.cls_attn_layers)
            ]
        )
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        classes = architecture.num_classes
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        self.pos_embeder = PositionalEncodingFourier(dim) if architecture.use_pos else None

    def forward(self, images: Tensor, paths: Tensor | None = None) -> Tensor:
        """Logits (B, K) of normalised images (B, in_chans, H, W) of any H and W.

        Args:
            paths: drop-path scales (depth, 3, B), 0 or 1 / keep, in the order XCA, LPI, MLP. In
                training without them Paddle's generator draws them; in evaluation nothing drops.
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
        return [kept[name].transpose([0, 2, 1]).unflatten(2, [height, width]) for name in wanted]

    def feature_pyramid(self, images: Tensor) -> list[Tensor]:
        """Four maps (B, C, H / s, W / s) of strides s = 4, 8, 16, 32, see `FeaturePyramid`.

        The pyramid's own weights are no part of this model's state: to train or save them, build
        a `FeaturePyramid` around the model.
        """
        if "_pyramid" not in self.__dict__:  # past nn.Layer, which would register its weights
            self.__dict__["_pyramid"] = FeaturePyramid(self).levels
        levels = self.__dict__["_pyramid"]
        levels.train() if self.training else levels.eval()
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
            outputs[f"cls_attn_blocks.{i}"] = paddle.concat((cls, x), axis=1)
        outputs["norm"] = self.norm(paddle.concat((cls, x), axis=1))
        outputs["head"] = self.head(outputs["norm"][:, 0])
        return outputs

    def _embed(
        self, images: Tensor, keep: Callable[[str, Tensor], None] | None = None
    ) -> tuple[Tensor, int, int]:
        """Tokens (B, N, C) with positions, Hp, Wp; the residual stream keeps the weights' dtype."""
        x, height, width = self.patch_embed(images)
        if keep is not None:
            keep("patch_embed", x)
        x = x.astype(self.cls_token.dtype)
        if self.pos_embeder is not None:
            x = x + self.pos_embeder(height, width)
        return F.dropout(x, self.architecture.drop_rate, training=self.training), height, width

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
            draws = paddle.rand([len(self.blocks), 3, x.shape[0]])
            paths = (draws >= rate).astype(x.dtype) / (1 - rate)
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
        return self.cls_token.expand([x.shape[0], -1, -1])


def pyramid_blocks(depth: int) -> list[int]:
    """The blocks whose tokens make the pyramid: [3, 5, 7, 11] of 12, [7, 11, 15, 23] of 24."""
    return [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1]


class FeaturePyramid(nn.Layer):
    """Four maps of strides 4, 8, 16 and 32 for dense tasks, as the official detection backbone.

    Tokens of four blocks are enlarged by transposed convolutions or reduced by maximum pooling.
    """

    def __init__(self, model: XCiT) -> None:
        super().__init__()
        self.model = model
        self.levels = nn.LayerList(
            [self._level(model.architecture, stride) for stride in (4, 8, 16, 32)]
        )

    @staticmethod
    def _level(architecture: XCiTArchitecture, stride: int) -> nn.Layer:
        dim, patch = architecture.embed_dim, architecture.patch_size
        if stride == patch:
            return nn.Identity()
        if stride > patch:
            return nn.MaxPool2D(stride // patch)
        layers: list[nn.Layer] = [nn.Conv2DTranspose(dim, dim, 2, 2)]
        for _ in range(int(math.log2(patch // stride)) - 1):
            layers += [BatchNorm2D(dim), nn.GELU(), nn.Conv2DTranspose(dim, dim, 2, 2)]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, in_chans, H, W) -> four maps (B, C, H / s, W / s)."""
        blocks = pyramid_blocks(self.model.architecture.depth)
        maps = self.model.intermediate_layers(images, blocks)
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def parameter(shape: Sequence[int], value: float) -> Tensor:
    """A trained tensor filled with one value."""
    return paddle.create_parameter(
        list(shape), paddle.get_default_dtype(), default_initializer=nn.initializer.Constant(value)
    )


def precise(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == paddle.float64 else x.astype(paddle.float32)


def full_precision() -> AbstractContextManager[Any]:
    """Switches autocast off: covariances, norms and softmax stay float32."""
    if paddle.is_autocast_enabled():
        return paddle.amp.auto_cast(enable=False)
    return nullcontext()


def gram(x: Tensor) -> Tensor:
    """x^T x: (B, N, C) -> (B, C, C)."""
    if not paddle.in_dynamic_mode():
        return paddle.bmm(x.transpose([0, 2, 1]), x)
    product = paddle.bmm(x.detach().transpose([0, 2, 1]), x)
    if product.stop_gradient:
        return product
    # The gradient x (g + g^T) is one product with x; differentiating both factors would take two.
    # The value is unchanged: product + product^T - product.
    return product + product.transpose([0, 2, 1]) - product.detach()


def repeats_slowly(x: Tensor) -> bool:
    """Whether operations that repeat one operand, and the sums in their gradients, are slow.

    On a CPU they take five times as long as products with ones that do the same.
    """
    cpu: bool = paddle.in_dynamic_mode() and x.place.is_cpu_place()
    return cpu


def repeated(x: Tensor, times: int) -> Tensor:
    """(...) -> (times, ...), or as it is where broadcasting is fast."""
    if not repeats_slowly(x):
        return x
    return (paddle.ones([times, 1], x.dtype) @ x.reshape([1, -1])).reshape([times, *x.shape])


def token_sums(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, C)."""
    if not repeats_slowly(x):
        return x.sum(1)
    return (paddle.ones([1, 1, x.shape[1]], x.dtype) @ x).squeeze(1)


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x (B, N, C) + bias, (C,) or (B, 1, C)."""
    if not repeats_slowly(x):
        return x + bias
    if bias.ndim == 1:
        return x + repeated(bias, len(x) * x.shape[1]).reshape(x.shape)
    return x + paddle.ones([len(x), x.shape[1], 1], x.dtype) @ bias


def add_channel_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x (B, C, H, W) + bias (C,)."""
    if not repeats_slowly(x):
        return x + bias.reshape([-1, 1, 1])
    ones = paddle.ones([1, x.shape[2] * x.shape[3]], x.dtype)
    return x + repeated(bias.unsqueeze(1) @ ones, len(x)).reshape(x.shape)


def slices(rows: Tensor) -> list[Tensor]:
    """Parts of (T, C) small enough for a CPU's cache."""
    return [rows[i : i + SLICE] for i in range(0, rows.shape[0], SLICE)]


def gelu(x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x (1 + erf x), and the gradient of x for that of the result.

    It is sqrt(2) times the GELU of sqrt(2) x. Weights around it take the factors, since each
    operation on the hidden layer takes a third of the time of a matrix product.
    """
    twice_cdf = paddle.erf(x).scale_(1.0, bias=1.0)
    if grad is None:
        return twice_cdf.multiply_(x), None
    slope = paddle.square(x).scale_(-1.0).exp_().multiply_(x).scale_(2 / math.sqrt(math.pi))
    slope.add_(twice_cdf).multiply_(grad)
    return twice_cdf.multiply_(x), slope


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + scale * branch, the scale being one number per picture: (B, 1, 1)."""
    return x + branch if scale is None else x + branch * scale


@contextmanager
def untouched_statistics(model: nn.Layer) -> Iterator[None]:
    """BatchNorm in training uses the batch's statistics but does not count them in."""
    layers = [m for m in model.sublayers(include_self=True) if isinstance(m, BatchNorm2D)]
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracks in zip(layers, before, strict=True):
            layer.track_running_stats = tracks


def checkpointed(block: nn.Layer, *inputs: Any) -> Any:
    """Run a block and forget its activations; the backward pass runs it again.

    The second time BatchNorm must not count the same batch again.
    """
    from paddle.distributed.fleet.utils import recompute

    runs = 0

    def run(*inputs: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 1:
            return block(*inputs)
        with untouched_statistics(block):
            return block(*inputs)

    return recompute(run, *inputs, use_reentrant=False)
