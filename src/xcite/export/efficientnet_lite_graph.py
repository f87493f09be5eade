"""EfficientNet-Lite's inference graph: convolutions with BatchNorm folded in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xcite.export.folding import fold_batch_norm
from xcite.export.graph_builder import GraphBuilder
from xcite.families.efficientnet_lite import BATCH_NORM_EPS, EfficientNetLiteArchitecture


def efficientnet_lite_graph(
    graph: GraphBuilder,
    weights: Mapping[str, np.ndarray],
    architecture: EfficientNetLiteArchitecture,
) -> dict[str, list[Any]]:
    """Build everything; output names with their shapes."""

    def convolution(x: str, name: str, relu: bool = True, **options: Any) -> str:
        weight, bias = fold_batch_norm(weights, f"{name}.conv", f"{name}.bn", BATCH_NORM_EPS)
        x = graph.convolution(x, weight, bias, name, same=True, **options)
        if not relu:
            return x
        limits = [graph.constant(limit, f"{name}.{limit:g}") for limit in (0.0, 6.0)]
        return graph.op("Clip", [x, *limits], f"{name}.relu6")

    x = convolution(graph.cast("images", "images"), "conv_stem", stride=2)
    for n, block in enumerate(architecture.blocks()):
        name = f"blocks.{n}"
        y = convolution(x, f"{name}.expand") if block.expansion > 1 else x
        y = convolution(y, f"{name}.depthwise", stride=block.stride, groups=block.hidden)
        y = convolution(y, f"{name}.project", relu=False)
        x = graph.add(y, x, f"{name}.sum") if block.shortcut else y
    x = graph.op("GlobalAveragePool", [convolution(x, "conv_head")], "mean")
    x = graph.op("Flatten", [x], "flat", axis=1)
    if not architecture.num_classes:
        graph.op("Identity", [x], "embedding.out")
        return {"embedding": ["batch", architecture.num_features]}
    x = graph.linear(x, weights["head.weight"].T, weights["head.bias"], "head")
    graph.op("Identity", [x], "logits.out")
    return {"logits": ["batch", architecture.num_classes]}
