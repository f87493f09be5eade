"""An ONNX graph, node by node. Knows nothing of models.

Operators that an older operator set lacks are written out: Gelu before 20, LayerNormalization
before 17, and the axes of reductions, which were attributes before 18.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = range(13, 24)  # that the graphs can be written in
OPSET = 20  # the first with Gelu
LAYER_NORM_EPS = 1e-6

_GELU, _LAYER_NORM, _AXES_AS_INPUT, _SHAPE_OF_PART = 20, 17, 18, 15  # first operator set with it


class GraphBuilder:
    """Nodes and constants in order; a node and its output share one name, which profiles show.

    Attributes:
        dtype: of the constants that come next, and what `cast` casts to.
    """

    def __init__(self, opset: int = OPSET, *, half: bool = False) -> None:
        """Begin a graph in an operator set of `OPSETS`; ``half`` computes in float16."""
        self.opset = opset
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._types: dict[str, np.dtype[Any]] = {"images": np.dtype(np.float32)}
        self._names: dict[str, int] = {}

    def _name(self, wanted: str) -> str:
        count = self._names[wanted] = self._names.get(wanted, 0) + 1
        return wanted if count == 1 else f"{wanted}_{count}"

    def constant(self, value: np.ndarray | Sequence[float] | float, name: str) -> str:
        """A constant of the current type."""
        return self._constant(np.ascontiguousarray(value, dtype=self.dtype), name)

    def integers(self, values: Sequence[int], name: str) -> str:
        """An int64 constant, such as a shape."""
        return self._constant(np.asarray(values, np.int64), name)

    def _constant(self, value: np.ndarray, name: str) -> str:
        name = self._name(name)
        self.constants[name] = value
        self._types[name] = value.dtype
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, of its first input's type; returns the output's name."""
        from onnx import helper

        name = self._name(name)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        self._types[name] = np.dtype(np.int64) if kind == "Shape" else self._types[inputs[0]]
        return name

    @contextlib.contextmanager
    def single(self) -> Iterator[None]:
        """Compute in float32 meanwhile: sums over many values, and what is tiny or is divided by.

        `cast` what goes in, and what comes out behind it.
        """
        before, self.dtype = self.dtype, np.dtype(np.float32)
        try:
            yield
        finally:
            self.dtype = before

    def cast(self, x: str, name: str) -> str:
        """x in the current type; x itself where it has that already."""
        from onnx import helper

        if self._types[x] == self.dtype:
            return x
        to = helper.np_dtype_to_tensor_dtype(self.dtype)
        y = self.op("Cast", [x], f"{name}.{self.dtype}", to=to)
        self._types[y] = self.dtype
        return y

    def reduce(self, kind: str, x: str, axes: Sequence[int], name: str, *, keep: bool) -> str:
        """ReduceMean and its kin over the axes, which stay with size 1 if they are kept."""
        options: dict[str, Any] = {"keepdims": int(keep)}
        if self.opset >= (13 if kind == "ReduceSum" else _AXES_AS_INPUT):
            return self.op(kind, [x, self.integers(axes, f"{name}.axes")], name, **options)
        return self.op(kind, [x], name, axes=list(axes), **options)

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        """0 keeps an axis, -1 takes what is left."""
        return self.op("Reshape", [x, self.integers(shape, f"{name}.shape")], name)

    def transpose(self, x: str, order: Sequence[int], name: str) -> str:
        """Axes in another order."""
        return self.op("Transpose", [x], name, perm=list(order))

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None, name: str) -> str:
        """x W + b with W (in, out)."""
        y = self.op("MatMul", [x, self.constant(weight, f"{name}.weight")], name)
        return y if bias is None else self.add(y, bias, f"{name}.bias")

    def add(self, x: str, y: "str | np.ndarray", name: str) -> str:
        """x + y, y a name or a constant."""
        if not isinstance(y, str):
            y = self.constant(y, f"{name}.value")
        return self.op("Add", [x, y], f"{name}.add")

    def multiply(self, x: str, y: "str | np.ndarray", name: str) -> str:
        """x * y, y a name or a constant."""
        if not isinstance(y, str):
            y = self.constant(y, f"{name}.value")
        return self.op("Mul", [x, y], f"{name}.mul")

    def gelu(self, x: str, name: str) -> str:
        """Exact, by erf: what the published weights were made with."""
        if self.opset >= _GELU:
            return self.op("Gelu", [x], name)
        # in the order of operations that runtimes replace by one
        y = self.op("Div", [x, self.constant(math.sqrt(2), f"{name}.root")], f"{name}.scaled")
        y = self.op("Erf", [y], f"{name}.erf")
        y = self.op("Add", [y, self.constant(1.0, f"{name}.one")], f"{name}.shifted")
        y = self.op("Mul", [x, y], f"{name}.doubled")
        return self.op("Mul", [y, self.constant(0.5, f"{name}.half")], name)

    def convolution(
        self,
        x: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        name: str,
        *,
        stride: int = 1,
        groups: int = 1,
        same: bool = False,
    ) -> str:
        """Square kernel (out, in / groups, k, k), zero padding that keeps the size at stride 1.

        Args:
            same: pad as TensorFlow does; where the zeros are odd in number, one more behind.
        """
        kernel = weight.shape[-1]
        inputs = [x, self.constant(weight, f"{name}.weight")]
        if bias is not None:
            inputs.append(self.constant(bias, f"{name}.bias"))
        return self.op(
            "Conv",
            inputs,
            name,
            kernel_shape=[kernel, kernel],
            **({"auto_pad": "SAME_UPPER"} if same else {"pads": [kernel // 2] * 4}),
            strides=[stride, stride],
            group=groups,
        )

    def layer_norm(
        self, x: str, name: str, scale: np.ndarray, shift: np.ndarray | None = None
    ) -> str:
        """Over the last axis."""
        if self.opset >= _LAYER_NORM:  # which sums in float32 whatever the type
            inputs = [x, self.constant(scale, f"{name}.scale")]
            if shift is not None:
                inputs.append(self.constant(shift, f"{name}.shift"))
            return self.op("LayerNormalization", inputs, name, axis=-1, epsilon=LAYER_NORM_EPS)
        with self.single():
            x = self.cast(x, name)
            mean = self.reduce("ReduceMean", x, [-1], f"{name}.centre", keep=True)
            y = self.rms_norm(self.op("Sub", [x, mean], f"{name}.centred"), name, scale)
            y = y if shift is None else self.add(y, shift, f"{name}.shift")
        return self.cast(y, name)

    def rms_norm(self, x: str, name: str, scale: np.ndarray) -> str:
        """LayerNorm over the last axis of something whose mean is zero there, without shift.

        In the five operations that OpenVINO and ONNX Runtime replace by one.
        """
        with self.single():
            x = self.cast(x, name)
            square = self.op("Pow", [x, self.constant(2.0, f"{name}.two")], f"{name}.square")
            mean = self.reduce("ReduceMean", square, [-1], f"{name}.mean", keep=True)
            mean = self.add(mean, np.array(LAYER_NORM_EPS), f"{name}.eps")
            root = self.op("Sqrt", [mean], f"{name}.root")
            y = self.multiply(self.op("Div", [x, root], f"{name}.bare"), scale, name)
        return self.cast(y, name)

    def batched(self, value: str, like: str, name: str) -> str:
        """``value`` (1, 1, n) repeated to (B, 1, n); B is that of ``like``."""
        if self.opset >= _SHAPE_OF_PART:
            batch = self.op("Shape", [like], f"{name}.batch", start=0, end=1)
        else:
            ends = [self.integers([end], f"{name}.end_{end}") for end in (0, 1)]
            whole = self.op("Shape", [like], f"{name}.whole_shape")
            batch = self.op("Slice", [whole, *ends], f"{name}.batch")
        ones = self.integers([1, 1], f"{name}.ones")
        shape = self.op("Concat", [batch, ones], f"{name}.batch_shape", axis=0)
        return self.op("Expand", [value, shape], f"{name}.batched")

    def model(
        self,
        name: str,
        channels: int,
        size: tuple[int, int] | None,
        outputs: dict[str, list[Any]],
    ) -> "ModelProto":
        """The finished model; each output NAME is what the node "NAME.out" computes.

        Args:
            name: of the graph.
            channels: of the input "images" (batch, channels, height, width).
            size: height and width in pixels; None leaves both dynamic.
            outputs: names to shapes, a text for a dynamic axis.
        """
        from onnx import TensorProto, helper, numpy_helper

        def tensor(name: str, shape: list[Any]) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        height, width = size or ("height", "width")
        with self.single():  # programs take and give float32, whatever they compute in
            for output in outputs:
                y = self.cast(f"{output}.out", output)
                self.nodes.append(helper.make_node("Identity", [y], [output], name=output))
        graph = helper.make_graph(
            self.nodes,
            name,
            [tensor("images", ["batch", channels, height, width])],
            [tensor(output, shape) for output, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=helper.find_min_ir_version_for([opset]),  # old runtimes read old files
            producer_name="xcite",
            producer_version=__version__,
        )
