"""The inference graph: canonical weights in, ONNX out, folded for running. No framework needed.

Written straight from the paper's formulas, so that nothing has to be traced or optimised away:

- BatchNorm goes into the convolution before it, LayerNorm's scale and shift into the linear map
  behind it, LayerScale into the linear map before it; all in float64, exact.
- LPI's BatchNorm stands between GELU and a zero-padded convolution: its scale goes into that
  convolution, its shift stays an addition, because the padding must see it.
- Cross-covariance attention never forms q, k and v where the covariance form is cheaper.
- In class attention CLS is the only query, so keys and values of the patches are never formed
  either; the last layer computes CLS alone.
- The positional encoding is a constant where the size is fixed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xcite.canonical import check
from xcite.errors import XciteError
from xcite.export.efficientnet_lite_graph import efficientnet_lite_graph
from xcite.export.graph_builder import OPSET, OPSETS, GraphBuilder
from xcite.export.regnet_graph import regnet_graph
from xcite.export.xcit_graph import XCiTGraph
from xcite.variants import (
    Architecture,
    EfficientNetLiteArchitecture,
    RegNetArchitecture,
    XCiTArchitecture,
)

if TYPE_CHECKING:
    from onnx import ModelProto


def build(
    weights: Mapping[str, np.ndarray],
    architecture: Architecture,
    *,
    size: tuple[int, int] | None,
    attention: str = "auto",
    opset: int = OPSET,
    half: bool = False,
    bf16: bool = False,
    name: str | None = None,
) -> "ModelProto":
    """The model in evaluation mode as an ONNX model, batch always dynamic.

    Args:
        weights: canonical arrays.
        size: height and width in pixels; None leaves both dynamic.
        attention: "usual", "covariance", or "auto" for the cheaper one, see
            `xcite.export.xcit_graph.prefers_covariance`.
        opset: ONNX's operator set, one of `OPSETS`.
        half: compute in float16, but for norms and the lengths in attention; input and outputs stay
            float32.
        bf16: the graph is to run in bfloat16, or int8 and that: decides what "auto" is.
        name: of the graph; the family's if None.

    Returns:
        Input "images" float32 (B, C, H, W); outputs "logits" (B, K), without a classifier
        "embedding" (B, d), and, for an XCiT, "class_attention" (B, layers, m, 1 + N).

    Raises:
        XciteError: weights that do not fit, a bad size, another operator set, or tensors that the
            graph does not compute with.
    """
    check(weights, architecture)
    if opset not in OPSETS:
        raise XciteError(f"opset is {opset}; choose {OPSETS[0]} to {OPSETS[-1]}")
    if size is not None and min(size) < 1:
        raise XciteError(f"size is {size[0]} x {size[1]}; both must be at least 1")
    exact = _Read({name: np.asarray(value, np.float64) for name, value in weights.items()})
    graph = GraphBuilder(opset, half=half)
    if isinstance(architecture, RegNetArchitecture):
        outputs = regnet_graph(graph, exact, architecture)
    elif isinstance(architecture, EfficientNetLiteArchitecture):
        outputs = efficientnet_lite_graph(graph, exact, architecture)
    else:
        outputs = XCiTGraph(graph, exact, architecture, size, attention, bf16).outputs()
    unread = [n for n in exact if n not in exact.names and not n.endswith("num_batches_tracked")]
    if unread:  # a field of the architecture that the graph does not know would change its answers
        raise XciteError(f"the exported graph would leave out {', '.join(unread[:4])}")
    return graph.model(name or architecture.kind, architecture.in_chans, size, outputs)


class _Read(dict[str, np.ndarray]):
    """Weights that note which of them were read."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__(weights)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def bears_int8(architecture: Architecture) -> bool:
    """Whether the family has parts that `xcite.export.quantization` can put in 8 bits."""
    return isinstance(architecture, XCiTArchitecture)
