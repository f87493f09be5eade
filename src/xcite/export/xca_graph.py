"""Cross-covariance attention in the inference graph, in its two forms, which give the same.

Letters: B batch, N tokens, d embed_dim, m heads, c = d / m.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from xcite.export.folding import behind_norm, centred, scaled
from xcite.export.graph_builder import GraphBuilder


@dataclass(frozen=True)
class FoldedXCA:
    """One layer's weights with the LayerNorm before it and the LayerScale behind it folded in.

    Attributes:
        name: the layer's, such as "blocks.0.attn".
        qkv: (d, 3 d).
        qkv_bias: (3 d).
        out: (m, c, d), its outputs of mean zero.
        out_bias: (d).
        temperature: (m, 1, 1).
    """

    name: str
    qkv: np.ndarray
    qkv_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    temperature: np.ndarray

    @classmethod
    def fold(cls, weights: Mapping[str, np.ndarray], block: str, heads: int) -> "FoldedXCA":
        """The layer of a block."""
        name = f"{block}.attn"
        qkv, qkv_bias = behind_norm(weights, f"{name}.qkv", f"{block}.norm1")
        out, out_bias = scaled(weights, f"{name}.proj", f"{block}.gamma1")
        width = len(out)
        return cls(
            name,
            qkv,
            qkv_bias,
            centred(out, 1).reshape(heads, width // heads, width),
            centred(out_bias, 0),
            weights[f"{name}.temperature"],
        )


def covariance_form(
    g: GraphBuilder, x: str, layer: FoldedXCA, token_count: Callable[[str], str]
) -> str:
    """y = x M + m with M from x^T x; the 1 of the biases is one more channel of x (B, N, d).

    With G = [x 1]^T [x 1] and W = [Wqkv; bqkv], both of d + 1 rows, all products of queries and
    keys are W_q^T G W_k, biases included.

    Args:
        token_count: gives N as float32 (1, 1, 1), for nodes named after its argument.
    """
    name, (m, c, d) = layer.name, layer.out.shape
    full = np.concatenate([layer.qkv, layer.qkv_bias[None]])  # (d + 1, 3 d)
    transposed = g.transpose(x, [0, 2, 1], f"{name}.transposed")
    gram = g.op("MatMul", [transposed, x], f"{name}.gram")  # (B, d, d)
    total = g.reduce("ReduceSum", x, [1], f"{name}.total", keep=True)  # (B, 1, d)
    # (B, d + 1, d): the last column of G is the last row's transpose and the count of tokens
    rows = g.op("Concat", [gram, total], f"{name}.rows", axis=1)
    corner = g.batched(token_count(name), total, name)
    last = g.op("Concat", [total, corner], f"{name}.column", axis=2)
    column = g.transpose(last, [0, 2, 1], f"{name}.last")  # (B, d + 1, 1)
    gram = g.op("Concat", [rows, column], f"{name}.augmented", axis=2)  # (B, d + 1, d + 1)
    products = g.linear(gram, full[:, : 2 * d], None, f"{name}.products")  # (B, d + 1, 2 d)
    squares = g.multiply(products, full[None, :, : 2 * d], f"{name}.squares")
    squares = g.reduce("ReduceSum", squares, [1], f"{name}.lengths", keep=False)  # (B, 2 d)
    bounds = [g.integers([v], f"{name}.key_{v}") for v in (d, 2 * d, 2)]
    keys = g.op("Slice", [products, *bounds], f"{name}.keys")
    keys = g.reshape(keys, [0, d + 1, m, c], f"{name}.keys_by_head")
    keys = g.transpose(keys, [0, 2, 1, 3], f"{name}.keys_head_first")  # (B, m, d + 1, c)
    queries = full[:, :d].reshape(d + 1, m, c).transpose(1, 2, 0)  # (m, c, d + 1)
    queries = queries * layer.temperature
    query = g.constant(queries[None], f"{name}.queries")
    scores = g.op("MatMul", [query, keys], f"{name}.scores")
    mixed = _mixed(g, scores, squares, layer)
    values = g.constant(full[None, :, 2 * d :], f"{name}.values")  # (1, d + 1, d)
    folded = g.op("MatMul", [values, mixed], f"{name}.folded")  # (B, d + 1, d)
    parts = []
    for part, start, stop in (("weight", 0, d), ("bias", d, d + 1)):
        bounds = [g.integers([v], f"{name}.part_{v}") for v in (start, stop, 1)]
        parts.append(g.op("Slice", [folded, *bounds], f"{name}.map_{part}"))
    y = g.op("MatMul", [x, parts[0]], f"{name}.out")  # (B, N, d)
    return g.add(y, g.add(parts[1], layer.out_bias, f"{name}.bias"), f"{name}.out")


def usual_form(g: GraphBuilder, x: str, layer: FoldedXCA) -> str:
    """q, k and v as in the paper; the lengths divide the (c, c) scores, not the tokens."""
    name, (m, c, d) = layer.name, layer.out.shape
    q, k, v = (
        g.linear(x, layer.qkv[:, s], layer.qkv_bias[s], f"{name}.{part}")
        for part, s in (("q", slice(d)), ("k", slice(d, 2 * d)), ("v", slice(2 * d, 3 * d)))
    )
    with g.single():  # the lengths are sums over all tokens
        q, k = g.cast(q, f"{name}.q"), g.cast(k, f"{name}.k")
        squares = [
            g.reduce("ReduceSumSquare", part, [1], f"{name}.squares", keep=False) for part in (q, k)
        ]
        lengths = g.op("Concat", squares, f"{name}.lengths", axis=1)  # (B, 2 d)
        q, k = (g.reshape(part, [0, -1, m, c], f"{name}.by_head") for part in (q, k))
        q = g.transpose(q, [0, 2, 3, 1], f"{name}.q_transposed")
        k = g.transpose(k, [0, 2, 1, 3], f"{name}.k_transposed")
        scores = g.op("MatMul", [q, k], f"{name}.gram")  # (B, m, c, c)
        scores = g.multiply(scores, layer.temperature[None], f"{name}.tau")
    y = g.op("MatMul", [v, _mixed(g, scores, lengths, layer)], f"{name}.out")
    return g.add(y, layer.out_bias, f"{name}.out")


def _mixed(g: GraphBuilder, scores: str, squares: str, layer: FoldedXCA) -> str:
    """The map from values to outputs (B, d, d): attention over channels, then the projection.

    Attention is the softmax of q.k / (|q| |k|). Squared lengths are kept above 1e-24: the reference
    divides by max(|q|, 1e-12).

    Args:
        scores: q.k times the temperature, float32 (B, m, c, c).
        squares: squared lengths of the queries, then of the keys, float32 (B, 2 d).
    """
    name, (m, c, d) = layer.name, layer.out.shape
    with g.single():
        squares = g.op("Max", [squares, g.constant(1e-24, f"{name}.least")], f"{name}.clamp")
        lengths = g.op("Sqrt", [squares], f"{name}.sqrt")
        lengths = g.reshape(lengths, [0, 2, m, c], f"{name}.lengths_by_head")
        for index, part, shape in ((0, "q", [0, m, c, 1]), (1, "k", [0, m, 1, c])):
            which = [g.integers([v], f"{name}.{part}_{v}") for v in (index, index + 1, 1)]
            length = g.op("Slice", [lengths, *which], f"{name}.{part}_slice")
            length = g.reshape(length, shape, f"{name}.{part}_length")
            scores = g.op("Div", [scores, length], f"{name}.{part}_normalised")
        attention = g.op("Softmax", [scores], f"{name}.softmax", axis=-1)  # (B, m, c, c)
    attention = g.cast(attention, f"{name}.softmax")
    values_first = g.transpose(attention, [0, 1, 3, 2], f"{name}.values_first")
    projection = g.constant(layer.out[None], f"{name}.proj.weight")
    mixed = g.op("MatMul", [values_first, projection], f"{name}.mixed")  # (B, m, c, d)
    return g.reshape(mixed, [0, d, d], f"{name}.mixed_channels")
