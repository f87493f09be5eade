"""Exported programs and what runs them on a CPU.

OpenVINO, ONNX Runtime and Paddle Inference are here, PyTorch's in `xcite.runtime.torch_programs`.
A program is one file: ``.onnx``, OpenVINO's ``.xml`` (its ``.bin`` beside it), Paddle's ``.json``
or ``.pdmodel`` (its ``.pdiparams`` beside it), or an archive of PyTorch. It may belong to a bundle,
whose seal `xcite.runtime.bundle` checks, or stand alone, as a teacher's may.
"""

import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcite.engines import quietly_imported
from xcite.engines.vector_instructions import use_vector_instructions
from xcite.errors import XciteError
from xcite.runtime import avx2_graphs
from xcite.runtime.program import Arguments, Program, first_line
from xcite.runtime.torch_programs import ExportedProgram, TorchScript

BATCHES = (16, 4, 1)  # compiled batch sizes: large enough not to waste, few enough to hold
# our names among the several of an OpenVINO output
OUTPUTS = ("logits", "embedding", "class_attention")


def is_program(path: str | Path) -> bool:
    """Whether the file is a program, not weights; archives are told by what they hold."""
    return bool(_able(Path(path)))


def _able(path: Path) -> list[str]:
    return [name for name, kind in _KINDS.items() if kind.reads(path)]


def open_program(
    path: str | Path,
    *,
    runtime: str | None = None,
    preferred: str | None = None,
    threads: int | None = None,
    streams: int = 1,
    precision: str = "f32",
    usual: tuple[int, int] | None = None,
    called: str | None = None,
    outputs: Sequence[str] | None = None,
) -> Program:
    """Load a program on the fastest installed runtime that reads its format.

    Args:
        path: an ``.onnx``, ``.xml``, ``.json`` or ``.pdmodel`` file, or an archive of PyTorch.
        runtime: take this one.
        preferred: take this one if it is installed.
        threads: compute threads; None leaves the number to the runtime.
        streams: parts of a batch that run at the same time; OpenVINO only.
        precision: "f32", "f16", "bf16" or "int8", of the file; how it runs is up to the processor.
        usual: height and width of most images; OpenVINO compiles for them in particular.
        called: what messages call the program; its path if None.
        outputs: their names in order, for a Paddle program, whose own mean nothing.

    Raises:
        XciteError: unreadable program, or a missing or unfit runtime.
    """
    path = Path(path)
    called = called or str(path)
    able = _able(path)
    if not able:
        raise XciteError(
            f"{called} is not a program; give a file of ONNX, OpenVINO, Paddle or PyTorch"
        )
    if runtime is not None and runtime not in able:
        raise XciteError(f"runtime {runtime!r} does not read {called}; choose {' or '.join(able)}")
    if not path.is_file():
        raise XciteError(f"cannot read {called}: there is no such file")
    names = [runtime] if runtime else sorted(able, key=lambda name: name != preferred)
    for kind in (_KINDS[name] for name in names):
        try:
            return kind(Arguments(path, called, precision, threads, streams, usual, outputs))
        except ImportError:
            continue
        except XciteError:
            raise
        except Exception as error:
            raise XciteError(f"{kind.title} cannot read {called}: {first_line(error)}") from error
    extra = _KINDS[names[0]].extra
    raise XciteError(f"{' or '.join(names)} is not installed: pip install 'xcite[{extra}]'")


