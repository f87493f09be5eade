"""XCiT's inference graph.

Letters: B batch, h x w patches, N = h w, d embed_dim, m heads, c = d / m.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.export.folding import batch_norm, behind_norm, centred, fold_batch_norm, scaled
from xcite.export.graph_builder import GraphBuilder
from xcite.export.xca_graph import FoldedXCA, covariance_form, usual_form
from xcite.families.xcit import POSITION_CHANNELS
from xcite.variants import XCiTArchitecture

AXIS_CHANNELS = POSITION_CHANNELS // 2  # 16 frequencies, sine and cosine
TEMPERATURE = 10000.0


def prefers_covariance(tokens: int | None, width: int, *, bf16: bool = False) -> bool:
    """Whether the covariance form is the faster one for N tokens of width d.

    Multiply-adds cross at N = 1.5 d (2 N d^2 + 3 d^3 against 4 N d^2), and so do the times in
    float32. In bfloat16 the products weigh less, and what the form does beside them keeps it the
    slower one up to 2 d, see docs/performance.md. A dynamic N is taken as large.
    """
    return tokens is None or (tokens > 2 * width if bf16 else tokens >= 1.5 * width)


class XCiTGraph:
    """Builds the graph part by part, each method from names of nodes to names of nodes."""

    def __init__(
        self,
        graph: GraphBuilder,
        weights: Mapping[str, np.ndarray],
        architecture: XCiTArchitecture,
        size: tuple[int, int] | None,
        attention: str,
        bf16: bool = False,
    ) -> None:
        a, patch = architecture, architecture.patch_size
        self.g, self.weights, self.a = graph, weights, a
        self.width, self.heads = a.embed_dim, a.num_heads
        self.grid = None if size is None else (-(-size[0] // patch), -(-size[1] // patch))
        tokens = None if self.grid is None else math.prod(self.grid)
        if attention not in ("auto", "usual", "covariance"):
            raise XciteError(f"attention is {attention!r}; choose auto, usual or covariance")
        half = graph.dtype == np.float16
        if half and attention == "covariance":
            raise XciteError("the covariance form sums squares, which float16 cannot hold")
        if attention == "auto":
            covariance = not half and prefers_covariance(tokens, self.width, bf16=bf16)
            attention = "covariance" if covariance else "usual"
        self.covariance = attention == "covariance"
        self.tokens = tokens

    def outputs(self) -> dict[str, list[Any]]:
        """Build everything; output names with their shapes."""
        x = self.stem()  # (B, N, d)
        for i in range(self.a.depth):
            x = self.block(x, f"blocks.{i}")
        maps = self.class_attention(x)
        layers = self.a.cls_attn_layers
        tokens = "tokens" if self.tokens is None else 1 + self.tokens
        result: dict[str, list[Any]] = {"logits": ["batch", self.a.num_classes]}
        if not self.a.num_classes:
            result = {"embedding": ["batch", self.a.num_features]}
        if maps:
            self.g.op("Concat", maps, "class_attention.out", axis=1)
            result["class_attention"] = ["batch", layers, self.heads, tokens]
        return result

    def stem(self) -> str:
        """Strided convolutions, BatchNorm folded in, then the positional encoding; (B, N, d)."""
        g = self.g
        x = g.cast("images", "images")
        strides = self.a.strides()
        for i, stride in enumerate(strides):
            part = f"patch_embed.proj.{2 * i}"
            weight, bias = fold_batch_norm(self.weights, f"{part}.0", f"{part}.1")
            if i < len(strides) - 1:
                x = g.gelu(g.convolution(x, weight, bias, part, stride=stride), f"{part}.gelu")
            else:
                x = g.convolution(x, centred(weight, 0), centred(bias, 0), part, stride=stride)
        if self.grid is None:
            self.shape = g.op("Shape", [x], "grid")  # (B, d, h, w)
        x = self.to_tokens(x, "patch_embed")
        return self.add_positions(x) if self.a.use_pos else x

    def add_positions(self, x: str) -> str:
        """Fourier features of row and column, projected; a constant where the size is fixed."""
        g = self.g
        projection = centred(self.weights["pos_embeder.token_projection.weight"][:, :, 0, 0].T, 1)
        bias = centred(self.weights["pos_embeder.token_projection.bias"], 0)
        # of each axis' channels the sines are the even ones, the cosines the odd ones
        axes = projection[:AXIS_CHANNELS], projection[AXIS_CHANNELS:]  # (32, d) each
        by_row, by_column = (np.concatenate([axis[0::2], axis[1::2]]) for axis in axes)
        if self.grid is not None:
            rows, columns = _sines(self.grid[0]) @ by_row, _sines(self.grid[1]) @ by_column
            encoding = (rows[:, None] + columns[None] + bias).reshape(1, -1, self.width)
            return g.add(x, encoding, "pos_embeder")
        with g.single():
            rows_name = g.linear(
                self.encoding(2, "pos_embeder.rows"), by_row, bias, "pos_embeder.rows"
            )
            rows_name = g.reshape(rows_name, [-1, 1, self.width], "pos_embeder.rows.column")
            columns_name = g.linear(
                self.encoding(3, "pos_embeder.columns"), by_column, None, "pos_embeder.columns"
            )
            grid = g.add(rows_name, columns_name, "pos_embeder.grid")  # (h, w, d)
        grid = g.cast(grid, "pos_embeder")
        return g.add(x, g.reshape(grid, [1, -1, self.width], "pos_embeder"), "pos_embeder")

    def to_tokens(self, x: str, name: str) -> str:
        """(B, d, h, w) to (B, N, d)."""
        x = self.g.reshape(x, [0, self.width, -1], f"{name}.flat")
        return self.g.transpose(x, [0, 2, 1], f"{name}.tokens")

    def to_grid(self, x: str, name: str) -> str:
        """(B, N, d) to (B, d, h, w)."""
        x = self.g.transpose(x, [0, 2, 1], f"{name}.channels_first")
        if self.grid is None:
            return self.g.op("Reshape", [x, self.shape], f"{name}.grid")
        return self.g.reshape(x, [0, self.width, *self.grid], f"{name}.grid")

    def encoding(self, axis: int, name: str) -> str:
        """`_sines` of a dynamic count, in the graph: float32 (count, 32)."""
        g = self.g
        start = g.integers([axis], f"{name}.axis")
        stop = g.integers([axis + 1], f"{name}.stop")
        count = g.op("Slice", [self.shape, start, stop], f"{name}.count")
        count = g.cast(count, name)
        squeezed = g.op("Squeeze", [count], f"{name}.scalar")
        one = g.constant(1.0, f"{name}.one")
        end = g.add(squeezed, one, f"{name}.end")
        position = g.op("Range", [one, end, one], f"{name}.range")
        position = g.op("Div", [position, g.add(count, np.array([1e-6]), name)], f"{name}.share")
        position = g.reshape(position, [-1, 1], f"{name}.position")
        angle = g.multiply(position, 2 * math.pi / _frequencies()[None], f"{name}.angle")
        waves = [g.op(kind, [angle], f"{name}.{kind}") for kind in ("Sin", "Cos")]
        return g.op("Concat", waves, f"{name}.waves", axis=1)

    def block(self, x: str, name: str) -> str:
        """XCA, local patch interaction, MLP; x (B, N, d) with mean zero over d, in and out.

        Only LayerNorms look at x, and they ignore its mean. So the mean is taken out once, after
        the depthwise convolutions; the linear maps that add to x write outputs of mean zero; and
        every LayerNorm becomes a division by the root mean square.
        """
        g = self.g
        x = g.add(x, self.xca(x, name), f"{name}.attn.residual")
        x = g.add(x, self.local_interaction(x, f"{name}.local_mp"), f"{name}.local_mp.residual")
        mean = g.reduce("ReduceMean", x, [-1], f"{name}.local_mp.mean", keep=True)
        x = g.op("Sub", [x, mean], f"{name}.local_mp.centred")
        return g.add(x, self.mlp(x, name), f"{name}.mlp.residual")

    def norm(self, x: str, name: str) -> str:
        """A block's LayerNorm without its shift, which goes into the next linear map."""
        return self.g.rms_norm(x, name, self.weights[f"{name}.weight"])

    def mlp(self, x: str, name: str) -> str:
        """A block's MLP with LayerNorm and LayerScale, its output of mean zero."""
        g = self.g
        x = self.norm(x, f"{name}.norm2")
        hidden = behind_norm(self.weights, f"{name}.mlp.fc1", f"{name}.norm2")
        x = g.linear(x, *hidden, f"{name}.mlp.fc1")
        weight, bias = scaled(self.weights, f"{name}.mlp.fc2", f"{name}.gamma2")
        weight, bias = centred(weight, 1), centred(bias, 0)
        return g.linear(g.gelu(x, f"{name}.mlp.gelu"), weight, bias, f"{name}.mlp.fc2")

    def local_interaction(self, x: str, name: str) -> str:
        """Depthwise 3x3, GELU, BatchNorm, depthwise 3x3 with LayerScale; (B, N, d)."""
        g, weights = self.g, self.weights
        block = name.removesuffix(".local_mp")
        # Both convolutions pad with zeros behind a shift, which therefore cannot become a bias.
        x = g.add(self.norm(x, f"{block}.norm3"), weights[f"{block}.norm3.bias"], f"{block}.norm3")
        x = self.to_grid(x, name)
        x = g.convolution(
            x,
            weights[f"{name}.conv1.weight"],
            weights[f"{name}.conv1.bias"],
            f"{name}.conv1",
            groups=self.width,
        )
        scale, shift = batch_norm(weights, f"{name}.bn")
        x = g.multiply(g.gelu(x, f"{name}.gelu"), scale[:, None, None], f"{name}.bn")
        x = g.add(x, shift[:, None, None], f"{name}.bn")
        gamma = weights[f"{block}.gamma3"]
        weight = weights[f"{name}.conv2.weight"] * gamma[:, None, None, None]
        bias = weights[f"{name}.conv2.bias"] * gamma
        x = g.convolution(x, weight, bias, f"{name}.conv2", groups=self.width)
        return self.to_tokens(x, name)

    def xca(self, x: str, block: str) -> str:
        """Cross-covariance attention of x (B, N, d), LayerScale included."""
        x = self.norm(x, f"{block}.norm1")
        layer = FoldedXCA.fold(self.weights, block, self.heads)
        if self.covariance:
            return covariance_form(self.g, x, layer, self.token_count)
        return usual_form(self.g, x, layer)

    def token_count(self, name: str) -> str:
        """N as float32 (1, 1, 1)."""
        g = self.g
        if self.tokens is not None:
            return g.constant(np.full((1, 1, 1), self.tokens), f"{name}.count")
        ends = [g.integers([v], f"{name}.grid_{v}") for v in (2, 4)]
        grid = g.op("Slice", [self.shape, *ends], f"{name}.grid_shape")
        count = g.reduce("ReduceProd", grid, [0], f"{name}.tokens_count", keep=True)
        return g.reshape(g.cast(count, f"{name}.tokens"), [1, 1, 1], f"{name}.corner")

    def class_attention(self, patches: str) -> list[str]:
        """Class attention, final norm and classifier; per layer the attention (B, 1, m, 1 + N).

        CLS (B, 1, d) and patches (B, N, d) stay apart, so the patches are never copied.
        """
        g, weights, layers = self.g, self.weights, self.a.cls_attn_layers
        token = g.constant(weights["cls_token"], "cls_token")
        cls = g.batched(token, patches, "cls_token")
        maps = []
        for i in range(layers):
            name = f"cls_attn_blocks.{i}"
            norm = (weights[f"{name}.norm1.weight"], weights[f"{name}.norm1.bias"])
            gamma = weights[f"{name}.gamma1"]
            normed = g.layer_norm(patches, f"{name}.norm1.patches", *norm)
            update, attention = self.class_attention_layer(
                g.layer_norm(cls, f"{name}.norm1.cls", *norm), normed, f"{name}.attn"
            )
            maps.append(attention)
            cls = g.add(cls, update, f"{name}.attn.residual")
            second = (weights[f"{name}.norm2.weight"], weights[f"{name}.norm2.bias"])
            cls = g.layer_norm(cls, f"{name}.norm2.cls", *second)
            if i < layers - 1:
                # The reference adds the *normed* patches, scaled, and doubles them at the end.
                step = g.multiply(normed, gamma, f"{name}.patches")
                patches = g.add(patches, step, f"{name}.patches")
                if self.a.tokens_norm:
                    doubled = (2 * second[0], 2 * second[1])
                    patches = g.layer_norm(patches, f"{name}.norm2.patches", *doubled)
                else:
                    patches = g.multiply(patches, np.array(2.0), f"{name}.doubled")
            hidden = weights[f"{name}.mlp.fc1.weight"].T, weights[f"{name}.mlp.fc1.bias"]
            out = scaled(self.weights, f"{name}.mlp.fc2", f"{name}.gamma2")
            step = g.gelu(g.linear(cls, *hidden, f"{name}.mlp.fc1"), f"{name}.mlp.gelu")
            cls = g.add(cls, g.linear(step, *out, f"{name}.mlp.fc2"), f"{name}.mlp.residual")
        last = weights["norm.weight"], weights["norm.bias"]
        cls = g.layer_norm(g.reshape(cls, [0, self.width], "cls"), "norm", *last)
        if self.a.num_classes:
            head = g.linear(cls, weights["head.weight"].T, weights["head.bias"], "head")
            g.op("Identity", [head], "logits.out")
        else:
            g.op("Identity", [cls], "embedding.out")
        return maps

    def class_attention_layer(self, cls: str, patches: str, name: str) -> tuple[str, str]:
        """CLS (B, 1, d) attends to itself and the patches; its scaled update, and the attention.

        The keys' bias adds the same to every score of a head and drops out of the softmax.
        """
        g, d, m, c = self.g, self.width, self.heads, self.width // self.heads
        block = name.removesuffix(".attn")
        qkv = self.weights[f"{name}.qkv.weight"].T  # (d, 3 d)
        bias = self.weights.get(f"{name}.qkv.bias", np.zeros(3 * d))
        scale = self.a.attention_scale or c**-0.5  # as the engines: 0 stands for the usual scale
        query = g.linear(cls, qkv[:, :d] * scale, bias[:d] * scale, f"{name}.q")  # (B, 1, d)
        query = g.reshape(query, [0, m, 1, c], f"{name}.q_by_head")
        keys = qkv[:, d : 2 * d].reshape(d, m, c).transpose(1, 2, 0)  # (m, c, d)
        query = g.op("MatMul", [query, g.constant(keys[None], f"{name}.k")], f"{name}.asked")
        query = g.reshape(query, [0, m, d], f"{name}.asked_by_head")
        scores = [
            g.op(
                "MatMul",
                [query, g.transpose(tokens, [0, 2, 1], f"{name}.{part}_transposed")],
                f"{name}.{part}_scores",
            )
            for part, tokens in (("cls", cls), ("patches", patches))
        ]
        attention = g.op("Concat", scores, f"{name}.scores", axis=2)
        attention = g.op("Softmax", [attention], f"{name}.softmax", axis=-1)  # (B, m, 1 + N)
        own, rest = (
            g.op(
                "Slice",
                [attention, *(g.integers([v], f"{name}.part") for v in (start, stop, 2))],
                f"{name}.{part}",
            )
            for part, start, stop in (("own", 0, 1), ("rest", 1, 2**31))
        )
        value = g.op("MatMul", [rest, patches], f"{name}.gathered")  # (B, m, d)
        value = g.add(value, g.op("MatMul", [own, cls], f"{name}.kept"), f"{name}.value")
        value = g.reshape(value, [0, m, 1, d], f"{name}.value_by_head")
        values = qkv[:, 2 * d :].reshape(d, m, c).transpose(1, 0, 2)  # (m, d, c)
        value = g.op("MatMul", [value, g.constant(values[None], f"{name}.v")], f"{name}.projected")
        value = g.reshape(value, [0, 1, d], f"{name}.joined")
        weight, out_bias = scaled(self.weights, f"{name}.proj", f"{block}.gamma1")
        out_bias = out_bias + bias[2 * d :] @ weight  # attention sums to 1: the values' bias passes
        update = g.linear(value, weight, out_bias, f"{name}.proj")
        axis = g.integers([1], f"{name}.layer_axis")
        return update, g.op("Unsqueeze", [attention, axis], f"{name}.map")


def _sines(count: int) -> np.ndarray:
    """Fourier features of positions 1..count of one axis: (count, 32), sines then cosines."""
    position = np.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
    angle = position[:, None] / _frequencies()
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _frequencies() -> np.ndarray:
    return TEMPERATURE ** (np.arange(0, AXIS_CHANNELS, 2) / AXIS_CHANNELS)
