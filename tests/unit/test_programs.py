"""One loader for exported programs: by hand on a graph that adds and multiplies."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xcite.errors import XciteError
from xcite.runtime.programs import open_program

onnx = pytest.importorskip("onnx")


def write(path: Path, outputs: tuple[str, ...], batch: int | str = "batch") -> Path:
    """Outputs k = 1, 2, ...: the mean of each channel, times k."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("ReduceMean", ["pictures", "axes"], ["mean"], keepdims=0)]
    constants = [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")]
    for k, name in enumerate(outputs, 1):
        constants.append(numpy_helper.from_array(np.array(k, np.float32), f"times {k}"))
        nodes.append(helper.make_node("Mul", ["mean", f"times {k}"], [name]))
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [batch, 2, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in outputs],
        constants,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


RUNTIMES = pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])


@RUNTIMES
def test_a_bare_program_runs_whatever_its_names(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    images = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 2).transpose(0, 3, 1, 2)
    means = images.mean((2, 3))
    program = open_program(write(tmp_path / "a.onnx", ("other", "logits")), runtime=runtime)
    assert (program.name, program.precision) == (runtime, "f32")
    found = program.run(images)
    np.testing.assert_allclose(found["other"], means)
    np.testing.assert_allclose(program.logits(images), 2 * means)
    program = open_program(write(tmp_path / "b.onnx", ("out", "more")), runtime=runtime, threads=1)
    np.testing.assert_allclose(program.logits(images), means)


@RUNTIMES
def test_what_does_not_fit_is_named_as_the_caller_says(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    path = write(tmp_path / "a.onnx", ("logits",))
    program = open_program(path, runtime=runtime, called="the teacher a")
    with pytest.raises(XciteError, match=r"^the teacher a refuses images \(1, 3, 4, 4\): .") as one:
        program.run(np.zeros((1, 3, 4, 4), np.float32))
    path.write_bytes(b"no graph")
    with pytest.raises(XciteError, match=r" cannot read the teacher a: .") as two:
        open_program(path, runtime=runtime, called="the teacher a")
    for caught in (one, two):
        assert "\n" not in str(caught.value)
        assert "Exception from" not in str(caught.value)


def test_openvino_takes_batches_of_the_usual_size_apart(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write(tmp_path / "a.onnx", ("logits",))
    program = open_program(path, runtime="openvino", usual=(4, 4), streams=2)
    for shape in ((7, 2, 4, 4), (23, 2, 4, 4), (3, 2, 5, 4)):
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(program.logits(images), images.mean((2, 3)), atol=1e-6)


def test_a_replaced_file_changes_no_answer(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = write(tmp_path / "a.onnx", ("logits",))
    program = open_program(path, runtime="openvino")
    path.write_bytes(b"0" * path.stat().st_size)
    assert program.logits(np.ones((1, 2, 4, 4), np.float32)).tolist() == [[1, 1]]


def test_other_files_and_runtimes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", ("logits",))
    with pytest.raises(XciteError, match=r"does not read .* choose openvino or onnxruntime"):
        open_program(path, runtime="paddle")
    with pytest.raises(XciteError, match="is not a program"):
        open_program(tmp_path / "a.pdparams")
    with pytest.raises(XciteError, match="no such file"):
        open_program(tmp_path / "b.onnx")


def test_openvino_tells_nobody_and_needs_no_home(tmp_path: Path) -> None:
    """Its telemetry asks for a home folder, which a user of containers may not have."""
    pytest.importorskip("openvino")
    code = """
import pathlib, sys

def home():
    raise RuntimeError("Could not determine home directory.")

pathlib.Path.home = home
from xcite.runtime.programs import import_openvino
assert import_openvino().Core().available_devices
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "telemetry" not in run.stderr
