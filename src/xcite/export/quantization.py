"""int8 after training, with NNCF, for those parts of an XCiT that tolerate it and gain from it.

The MLPs and the stem hold most of the multiply-adds and quantise well. Everything else stays in
float: in cross-covariance attention the clamp before the reciprocal root becomes zero when it is
quantised, and the logits NaN; the depthwise convolutions gain nothing.
"""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from xcite.errors import XciteError

CALIBRATION_PICTURES = 128
BEARS_INT8 = re.compile(r"^(blocks\.\d+\.mlp\.fc[12]|patch_embed\.proj\.\d+)(/WithoutBiases)?$")


def quantise(model: Any, images: list[np.ndarray]) -> Any:
    """The OpenVINO model with 8-bit weights and activations in MLPs and stem.

    Args:
        model: what OpenVINO makes of `xcite.export.graph.build`.
        images: normalised float32 (1, C, H, W) each, to find the activations' ranges with.

    Raises:
        XciteError: NNCF is missing, or the graph has nothing to quantise.
    """
    try:
        import nncf
    except ImportError as error:
        raise XciteError("int8 needs NNCF: pip install 'xcite[deploy]'") from error

    kept, chosen = [], []
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        if operation.get_type_name() in ("MatMul", "Convolution") and BEARS_INT8.match(name):
            chosen.append(name)
        elif operation.get_type_name() not in ("Constant", "Parameter", "Result"):
            kept.append(name)
    if not chosen:
        raise XciteError("int8 is made for XCiT; this graph has none of its MLPs and stem")
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,  # GELU's outputs are not symmetric
            subset_size=len(images),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF lists every name it was told to ignore and draws progress bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
