"""An ONNX graph, node by node. Knows nothing of models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20  # the first with Gelu
LAYER_NORM_EPS = 1e-6


class GraphBuilder:
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
        return self.op("Gelu", [x], name)

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
        """Square kernel (out, in / groups, k, k), zero padding that keeps the size at stride 1."""
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

    def batched(self, value: str, like: str, name: str) -> str:
        """``value`` (1, 1, n) repeated to (B, 1, n); B is that of ``like``."""
        shape = self.op("Shape", [like], f"{name}.batch", start=0, end=1)
        ones = self.integers([1, 1], f"{name}.ones")
        shape = self.op("Concat", [shape, ones], f"{name}.batch_shape", axis=0)
        return self.op("Expand", [value, shape], f"{name}.batched")

    def model(
        self, channels: int, size: tuple[int, int] | None, outputs: dict[str, list[Any]]
    ) -> "ModelProto":
        """The finished model; each output NAME is what the node "NAME.out" computes.

        Args:
            channels: of the input "images" (batch, channels, height, width).
            size: height and width in pixels; None leaves both dynamic.
            outputs: names to shapes, a text for a dynamic axis.
        """
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
