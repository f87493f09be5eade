"""Run a bundle: pictures in, names with probabilities out. Needs no training framework."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xcite.deployment.bundle import BundleInfo, read_info
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | np.ndarray | Image

CHUNK = 32  # pictures per run of `predict`: bounds memory, and larger batches are not faster
BATCHES = (16, 4, 1)  # compiled batch sizes: large enough not to waste, few enough to hold
RUNTIMES = {  # per bundle format, the preferred one first
    "onnx": ("openvino", "onnxruntime"),
    "openvino": ("openvino",),
    "paddle": ("paddle",),
}


class _Runtime(Protocol):
    name: str
    precision: str
    streams: int

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]: ...


class Predictor:
    """A bundle, loaded and ready. May be called from several threads at once.

    Attributes:
        info: the bundle's description, see `xcite.deployment.bundle.BundleInfo`.
        preprocessing: how pictures become inputs.
        class_names: one per logit.
        runtime: "openvino", "onnxruntime" or "paddle".
        precision: "f32", "bf16" or "int8", as it runs.
        threads: compute threads in all.
        streams: batches that run at the same time, each on threads / streams.
        mode: "latency" or "throughput".
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        runtime: str | None = None,
        threads: int | None = None,
        streams: int | None = None,
        mode: str = "latency",
        precision: str | None = None,
    ) -> None:
        """Load and verify a bundle.

        Args:
            bundle: the folder `xcite export` wrote.
            runtime: None for the fastest installed one that reads the bundle's format.
            threads: None for all cores this process may use.
            streams: None for 1 (latency) or as many as there are threads, 4 at most (throughput).
            mode: "latency" answers one batch as soon as possible; "throughput" cuts a batch into
                one part per stream, which wastes less on waiting between threads.
            precision: "bf16" runs a float32 bundle in bfloat16 where the runtime can; None as the
                bundle says.

        Raises:
            XciteError: damaged bundle, missing or unfit runtime, or a contradiction in the options.
        """
        if mode not in ("latency", "throughput"):
            raise XciteError(f"mode is {mode!r}; choose latency or throughput")
        for name, value in (("threads", threads), ("streams", streams)):
            if value is not None and value < 1:
                raise XciteError(f"{name} is {value}; it must be at least 1")
        self.bundle = Path(bundle)
        self.info: BundleInfo = read_info(self.bundle)
        self.preprocessing: Preprocessing = self.info.preprocessing
        self.mode = mode
        self.threads = threads or len(os.sched_getaffinity(0))
        if streams is None:
            streams = min(self.threads, 4) if mode == "throughput" else 1
        self._runtime = _load(self.bundle, self.info, runtime, self.threads, streams, precision)
        self.runtime = self._runtime.name
        self.precision = self._runtime.precision
        self.streams = self._runtime.streams
        self.class_names = list(self.info.class_names)

    def predict(
        self, pictures: "Picture | Sequence[Picture]", top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The ``top`` most probable classes of every picture, most probable first.

        Args:
            pictures: paths, encoded bytes, uint8 arrays (H, W, C) or Pillow pictures, one or many.

        Returns:
            Per picture (class name, probability); the class's number where no name is known.

        Raises:
            XciteError: a picture that cannot be read.
        """
        if top < 1:
            raise XciteError(f"top is {top}; it must be at least 1")
        if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes):
            many = list(pictures)
        else:
            many = [pictures]
        result: list[list[tuple[str, float]]] = []
        for start in range(0, len(many), CHUNK):
            pixels = np.stack([self.pixels(picture) for picture in many[start : start + CHUNK]])
            for row in probabilities(self.logits(self.images(pixels))):
                best = np.argsort(-row, kind="stable")[:top]
                result.append([(self.name(int(k)), float(row[k])) for k in best])
        return result

    def name(self, index: int) -> str:
        """The name of class ``index``."""
        return self.class_names[index] if index < len(self.class_names) else str(index)

    def pixels(self, picture: "Picture", *, max_pixels: int | None = None) -> np.ndarray:
        """Decode, resize and crop one picture: uint8 (H, W, C), as the model will see it.

        Raises:
            XciteError: not a picture, or one of more than ``max_pixels`` pixels.
        """
        from xcite.data.decoding import MAX_PIXELS, decode

        channels = self.preprocessing.channels
        limit = MAX_PIXELS if max_pixels is None else max_pixels
        decoded = decode(picture, channels=channels, max_pixels=limit)
        return input_pixels(decoded, self.preprocessing, self.info.size)

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised float32 (B, C, H, W) of uint8 pixels (B, H, W, C)."""
        from xcite.data.transforms import normalise

        return normalise(pixels, self.preprocessing)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 (B, K) of normalised float32 images (B, C, H, W)."""
        return self.run(images)["logits"]

    def attention(self, images: np.ndarray) -> np.ndarray:
        """Class attention float32 (B, layers, heads, 1 + N); N as in `BundleInfo.grid`.

        Raises:
            XciteError: the bundle's graph does not give it.
        """
        if "class_attention" not in self.info.outputs:
            raise XciteError(
                f"bundle {self.bundle} ({self.info.format}) gives no attention; "
                "export an XCiT with --format openvino or onnx"
            )
        return self.run(images)["class_attention"]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs of one pass by name, see `BundleInfo.outputs`.

        Raises:
            XciteError: images of another type, shape or size than the graph takes.
        """
        channels, size = self.preprocessing.channels, self.info.size
        if images.ndim != 4 or images.shape[1] != channels or images.dtype != np.float32:
            raise XciteError(
                f"images are {images.dtype} {images.shape}; expected float32 (B, {channels}, H, W)"
            )
        if size is not None and images.shape[2:] != size:
            raise XciteError(
                f"images are {images.shape[2]} x {images.shape[3]} pixels; this bundle was made "
                f"for {size[0]} x {size[1]}: export with --size dynamic for any size"
            )
        if not len(images):
            raise XciteError("the batch is empty")
        return self._runtime.run(np.ascontiguousarray(images))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64 to sum to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def input_pixels(
    picture: np.ndarray, preprocessing: Preprocessing, size: tuple[int, int] | None
) -> np.ndarray:
    """`evaluation_pixels`, and of that square the centre where the graph's input is an oblong."""
    from xcite.data.transforms import evaluation_pixels

    square = evaluation_pixels(picture, preprocessing)
    if size is None:
        return square
    top, left = ((side - wanted) // 2 for side, wanted in zip(square.shape, size, strict=False))
    return square[top : top + size[0], left : left + size[1]]


def _load(
    bundle: Path,
    info: BundleInfo,
    runtime: str | None,
    threads: int,
    streams: int,
    precision: str | None,
) -> _Runtime:
    able = RUNTIMES[info.format]
    if runtime is not None and runtime not in able:
        raise XciteError(
            f"runtime {runtime!r} does not read {info.format} bundles; choose {' or '.join(able)}"
        )
    if precision not in (None, info.precision) and (
        precision != "bf16" or info.precision != "f32" or info.format == "paddle"
    ):
        raise XciteError(
            f"the bundle is {info.precision} and cannot run in {precision}; export it that way"
        )
    precision = precision or info.precision
    candidates = (runtime,) if runtime else able
    for name in candidates:
        try:
            return _RUNTIMES[name](bundle, info, threads, streams, precision)
        except ImportError:
            continue
    package = {"openvino": "deploy", "onnxruntime": "deploy", "paddle": "paddle"}[candidates[0]]
    raise XciteError(f"{' or '.join(candidates)} is not installed: pip install 'xcite[{package}]'")


class _OpenVINO:
    """Compiled for a few batch sizes; calls may overlap.

    OpenVINO leaves out layout copies around convolutions and merges more only where all shapes are
    known. So a batch is cut into parts of the sizes in `BATCHES`, each compiled when first needed.
    A graph of dynamic size does the same at its usual size, and takes any other as it comes.
    """

    name = "openvino"

    def __init__(
        self, bundle: Path, info: BundleInfo, threads: int, streams: int, precision: str
    ) -> None:
        import openvino

        self._core = openvino.Core()
        if info.format == "onnx":
            self._model = self._core.read_model((bundle / "model.onnx").read_bytes())
        else:
            self._model = self._core.read_model(
                (bundle / "model.xml").read_bytes(), (bundle / "model.bin").read_bytes()
            )
        self.precision = precision
        self.streams = streams
        self._options = precision, threads, streams
        side = info.preprocessing.size
        self._usual = info.size or (side, side)
        # OpenVINO gives an output several names; ours is the one the bundle lists.
        self._outputs = [
            next(name for name in info.outputs if name in output.get_names())
            for output in self._model.outputs
        ]
        self._compiled: dict[tuple[int, ...], Any] = {}
        self._idle: dict[tuple[int, ...], list[Any]] = {}
        self._lock = threading.Lock()

    def _borrow(self, shape: tuple[int, ...]) -> Any:
        """An infer request for images of this shape; () for any."""
        with self._lock:
            if self._idle.get(shape):
                return self._idle[shape].pop()
            if shape not in self._compiled:
                model = self._model.clone()
                if shape:
                    model.reshape(list(shape))
                self._compiled[shape] = compile_openvino(self._core, model, *self._options)
            return self._compiled[shape].create_infer_request()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
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
            for i, name in enumerate(self._outputs)
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


def compile_openvino(core: Any, model: Any, precision: str, threads: int, streams: int) -> Any:
    """Compile for the CPU; float32 is asked for by name, since OpenVINO may choose bfloat16.

    An int8 model's unquantised rest runs in bfloat16.
    """
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" else "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        },
    )


class _OnnxRuntime:
    name = "onnxruntime"

    def __init__(
        self, bundle: Path, info: BundleInfo, threads: int, streams: int, precision: str
    ) -> None:
        import onnxruntime

        if precision == "bf16":
            raise XciteError("ONNX Runtime has no bfloat16 on the CPU; use runtime openvino")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.precision = precision
        self.streams = 1
        self._session = onnxruntime.InferenceSession(
            (bundle / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        values = self._session.run(self._outputs, {"images": images})
        return dict(zip(self._outputs, values, strict=True))


class _Paddle:
    """Paddle Inference on oneDNN; one predictor, one call at a time."""

    name = "paddle"

    def __init__(
        self, bundle: Path, info: BundleInfo, threads: int, streams: int, precision: str
    ) -> None:
        from xcite.engines.paddle.inference import Program

        self.precision = precision
        self.streams = 1
        self._program = Program(bundle / "model", threads=threads)
        self._lock = threading.Lock()

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            return {"logits": self._program.run(images)}


_RUNTIMES: dict[str, Callable[..., _Runtime]] = {
    "openvino": _OpenVINO,
    "onnxruntime": _OnnxRuntime,
    "paddle": _Paddle,
}
