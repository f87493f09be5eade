"""Attention without q, k and v of all tokens: two other ways to the same numbers.

Linear weights are (in, out).
"""

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.choices import Choices
from xcite.engines.attention_form import uses_covariance
from xcite.engines.paddle.fast.expected import as_built, has_bias
from xcite.engines.paddle.fast.layer_scale import scaled
from xcite.engines.paddle.fast.precision import full_precision, precise
from xcite.engines.paddle.fast.repeating import add_bias, repeated, token_sums
from xcite.engines.paddle.kernels import library, operators
from xcite.engines.paddle.xcit import XCA, ClassAttention

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
        return self.branch(x) if self.is_as_built() else super().forward(x)

    def is_as_built(self) -> bool:
        """Whether `branch` may read the layers' weights."""
        return (
            as_built(self.qkv, nn.Linear)
            and as_built(self.attn_drop, nn.Dropout)
            and as_built(self.proj, nn.Linear)
            and as_built(self.proj_drop, nn.Dropout)
            and has_bias(self.proj)
        )

    def branch(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """gamma * XCA(x): normalised tokens (B, N, C) -> (B, N, C)."""
        weight, bias = scaled(self.proj, gamma)
        if self._covariance_pays(x):
            matrix, offset = self._as_matrix(x, weight, bias)
            # (B, 1, C) + (B, N, C) @ (B, C, C)
            y = self._applied(x, matrix, offset)
        elif not self._drops() and library.usable(self.choices, x, weight, self.qkv.weight):
            qkv = operators.linear(x, self.qkv.weight, self.qkv.bias)
            y = operators.linear(operators.Attend.apply(qkv, self.temperature), weight, bias)
        else:
            attention, v = self._usual(x)
            attention = self.attn_drop(attention)
            # (B, h, c, c) @ (B, h, c, N) -> (B, N, C)
            y = F.linear((attention @ v).flatten(1, 2).transpose([0, 2, 1]), weight, bias)
        mixed: Tensor = self.proj_drop(y)
        return mixed

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, c, c) of normalised tokens: rows are q's channels."""
        if not self.is_as_built():
            return super().attention(x)
        return self._covariance(x) if self._covariance_pays(x) else self._usual(x)[0]

    def _covariance_pays(self, x: Tensor) -> bool:
        # With attention dropout the usual form draws what the plain operator draws.
        if self._drops():
            return False
        return uses_covariance(self.form, x.shape[1], x.shape[2], self.choices.covariance_above)

    def _drops(self) -> bool:
        return self.attn_drop.training and self.attn_drop.p > 0

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        given = (x, weight) if bias is None else (x, weight, bias)
        if library.usable(self.choices, *given):
            return operators.linear(x, weight, bias)
        return F.linear(x, weight, bias)

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
            covariance, token_sum = self._moments(x)
            products = self._linear(covariance, weight)  # (B, C, 2C)
            if self.qkv.bias is None:
                squares = token_sums(products * repeated(weight, batch))
            else:
                bias = self.qkv.bias[: 2 * dim]
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

    def _applied(self, x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        if not library.usable(self.choices, x, matrix, offset):
            return add_bias(paddle.matmul(x, matrix), offset)
        y: Tensor = operators.Products.apply(x, matrix, offset.expand([len(x), 1, -1]))
        return y

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X^T X (B, C, C), and s = X^T 1 (B, C), which is of no use without a bias of qkv."""
        if library.usable(self.choices, x):
            covariance, token_sum = operators.Gram.apply(x)
            return covariance, token_sum.squeeze(1)
        return gram(x), token_sums(x) if self.qkv.bias is not None else None

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
            matrix = self._linear(values.flatten(1, 2).transpose([0, 2, 1]), weight)
            if self.qkv.bias is None:
                return matrix, bias
            constant = attention @ self.qkv.bias[2 * dim :].reshape([1, *heads, 1])
            return matrix, F.linear(constant.reshape([batch, 1, dim]), weight, bias)


class FastClassAttention(ClassAttention):
    """With CLS as the only query, k and v need not exist: the cheap form, exact.

    q k^T = X (Wk^T q), up to a constant that softmax removes, and a v = (a X) Wv^T + bv.
    """

    form: str

    def forward(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + N, C), CLS first -> the same with CLS updated."""
        if not self.is_as_built():
            return super().forward(x)
        return paddle.concat([self.answer(x[:, :1], x[:, 1:]), x[:, 1:]], axis=1)

    def is_as_built(self) -> bool:
        """Whether `answer` may read the layers' weights."""
        return as_built(self.qkv, nn.Linear) and as_built(self.attn_drop, nn.Dropout)

    def answer(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Normalised CLS (B, 1, C) and patches (B, N, C) -> the update of CLS (B, 1, C)."""
        dropping = self.attn_drop.training and self.attn_drop.p > 0
        form = self._usual if dropping or self.form == "usual" else self._cheap
        seen: Tensor = self.proj_drop(self.proj(form(cls, patches)[1]))
        return seen

    def attention(self, x: Tensor) -> Tensor:
        """Attention (B, h, 1 + N) of CLS to itself and the patches."""
        if not self.is_as_built():
            return super().attention(x)
        form = self._usual if self.form == "usual" else self._cheap
        return form(x[:, :1], x[:, 1:])[0]

    def _usual(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        batch, tokens, dim = patches.shape
        x = paddle.concat((cls, patches), axis=1)
        qkv = self.qkv(x).reshape([batch, tokens + 1, 3, self.num_heads, dim // self.num_heads])
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)  # each (B, h, 1 + N, c)
        logits = (q[:, :, :1] * self.scale) @ k.transpose([0, 1, 3, 2])
        with full_precision():
            attention = F.softmax(precise(logits), axis=-1)
        dropped = self.attn_drop(attention)
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