class _OpenVINO(Program):
    """Compiled for a few batch sizes; calls may overlap.

    OpenVINO leaves out layout copies around convolutions and merges more only where all shapes are
    known. So a batch of the usual size is cut into parts of the sizes in `BATCHES`, each compiled
    when first needed; any other batch runs as it comes.
    """

    name, title, suffixes = "openvino", "OpenVINO", (".onnx", ".xml")

    def __init__(self, given: Arguments) -> None:
        openvino = import_openvino()
        super().__init__(given)
        self.streams = given.streams
        self._threads = given.threads
        self._usual = given.usual
        self._core = openvino.Core()
        # Read, not mapped: replacing the file must not change the answers of what already runs.
        self._core.set_property({"ENABLE_MMAP": False})
        self._model = self._core.read_model(given.path)
        self.outputs = []
        for output in self._model.outputs:
            names = sorted(output.get_names()) or [f"output {output.get_index()}"]
            self.outputs.append(next((name for name in OUTPUTS if name in names), names[0]))
        shape = self._model.inputs[0].partial_shape
        if not shape.rank.is_dynamic:
            self.takes = tuple(None if n.is_dynamic else n.get_length() for n in shape)
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._idle: dict[tuple[int, ...], list[Any]] = {}
        self._lock = threading.Lock()

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        import openvino

        usual = images.shape[2:] == self._usual
        jobs = []
        for part in self._parts(images) if usual else [images]:
            key = part.shape if usual else ()
            request = self._borrow(key)
            request.set_input_tensor(openvino.Tensor(part, True))
            request.start_async()
            jobs.append((key, request))
        for _, request in jobs:
            request.wait()
        result = {
            name: np.concatenate([request.get_output_tensor(i).data for _, request in jobs])
            for i, name in enumerate(self.outputs)
        }  # concatenate copies: the next call writes into the requests' own memory
        with self._lock:
            for key, request in jobs:
                self._idle.setdefault(key, []).append(request)
        return result

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        """Cut into parts of known sizes, at least one per stream where there are enough images."""
        share = -(-len(images) // self.streams)
        parts, start = [], 0
        while start < len(images):
            left = min(share, len(images) - start)
            size = next(size for size in BATCHES if size <= left)
            parts.append(images[start : start + size])
            start += size
        return parts

    def _borrow(self, shape: tuple[int, ...]) -> Any:
        """An infer request for images of this shape; () for any."""
        with self._lock:
            if self._idle.get(shape):
                return self._idle[shape].pop()
            if shape not in self._compiled:
                model = self._model.clone()
                if shape:
                    model.reshape(list(shape))
                if avx2_graphs.pay(self._hint):
                    avx2_graphs.rewrite(model)
                self._compiled[shape] = compile_openvino(
                    self._core, model, self._hint, self._threads, self.streams
                )
            return self._compiled[shape].create_infer_request()


def import_openvino() -> Any:
    """OpenVINO without the package that tells its maker about its use.

    That package asks for a home folder, which a user of containers may not have, and for leave to
    write there.
    """
    telemetry = "openvino_telemetry"
    absent = telemetry not in sys.modules
    if absent:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import openvino
    finally:
        if absent:
            sys.modules.pop(telemetry, None)
    return openvino


def compile_openvino(core: Any, model: Any, floats: str, threads: int | None, streams: int) -> Any:
    """Compile for the CPU; float32 is asked for by name, since OpenVINO may choose bfloat16.

    Args:
        floats: what is not quantised runs in: "f32" or "bf16".
    """
    options = {
        "INFERENCE_PRECISION_HINT": floats,
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(model, "CPU", options)


class _OnnxRuntime(Program):
    name, title, suffixes = "onnxruntime", "ONNX Runtime", (".onnx",)

    def __init__(self, given: Arguments) -> None:
        import onnxruntime

        if given.precision == "bf16":
            raise XciteError("ONNX Runtime has no bfloat16 on the CPU; use runtime openvino")
        super().__init__(given)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given.threads or 0
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(given.path), options, providers=["CPUExecutionProvider"]
        )
        given_images = self._session.get_inputs()[0]
        self._input = given_images.name
        self.takes = tuple(n if isinstance(n, int) else None for n in given_images.shape)
        self.outputs = [output.name for output in self._session.get_outputs()]

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        values = self._session.run(self.outputs, {self._input: images})
        return dict(zip(self.outputs, values, strict=True))


class _Paddle(Program):
    """Paddle Inference on oneDNN; one predictor, one call at a time."""

    name, title, suffixes, extra = "paddle", "Paddle Inference", (".json", ".pdmodel"), "paddle"

    @classmethod
    def reads(cls, path: Path) -> bool:
        # Many a .json is none: an index of shards is weights.
        return super().reads(path) and (
            path.suffix.lower() != ".json"
            or path.with_suffix(".pdiparams").is_file()
            or _PADDLE_START in _start(path, 256)
        )

    def __init__(self, given: Arguments) -> None:
        inference = quietly_imported("paddle.inference")

        super().__init__(given)
        use_vector_instructions()
        weights = given.path.with_suffix(".pdiparams")
        if not weights.is_file():
            raise XciteError(f"cannot read {given.called}: {weights.name} is not beside it")
        config = inference.Config(str(given.path), str(weights))
        config.disable_gpu()
        if given.threads is not None:
            config.set_cpu_math_library_num_threads(given.threads)
        config.enable_mkldnn()
        config.disable_glog_info()
        self._predictor = inference.create_predictor(config)
        self._input = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        names = self._predictor.get_output_names()
        handles = map(self._predictor.get_output_handle, names)
        self.outputs = list(names if given.outputs is None else given.outputs)
        self._results = dict(zip(self.outputs, handles, strict=True))
        self.takes = _taken_by_paddle(given.path)
        self._lock = threading.Lock()

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            self._input.reshape(list(images.shape))
            self._input.copy_from_cpu(images)
            self._predictor.run()
            return {name: result.copy_to_cpu() for name, result in self._results.items()}


_PADDLE_START = b'"magic":"pir"'
_PADDLE_INPUT = re.compile(
    rb'"#":"1\.data".{0,200}?"1\.a_intarray","D":\[([-\d, ]{1,99})\]', re.DOTALL
)


def _taken_by_paddle(path: Path) -> tuple[int | None, ...]:
    """The shape of a ``.json`` program's input, which no call of the predictor tells; else ()."""
    found = _PADDLE_INPUT.search(path.read_bytes()) if path.suffix.lower() == ".json" else None
    numbers = [int(n) for n in found[1].split(b",")] if found else []
    return tuple(n if n > 0 else None for n in numbers)


def _start(path: Path, count: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


_RUNTIMES = (_OpenVINO, _OnnxRuntime, _Paddle, TorchScript, ExportedProgram)
_KINDS: dict[str, type[Any]] = {kind.name: kind for kind in _RUNTIMES}
