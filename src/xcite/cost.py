"""What a model costs, counted from shapes.

Counted are the multiply-adds of convolutions, linear maps and attention products, one image. Norms,
activations, softmax and sums are not: they move memory rather than multiply. The usual form agrees
with timm's published counts to 1 % (class attention is where counters differ).
"""

import math

from xcite.variants import Architecture, RegNetArchitecture, XCiTArchitecture


def multiply_adds(
    architecture: Architecture, height: int, width: int, *, form: str = "usual"
) -> int:
    """Multiply-adds of one forward pass of one image.

    Args:
        height, width: input size in pixels.
        form: "usual" is the published computation, "covariance" the exact cheaper one (XCA through
            X^T X, class attention for CLS alone, only CLS in the last layer).
    """
    if isinstance(architecture, RegNetArchitecture):
        return _regnet(architecture, height, width)
    return _xcit(architecture, height, width, covariance=form == "covariance")


def _xcit(a: XCiTArchitecture, height: int, width: int, *, covariance: bool) -> int:
    d, head = a.embed_dim, a.embed_dim // a.num_heads
    hidden = int(d * a.mlp_ratio)
    total, into = 0, a.in_chans
    for out in a.stem_widths():
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        total += height * width * out * into * 9
        into = out
    n = height * width
    if a.use_pos:
        total += n * 64 * d
    mlp, local = 2 * d * hidden, 2 * 9 * d
    if covariance:
        # G = X^T X and Y = X M over the tokens; the rest is d x d. What PyTorch spends more to have
        # squares and products in one is not needed and not counted.
        attention = 2 * n * d * d + 3 * d**3 + 2 * d * d * head
    else:
        attention = 4 * n * d * d + 2 * n * d * head
    total += a.depth * (attention + n * (mlp + local))
    for _ in range(a.cls_attn_layers):
        if covariance:
            total += 2 * (n + 1) * d * a.num_heads + 4 * d * d
        else:
            total += (n + 1) * 3 * d * d + 2 * (n + 1) * d + d * d
        total += mlp  # of CLS alone
    return total + d * a.num_classes


def _regnet(a: RegNetArchitecture, height: int, width: int) -> int:
    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total, into = height * width * a.stem_width * a.in_chans * 9, a.stem_width
    for out, depth, groups in a.stages():
        for block in range(depth):
            total += height * width * into * out  # conv1, before the stride
            if block == 0:
                height, width = math.ceil(height / 2), math.ceil(width / 2)
                total += height * width * into * out  # downsample
            total += height * width * (out * out // groups * 9 + out * out)
            total += 2 * out * round(into * a.se_ratio)
            into = out
    return total + into * a.num_classes
