"""RegNetY's inference graph: convolutions with BatchNorm folded in, squeeze and excitation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xcite.export.folding import fold_batch_norm
from xcite.export.graph_builder import GraphBuilder
from xcite.variants import RegNetArchitecture


def regnet_graph(
    graph: GraphBuilder, weights: Mapping[str, np.ndarray], architecture: RegNetArchitecture
) -> dict[str, list[Any]]:
    """Build everything; output names with their shapes."""

    def convolution(x: str, name: str, **options: Any) -> str:
        weight, bias = fold_batch_norm(weights, f"{name}.conv", f"{name}.bn")
        return graph.convolution(x, weight, bias, name, **options)

    x = convolution(graph.cast("images", "images"), "stem", stride=2)
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
    if not architecture.num_classes:
        graph.op("Identity", [x], "embedding.out")
        return {"embedding": ["batch", architecture.num_features]}
    x = graph.linear(x, weights["head.fc.weight"].T, weights["head.fc.bias"], "head")
    graph.op("Identity", [x], "logits.out")
    return {"logits": ["batch", architecture.num_classes]}
