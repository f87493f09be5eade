"""The inference graph: canonical weights in, ONNX out, folded for running. No framework needed.

Written straight from the paper's formulas, so that nothing has to be traced or optimised away:

- BatchNorm goes into the stem's and RegNet's convolutions, LayerNorm's scale and shift into the
  linear map behind it, LayerScale into the linear map before it; all in float64, exact.
- LPI's BatchNorm stands between GELU and a zero-padded convolution: its scale goes into that
  convolution, its shift stays an addition, because the padding must see it.
- Cross-covariance attention never forms q, k and v where the covariance form is cheaper.
- In class attention only CLS asks, so keys and values of the patches are never formed either; the
  last layer computes CLS alone.
- The positional encoding is a constant where the size is fixed.

Letters: B batch, H x W pixels, h x w patches, N = h w, d embed_dim, m heads, c = d / m.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite.canonical import check
from xcite.errors import XciteError
from xcite.variants import Architecture, RegNetArchitecture, XCiTArchitecture

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20  # the first with Gelu
LAYER_NORM_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
POSITION_CHANNELS = 32  # per axis: 16 frequencies, sine and cosine
TEMPERATURE = 10000.0


def build(
    weights: Mapping[str, np.ndarray],
    architecture: Architecture,
    *,
    size: tuple[int, int] | None,
    attention: str = "auto",
) -> "ModelProto":
    """The model in evaluation mode as an ONNX model, batch always dynamic.

    Args:
        weights: canonical arrays.
        size: height and width in pixels; None leaves both dynamic.
        attention: "usual", "covariance", or "auto" for the cheaper one (`prefers_covariance`).

    Returns:
        Input "images" float32 (B, C, H, W); outputs "logits" (B, K) and, for an XCiT,
        "class_attention" (B, layers, m, 1 + N).

    Raises:
        XciteError: weights that do not fit, a model without classifier, or a bad size.
    """
    check(weights, architecture)
    if not architecture.num_classes:
        raise XciteError("these weights have no classifier; an export needs one")
    if size is not None and min(size) < 1:
        raise XciteError(f"size is {size[0]} x {size[1]}; both must be at least 1")
    exact = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    graph = _Graph()
    if isinstance(architecture, RegNetArchitecture):
        outputs = _regnet(graph, exact, architecture)
    else:
        outputs = _XCiT(graph, exact, architecture, size, attention).outputs()
    return graph.model(architecture.in_chans, size, outputs)


def prefers_covariance(tokens: int | None, width: int) -> bool:
    """Whether the covariance form is the faster one for N tokens of width d.

    Multiply-adds cross at N = 1.5 d (2 N d^2 + 3 d^3 against 4 N d^2). The covariance form also
    spares the traffic of q, k and v, see benchmarks/deployment.py. A dynamic N is taken as large.
    """
    return tokens is None or tokens >= 1.5 * width


class _Graph:
    """Nodes and constants in order; a node and its output share one name, which profiles show."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[str, int] = {}

    def _name(self, wanted: str) -> str:
        count = self._names[wanted] = self._names.get(wanted, 0) + 1
        return wanted if count == 1 else f"{wanted}_{count}"

    def constant(self, value: np.ndarray | Sequence[float] | float, name: str) -> str:
        """A float32 constant."""
        name = self._name(name)
        self.constants[name] = np.ascontiguousarray(value, dtype=np.float32)
        return name

    def integers(self, values: Sequence[int], name: str) -> str:
        """An int64 constant, such as a shape."""
        name = self._name(name)
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        from onnx import helper

        name = self._name(name)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        """0 keeps an axis, -1 takes what is left."""
        return self.op("Reshape", [x, self.integers(shape, f"{name}.shape")], name)

    def transpose(self, x: str, order: Sequence[int], name: str) -> str:
        return self.op("Transpose", [x], name, perm=list(order))

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None, name: str) -> str:
        """x W + b with W (in, out)."""
        y = self.op("MatMul", [x, self.constant(weight, f"{name}.weight")], name)
        return y if bias is None else self.add(y, bias, f"{name}.bias")

    def add(self, x: str, y: "str | np.ndarray", name: str) -> str:
        if not isinstance(y, str):
            y = self.constant(y, f"{name}.value")
        return self.op("Add", [x, y], f"{name}.add")

    def multiply(self, x: str, y: "str | np.ndarray", name: str) -> str:
        if not isinstance(y, str):
            y = self.constant(y, f"{name}.value")
        return self.op("Mul", [x, y], f"{name}.mul")

    def gelu(self, x: str, name: str) -> str:
        return self.op(
            "Gelu", [x], name
        )  # exact, by erf: what the published weights were made with

    def convolution(
        self,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> str:
        kernel = weight.shape[-1]
        inputs = [x, self.constant(weight, f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias, f"{name}.bias"))
        return self.op(
            "Conv",
            inputs,
            name,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            strides=[stride, stride],
            group=groups,
        )

    def layer_norm(
        self, x: str, name: str, scale: np.ndarray, shift: np.ndarray | None = None
    ) -> str:
        """Over the last axis."""
        inputs = [x, self.constant(scale, f"{name}.scale")]
        if shift is not None:
            inputs.append(self.constant(shift, f"{name}.shift"))
        return self.op("LayerNormalization", inputs, name, axis=-1, epsilon=LAYER_NORM_EPS)

    def rms_norm(self, x: str, name: str, scale: np.ndarray) -> str:
        """LayerNorm over the last axis of something whose mean is zero there, without shift.

        In the five operations that OpenVINO and ONNX Runtime replace by one.
        """
        square = self.op("Pow", [x, self.constant(2.0, f"{name}.two")], f"{name}.square")
        axis = self.integers([-1], f"{name}.axis")
        mean = self.op("ReduceMean", [square, axis], f"{name}.mean", keepdims=1)
        mean = self.add(mean, np.array(LAYER_NORM_EPS), f"{name}.eps")
        root = self.op("Sqrt", [mean], f"{name}.root")
        return self.multiply(self.op("Div", [x, root], f"{name}.bare"), scale, name)

    def model(
        self, channels: int, size: tuple[int, int] | None, outputs: dict[str, list[Any]]
    ) -> "ModelProto":
        from onnx import TensorProto, helper, numpy_helper

        def tensor(name: str, shape: list[Any]) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        height, width = size or ("height", "width")
        for name in outputs:
            self.nodes.append(helper.make_node("Identity", [f"{name}.out"], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            "xcite",
            [tensor("images", ["batch", channels, height, width])],
            [tensor(name, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=10,  # what ONNX Runtime of the last two years reads
            producer_name="xcite",
        )


def _fold_batch_norm(
    weights: Mapping[str, np.ndarray], convolution: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """The convolution with the BatchNorm behind it: weight and bias."""
    scale, shift = _batch_norm(weights, norm)
    return weights[f"{convolution}.weight"] * scale[:, None, None, None], shift


def _batch_norm(weights: Mapping[str, np.ndarray], norm: str) -> tuple[np.ndarray, np.ndarray]:
    """BatchNorm in evaluation mode as x * scale + shift."""
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPS)
    return scale, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale


def _centred(value: np.ndarray, axis: int) -> np.ndarray:
    """With the mean over ``axis``, the output channels, taken out."""
    centred: np.ndarray = value - value.mean(axis=axis, keepdims=True)
    return centred


def _sines(count: int) -> np.ndarray:
    """Fourier features of positions 1..count of one axis: (count, 32), sines then cosines."""
    position = np.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
    angle = position[:, None] / _frequencies()
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _frequencies() -> np.ndarray:
    return TEMPERATURE ** (np.arange(0, POSITION_CHANNELS, 2) / POSITION_CHANNELS)


class _XCiT:
    def __init__(
        self,
        graph: _Graph,
        weights: Mapping[str, np.ndarray],
        architecture: XCiTArchitecture,
        size: tuple[int, int] | None,
        attention: str,
    ) -> None:
        a, patch = architecture, architecture.patch_size
        self.g, self.weights, self.a = graph, weights, a
        self.width, self.heads = a.embed_dim, a.num_heads
        self.head_width = a.embed_dim // a.num_heads
        self.grid = None if size is None else (-(-size[0] // patch), -(-size[1] // patch))
        tokens = None if self.grid is None else math.prod(self.grid)
        if attention not in ("auto", "usual", "covariance"):
            raise XciteError(f"attention is {attention!r}; choose auto, usual or covariance")
        if attention == "auto":
            attention = "covariance" if prefers_covariance(tokens, self.width) else "usual"
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
        if maps:
            self.g.op("Concat", maps, "class_attention.out", axis=1)
            result["class_attention"] = ["batch", layers, self.heads, tokens]
        return result

    def stem(self) -> str:
        """Strided convolutions, BatchNorm folded in, then the positional encoding; (B, N, d)."""
        g, x = self.g, "images"
        widths = self.a.stem_widths()
        for i in range(len(widths)):
            part = f"patch_embed.proj.{2 * i}"
            weight, bias = _fold_batch_norm(self.weights, f"{part}.0", f"{part}.1")
            if i < len(widths) - 1:
                x = g.gelu(g.convolution(x, weight, bias, part, stride=2), f"{part}.gelu")
            else:
                x = g.convolution(x, _centred(weight, 0), _centred(bias, 0), part, stride=2)
        if self.grid is None:
            self.shape = g.op("Shape", [x], "grid")  # (B, d, h, w)
        x = self.to_tokens(x, "patch_embed")
        return self.add_positions(x) if self.a.use_pos else x

    def add_positions(self, x: str) -> str:
        """Fourier features of row and column, projected; a constant where the size is fixed."""
        g = self.g
        projection = _centred(self.weights["pos_embeder.token_projection.weight"][:, :, 0, 0].T, 1)
        bias = _centred(self.weights["pos_embeder.token_projection.bias"], 0)
        # of each axis' channels the sines are the even ones, the cosines the odd ones
        axes = projection[:POSITION_CHANNELS], projection[POSITION_CHANNELS:]  # (32, d) each
        by_row, by_column = (np.concatenate([axis[0::2], axis[1::2]]) for axis in axes)
        if self.grid is not None:
            rows, columns = _sines(self.grid[0]) @ by_row, _sines(self.grid[1]) @ by_column
            encoding = (rows[:, None] + columns[None] + bias).reshape(1, -1, self.width)
            return g.add(x, encoding, "pos_embeder")
        rows_name = g.linear(self.encoding(2, "pos_embeder.rows"), by_row, bias, "pos_embeder.rows")
        rows_name = g.reshape(rows_name, [-1, 1, self.width], "pos_embeder.rows.column")
        columns_name = g.linear(
            self.encoding(3, "pos_embeder.columns"), by_column, None, "pos_embeder.columns"
        )
        grid = g.add(rows_name, columns_name, "pos_embeder.grid")  # (h, w, d)
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
        """`_sines` of a dynamic count, in the graph: (count, 32)."""
        g = self.g
        start = g.integers([axis], f"{name}.axis")
        stop = g.integers([axis + 1], f"{name}.stop")
        count = g.op("Slice", [self.shape, start, stop], f"{name}.count")
        count = g.op("Cast", [count], f"{name}.float", to=1)
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
        x = g.add(x, self.xca(x, f"{name}.attn"), f"{name}.attn.residual")
        x = g.add(x, self.local_interaction(x, f"{name}.local_mp"), f"{name}.local_mp.residual")
        axis = g.integers([-1], f"{name}.local_mp.axis")
        mean = g.op("ReduceMean", [x, axis], f"{name}.local_mp.mean", keepdims=1)
        x = g.op("Sub", [x, mean], f"{name}.local_mp.centred")
        return g.add(x, self.mlp(x, name), f"{name}.mlp.residual")

    def norm(self, x: str, name: str) -> str:
        """A block's LayerNorm without its shift, which goes into the next linear map."""
        return self.g.rms_norm(x, name, self.weights[f"{name}.weight"])

    def behind_norm(self, linear: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight (in, out) and bias of a linear map with the LayerNorm's shift in it."""
        weight = self.weights[f"{linear}.weight"].T
        bias = self.weights.get(f"{linear}.bias", np.zeros(weight.shape[1]))
        return weight, bias + self.weights[f"{norm}.bias"] @ weight

    def scaled(self, linear: str, gamma: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight (in, out) and bias of a linear map with the LayerScale behind it."""
        scale = self.weights[gamma]
        return self.weights[f"{linear}.weight"].T * scale, self.weights[f"{linear}.bias"] * scale

    def mlp(self, x: str, name: str) -> str:
        """A block's MLP with LayerNorm and LayerScale, its output of mean zero."""
        g = self.g
        x = self.norm(x, f"{name}.norm2")
        x = g.linear(x, *self.behind_norm(f"{name}.mlp.fc1", f"{name}.norm2"), f"{name}.mlp.fc1")
        weight, bias = self.scaled(f"{name}.mlp.fc2", f"{name}.gamma2")
        weight, bias = _centred(weight, 1), _centred(bias, 0)
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
        scale, shift = _batch_norm(weights, f"{name}.bn")
        x = g.multiply(g.gelu(x, f"{name}.gelu"), scale[:, None, None], f"{name}.bn")
        x = g.add(x, shift[:, None, None], f"{name}.bn")
        gamma = weights[f"{block}.gamma3"]
        weight = weights[f"{name}.conv2.weight"] * gamma[:, None, None, None]
        bias = weights[f"{name}.conv2.bias"] * gamma
        x = g.convolution(x, weight, bias, f"{name}.conv2", groups=self.width)
        return self.to_tokens(x, name)

    def xca(self, x: str, name: str) -> str:
        """Cross-covariance attention of x (B, N, d), LayerScale included."""
        block = name.removesuffix(".attn")
        x = self.norm(x, f"{block}.norm1")
        weight, bias = self.behind_norm(f"{name}.qkv", f"{block}.norm1")  # (d, 3 d), (3 d)
        out, out_bias = self.scaled(f"{name}.proj", f"{block}.gamma1")
        out = _centred(out, 1).reshape(self.heads, self.head_width, self.width)  # (m, c, d)
        form = self.covariance_form if self.covariance else self.usual_form
        return form(x, name, weight, bias, out, _centred(out_bias, 0))

    def covariance_form(
        self,
        x: str,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        out: np.ndarray,
        out_bias: np.ndarray,
    ) -> str:
        """y = x M + m with M from x^T x; the 1 of the biases is one more channel of x.

        With G = [x 1]^T [x 1] and W = [Wqkv; bqkv], both of d + 1 rows, all products of queries
        and keys are W_q^T G W_k, biases included.
        """
        g, d, m, c = self.g, self.width, self.heads, self.head_width
        full = np.concatenate([weight, bias[None]])  # (d + 1, 3 d)
        transposed = g.transpose(x, [0, 2, 1], f"{name}.transposed")
        gram = g.op("MatMul", [transposed, x], f"{name}.gram")  # (B, d, d)
        axis = g.integers([1], f"{name}.tokens_axis")
        total = g.op("ReduceSum", [x, axis], f"{name}.total", keepdims=1)  # (B, 1, d)
        # (B, d + 1, d): the last column of G is the last row's transpose and the count of tokens
        rows = g.op("Concat", [gram, total], f"{name}.rows", axis=1)
        if self.tokens is not None:
            corner = g.constant(np.full((1, 1, 1), self.tokens), f"{name}.count")
        else:
            corner = self.token_count(name)
        column = g.transpose(
            g.op("Concat", [total, self.batched(corner, total, name)], f"{name}.column", axis=2),
            [0, 2, 1],
            f"{name}.last",
        )  # (B, d + 1, 1)
        gram = g.op("Concat", [rows, column], f"{name}.augmented", axis=2)  # (B, d + 1, d + 1)
        products = g.linear(gram, full[:, : 2 * d], None, f"{name}.products")  # (B, d + 1, 2 d)
        squares = g.multiply(products, full[None, :, : 2 * d], f"{name}.squares")
        squares = g.op("ReduceSum", [squares, axis], f"{name}.lengths", keepdims=0)  # (B, 2 d)
        keys = g.op(
            "Slice",
            [products, *(g.integers([v], f"{name}.key_{v}") for v in (d, 2 * d, 2))],
            f"{name}.keys",
        )
        keys = g.reshape(keys, [0, d + 1, m, c], f"{name}.keys_by_head")
        keys = g.transpose(keys, [0, 2, 1, 3], f"{name}.keys_head_first")  # (B, m, d + 1, c)
        queries = full[:, :d].reshape(d + 1, m, c).transpose(1, 2, 0)  # (m, c, d + 1)
        queries = queries * self.weights[f"{name}.temperature"]
        scores = g.op(
            "MatMul", [g.constant(queries[None], f"{name}.queries"), keys], f"{name}.scores"
        )
        attention = self.channel_attention(scores, squares, name)  # (B, m, c, c)
        mixed = g.op(
            "MatMul",
            [
                g.transpose(attention, [0, 1, 3, 2], f"{name}.values_first"),
                g.constant(out[None], f"{name}.proj.weight"),
            ],
            f"{name}.mixed",
        )  # (B, m, c, d)
        mixed = g.reshape(mixed, [0, d, d], f"{name}.mixed_channels")
        values = g.constant(full[None, :, 2 * d :], f"{name}.values")  # (1, d + 1, d)
        folded = g.op("MatMul", [values, mixed], f"{name}.folded")  # (B, d + 1, d)
        parts = [
            g.op(
                "Slice",
                [folded, *(g.integers([v], f"{name}.part_{v}") for v in (start, stop, 1))],
                f"{name}.map_{part}",
            )
            for part, start, stop in (("weight", 0, d), ("bias", d, d + 1))
        ]
        y = g.op("MatMul", [x, parts[0]], f"{name}.out")  # (B, N, d)
        return g.add(y, g.add(parts[1], out_bias, f"{name}.bias"), f"{name}.out")

    def token_count(self, name: str) -> str:
        """N as float32 (1, 1, 1)."""
        g = self.g
        ends = [g.integers([v], f"{name}.grid_{v}") for v in (2, 4)]
        grid = g.op("Slice", [self.shape, *ends], f"{name}.grid_shape")
        count = g.op("ReduceProd", [grid], f"{name}.tokens_count", keepdims=1)
        count = g.op("Cast", [count], f"{name}.tokens_float", to=1)
        return g.reshape(count, [1, 1, 1], f"{name}.corner")

    def batched(self, value: str, like: str, name: str) -> str:
        """``value`` (1, 1, n) repeated to (B, 1, n); B is that of ``like``."""
        g = self.g
        shape = g.op("Shape", [like], f"{name}.batch", start=0, end=1)
        ones = g.integers([1, 1], f"{name}.ones")
        shape = g.op("Concat", [shape, ones], f"{name}.batch_shape", axis=0)
        return g.op("Expand", [value, shape], f"{name}.batched")

    def channel_attention(self, scores: str, squares: str, name: str) -> str:
        """Softmax over channels of q.k / (|q| |k|); scores (B, m, c, c) hold the temperature.

        Squared lengths are kept above 1e-24: the reference divides by max(|q|, 1e-12).
        """
        g, m, c = self.g, self.heads, self.head_width
        squares = g.op("Max", [squares, g.constant(1e-24, f"{name}.least")], f"{name}.clamp")
        lengths = g.op("Sqrt", [squares], f"{name}.sqrt")
        lengths = g.reshape(lengths, [0, 2, m, c], f"{name}.lengths_by_head")
        for index, part, shape in ((0, "q", [0, m, c, 1]), (1, "k", [0, m, 1, c])):
            which = [g.integers([v], f"{name}.{part}_{v}") for v in (index, index + 1, 1)]
            length = g.op("Slice", [lengths, *which], f"{name}.{part}_slice")
            length = g.reshape(length, shape, f"{name}.{part}_length")
            scores = g.op("Div", [scores, length], f"{name}.{part}_normalised")
        return g.op("Softmax", [scores], f"{name}.softmax", axis=-1)

    def usual_form(
        self,
        x: str,
        name: str,
        weight: np.ndarray,
        bias: np.ndarray,
        out: np.ndarray,
        out_bias: np.ndarray,
    ) -> str:
        """q, k and v as in the paper; the lengths divide the (c, c) scores, not the tokens."""
        g, d, m, c = self.g, self.width, self.heads, self.head_width
        q, k, v = (
            g.linear(x, weight[:, s], bias[s], f"{name}.{part}")
            for part, s in (("q", slice(d)), ("k", slice(d, 2 * d)), ("v", slice(2 * d, 3 * d)))
        )
        axis = g.integers([1], f"{name}.tokens_axis")
        squares = [
            g.op("ReduceSumSquare", [part, axis], f"{name}.squares", keepdims=0) for part in (q, k)
        ]
        squares_all = g.op("Concat", squares, f"{name}.lengths", axis=1)  # (B, 2 d)
        heads = [g.reshape(part, [0, -1, m, c], f"{name}.by_head") for part in (q, k)]
        scores = g.op(
            "MatMul",
            [
                g.transpose(heads[0], [0, 2, 3, 1], f"{name}.q_transposed"),
                g.transpose(heads[1], [0, 2, 1, 3], f"{name}.k_transposed"),
            ],
            f"{name}.gram",
        )  # (B, m, c, c)
        tau = self.weights[f"{name}.temperature"][None]
        attention = self.channel_attention(
            g.multiply(scores, tau, f"{name}.tau"), squares_all, name
        )
        mixed = g.op(
            "MatMul",
            [
                g.transpose(attention, [0, 1, 3, 2], f"{name}.values_first"),
                g.constant(out[None], f"{name}.proj.weight"),
            ],
            f"{name}.mixed",
        )
        mixed = g.reshape(mixed, [0, d, d], f"{name}.mixed_channels")
        y = g.op("MatMul", [v, mixed], f"{name}.out")
        return g.add(y, out_bias, f"{name}.out")

    def class_attention(self, patches: str) -> list[str]:
        """Class attention, final norm and classifier; per layer the attention (B, 1, m, 1 + N).

        CLS (B, 1, d) and patches (B, N, d) stay apart, so the patches are never copied.
        """
        g, weights, layers = self.g, self.weights, self.a.cls_attn_layers
        token = g.constant(weights["cls_token"], "cls_token")
        cls = self.batched(token, patches, "cls_token")
        maps = []
        for i in range(layers):
            name = f"cls_attn_blocks.{i}"
            norm = (weights[f"{name}.norm1.weight"], weights[f"{name}.norm1.bias"])
            gamma = weights[f"{name}.gamma1"]
            normed = g.layer_norm(patches, f"{name}.norm1.patches", *norm)
            answer, attention = self.ask(
                g.layer_norm(cls, f"{name}.norm1.cls", *norm), normed, f"{name}.attn"
            )
            maps.append(attention)
            cls = g.add(cls, answer, f"{name}.attn.residual")
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
            out = self.scaled(f"{name}.mlp.fc2", f"{name}.gamma2")
            step = g.gelu(g.linear(cls, *hidden, f"{name}.mlp.fc1"), f"{name}.mlp.gelu")
            cls = g.add(cls, g.linear(step, *out, f"{name}.mlp.fc2"), f"{name}.mlp.residual")
        last = weights["norm.weight"], weights["norm.bias"]
        cls = g.layer_norm(g.reshape(cls, [0, self.width], "cls"), "norm", *last)
        head = g.linear(cls, weights["head.weight"].T, weights["head.bias"], "head")
        g.op("Identity", [head], "logits.out")
        return maps

    def ask(self, cls: str, patches: str, name: str) -> tuple[str, str]:
        """CLS (B, 1, d) asks itself and the patches; the answer with LayerScale, and the attention.

        The keys' bias adds the same to every score of a head and drops out of the softmax.
        """
        g, d, m, c = self.g, self.width, self.heads, self.head_width
        block = name.removesuffix(".attn")
        qkv = self.weights[f"{name}.qkv.weight"].T  # (d, 3 d)
        bias = self.weights.get(f"{name}.qkv.bias", np.zeros(3 * d))
        scale = c**-0.5 if self.a.attention_scale is None else self.a.attention_scale
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
        weight, out_bias = self.scaled(f"{name}.proj", f"{block}.gamma1")
        out_bias = out_bias + bias[2 * d :] @ weight  # attention sums to 1: the values' bias passes
        answer = g.linear(value, weight, out_bias, f"{name}.proj")
        axis = g.integers([1], f"{name}.layer_axis")
        return answer, g.op("Unsqueeze", [attention, axis], f"{name}.map")


def _regnet(
    graph: _Graph, weights: Mapping[str, np.ndarray], architecture: RegNetArchitecture
) -> dict[str, list[Any]]:
    def convolution(x: str, name: str, **options: Any) -> str:
        weight, bias = _fold_batch_norm(weights, f"{name}.conv", f"{name}.bn")
        return graph.convolution(x, weight, bias, name, **options)

    x = convolution("images", "stem", stride=2)
    x = graph.op("Relu", [x], "stem.relu")
    for s, (_, depth, groups) in enumerate(architecture.stages(), 1):
        for b in range(1, depth + 1):
            block, stride = f"s{s}.b{b}", 2 if b == 1 else 1
            y = graph.op("Relu", [convolution(x, f"{block}.conv1")], f"{block}.relu1")
            y = convolution(y, f"{block}.conv2", stride=stride, groups=groups)
            y = graph.op("Relu", [y], f"{block}.relu2")
            if architecture.se_ratio:
                gate = graph.op("GlobalAveragePool", [y], f"{block}.se.mean")
                for part, kind in (("fc1", "Relu"), ("fc2", "Sigmoid")):
                    name = f"{block}.se.{part}"
                    gate = graph.convolution(
                        gate, weights[f"{name}.weight"], weights[f"{name}.bias"], name
                    )
                    gate = graph.op(kind, [gate], f"{name}.{kind}")
                y = graph.multiply(y, gate, f"{block}.se")
            y = convolution(y, f"{block}.conv3")
            if b == 1:
                x = convolution(x, f"{block}.downsample", stride=stride)
            x = graph.op("Relu", [graph.add(y, x, f"{block}.residual")], f"{block}.relu3")
    x = graph.op("GlobalAveragePool", [x], "mean")
    x = graph.op("Flatten", [x], "flat", axis=1)
    x = graph.linear(x, weights["head.fc.weight"].T, weights["head.fc.bias"], "head")
    graph.op("Identity", [x], "logits.out")
    return {"logits": ["batch", architecture.num_classes]}
