"""OpenVINO's float32 graphs, rewritten for processors with AVX2 alone.

OpenVINO hands a linear map with GELU behind it to another kernel than one without, slower there by
more than GELU takes as a rational function; and the hidden layer of a batch is larger than a cache.
Numbers differ by rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xcite.processor import this_processor

# Of the error function, within 3e-7 for |x| <= 4 and so everywhere: Eigen's and XLA's, which
# `engines/kernels/gelu.h` has, too; x P(x^2) / Q(x^2), highest power first.
NUMERATOR = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
DENOMINATOR = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)
# Of the hidden layer of an MLP at a time: a slice that stays in the cache, large enough for the
# products to be as fast as ever.
SLICE_BYTES = 6 << 20


def pay(floats: str) -> bool:
    """Whether rewritten graphs are the faster ones here.

    Args:
        floats: what is not quantised runs in: "f32" or "bf16".
    """
    return floats == "f32" and this_processor().instruction_set == "AVX2"


def rewrite(model: Any) -> None:
    """GELU as a rational function, and MLPs of static shape on slices of tokens; in place.

    Args:
        model: an openvino.Model that will run in float32.
    """
    from openvino.utils import replace_node

    for gelu in model.get_ordered_ops():
        if gelu.get_type_name() != "Gelu" or gelu.get_element_type().get_type_name() != "f32":
            continue
        if gelu.get_attributes().get("approximation_mode", "ERF") != "ERF":
            continue
        last, new = _sliced_mlp(gelu) or (gelu, _gelu(gelu.input_value(0)))
        new.set_friendly_name(last.get_friendly_name())
        replace_node(last, new)
    model.validate_nodes_and_infer_types()


Map = Callable[[Any], Any]


def _sliced_mlp(gelu: Any) -> tuple[Any, Any] | None:
    """The last node of the MLP around a GELU, and what takes its place; None without need."""
    hidden = gelu.get_output_partial_shape(0)
    before, behind = _linear_before(gelu), _linear_behind(gelu)
    if before is None or behind is None or hidden.is_dynamic:
        return None
    slices = -(-4 * math.prod(hidden.to_shape()) // SLICE_BYTES)
    if slices < 2:
        return None
    (x, into), (last, out_of) = before, behind
    return last, _in_slices(x, slices, lambda part: out_of(_gelu(into(part))))


def _linear_before(node: Any) -> tuple[Any, Map] | None:
    """What a linear map in front of the node takes, and the map of rows (T, C)."""
    source = node.input_value(0).get_node()
    bias = None
    if source.get_type_name() == "Add" and _is_constant(source.input_value(1)):
        bias, source = source.input_value(1), source.input_value(0).get_node()
    if not _is_product(source):
        return None
    return source.input_value(0), _linear(source, bias)


def _linear_behind(node: Any) -> tuple[Any, Map] | None:
    """The last node of a linear map that alone takes the node's output, and the map of rows."""
    product = _only_reader(node)
    if product is None or not _is_product(product):
        return None
    add = _only_reader(product)
    if add is not None and add.get_type_name() == "Add" and _is_constant(add.input_value(1)):
        return add, _linear(product, add.input_value(1))
    return product, _linear(product, None)


def _only_reader(node: Any) -> Any:
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _is_product(node: Any) -> bool:
    """Whether rows are multiplied by a constant matrix."""
    return (
        node.get_type_name() == "MatMul"
        and not node.get_attributes()["transpose_a"]
        and _is_constant(node.input_value(1))
        and node.input_value(1).get_partial_shape().rank.get_length() == 2
    )


def _is_constant(output: Any) -> bool:
    node = output.get_node()
    while node.get_type_name() == "Convert":  # weights may be kept in float16
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _linear(product: Any, bias: Any) -> Map:
    from openvino import opset14 as ops

    weight, turned = product.input_value(1), product.get_attributes()["transpose_b"]
    if bias is not None:
        bias = ops.reshape(bias, np.array([-1]), special_zero=False)

    def apply(rows: Any) -> Any:
        y = ops.matmul(rows, weight, False, turned)
        return y if bias is None else ops.add(y, bias)

    return apply


def _in_slices(x: Any, slices: int, function: Map) -> Any:
    """The function of rows on slices of x (..., C), of static shape."""
    from openvino import opset14 as ops

    shape = list(x.get_shape())
    count = math.prod(shape[:-1])
    slices = min(slices, count)
    bounds = np.linspace(0, count, slices + 1).astype(np.int64)
    rows = ops.reshape(x, np.array([count, shape[-1]]), special_zero=False)
    parts = ops.variadic_split(rows, np.int64(0), np.diff(bounds))
    y = ops.concat([function(part) for part in parts.outputs()], 0)
    return ops.reshape(y, np.array([*shape[:-1], -1]), special_zero=False)


def _gelu(x: Any) -> Any:
    """x times the normal distribution's function of x."""
    from openvino import opset14 as ops

    def polynomial(coefficients: tuple[float, ...], s: Any) -> Any:
        y = np.float32(coefficients[0])
        for coefficient in coefficients[1:]:
            y = ops.add(ops.multiply(y, s), np.float32(coefficient))
        return y

    t = ops.clamp(ops.multiply(x, np.float32(0.5**0.5)), -4.0, 4.0)
    s = ops.multiply(t, t)
    ratio = ops.divide(ops.multiply(t, polynomial(NUMERATOR, s)), polynomial(DENOMINATOR, s))
    half = np.float32(0.5)
    return ops.multiply(x, ops.add(ops.multiply(ratio, half), half))
