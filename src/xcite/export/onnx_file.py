"""An ONNX model as a file; numbers beyond the 2 GB of a protobuf lie in a second one beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST = 2**31 - 2**24  # bytes of numbers in one file; the nodes have room in the rest of 2 GiB


def write_onnx(model: "ModelProto", path: Path) -> None:
    """Write ``path``, and ``path.data`` where the numbers need it."""
    import onnx

    numbers = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save_model(model, path, **(beside if numbers > LARGEST else {}))
