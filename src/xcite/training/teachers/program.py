"""A teacher that is an ONNX or OpenVINO file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from xcite.errors import XciteError

_Predict = Callable[[np.ndarray], np.ndarray]


def open_program(path: Path) -> tuple[str, _Predict]:
    """The installed runtime's name, and a function from images float32 (B, C, H, W) to logits."""
    try:
        import openvino
    except ImportError:
        return _open_onnxruntime(path)
    try:
        core = openvino.Core()
        model = core.read_model(path)
        # Some processors would silently compute in bfloat16; a teacher's labels should not.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits = next((o for o in compiled.outputs if "logits" in o.names), compiled.output(0))
    except RuntimeError as error:
        raise XciteError(f"OpenVINO cannot read the teacher {path}: {_first(error)}") from error

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.array(compiled(images)[logits])
        except RuntimeError as error:
            raise XciteError(
                f"the teacher {path} refuses images {images.shape}: {_first(error)}; "
                "see distill.teacher_size"
            ) from error

    return "openvino", run


def _open_onnxruntime(path: Path) -> tuple[str, _Predict]:
    try:
        import onnxruntime
    except ImportError as error:
        raise XciteError(
            f"the teacher {path} needs a runtime: pip install 'xcite[deploy]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class of their own
        raise XciteError(f"ONNX Runtime cannot read the teacher {path}: {_first(error)}") from error
    names = [output.name for output in session.get_outputs()]
    logits = "logits" if "logits" in names else names[0]
    entry = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(session.run([logits], {entry: images})[0])
        except Exception as error:
            raise XciteError(
                f"the teacher {path} refuses images {images.shape}: {_first(error)}; "
                "see distill.teacher_size"
            ) from error

    return "onnxruntime", run


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
