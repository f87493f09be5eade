"""Run a bundle: pictures in, names with probabilities out. Needs no training framework."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xcite.errors import XciteError
from xcite.machine import usable_cores
from xcite.preprocessing import Preprocessing, sides
from xcite.runtime.bundle import (
    BundleInfo,
    bundle_folder,
    read_info,
    require_classes,
    sealed_program,
)
from xcite.runtime.programs import open_program
from xcite.runtime.ranking import class_name, probabilities, ranked

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | np.ndarray | Image

CHUNK = 32  # pictures per run of `predict`: bounds memory, and larger batches are not faster


class Predictor:
    """A bundle, loaded and ready. May be called from several threads at once.

    Attributes:
        info: the bundle's description, see `xcite.runtime.bundle.BundleInfo`.
        preprocessing: how pictures become inputs.
        class_names: one per logit.
        runtime: "openvino", "onnxruntime" or "paddle".
        precision: "f32", "bf16" or "int8", as it runs on this processor.
        notes: what a person should know of how it runs, one line each.
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
            bundle: the folder `xcite export` wrote, or one of its files.
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
        self.bundle = bundle_folder(bundle) or Path(bundle)
        self.info: BundleInfo = read_info(self.bundle)
        self.preprocessing: Preprocessing = self.info.preprocessing
        self.mode = mode
        self.threads = threads or usable_cores()
        if streams is None:
            streams = min(self.threads, 4) if mode == "throughput" else 1
        if precision not in (None, self.info.precision) and (
            precision != "bf16" or self.info.precision != "f32" or self.info.format == "paddle"
        ):
            raise XciteError(
                f"the bundle is {self.info.precision} and cannot run in {precision}; "
                "export it that way"
            )
        self._program = open_program(
            sealed_program(self.bundle, self.info),
            runtime=runtime,
            threads=self.threads,
            streams=streams,
            precision=precision or self.info.precision,
            usual=self.info.size or sides(self.preprocessing.size),
            called=f"{self.info.format} bundle {self.bundle}",
            outputs=self.info.outputs,
        )
        self.notes = list(self._program.notes)
        self._width = _checked(self.bundle, self.info, self._program.outputs)
        self.runtime = self._program.name
        self.precision = self._program.precision
        self.streams = self._program.streams
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
        require_classes(self.info, self.bundle)
        shares = (probabilities(logits) for logits in self._answers(pictures))  # (B, K) each
        return [ranked(row, self.class_names, top) for some in shares for row in some]

    def embed(self, pictures: "Picture | Sequence[Picture]") -> np.ndarray:
        """Embeddings float32 (n, d) of n pictures, from a bundle of weights without classifier.

        Args:
            pictures: as of `predict`.

        Raises:
            XciteError: a bundle that gives classes, or a picture that cannot be read.
        """
        if self.info.answer != "embedding":
            raise XciteError(
                f"bundle {self.bundle} gives classes; for embeddings export weights without a "
                "classifier"
            )
        return np.concatenate([np.empty((0, self._width), np.float32), *self._answers(pictures)])

    def _answers(self, pictures: "Picture | Sequence[Picture]") -> Iterator[np.ndarray]:
        """Logits or embeddings (B, width) of `CHUNK` pictures after another."""
        if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes):
            many = list(pictures)
        else:
            many = [pictures]
        for start in range(0, len(many), CHUNK):
            pixels = np.stack([self.pixels(picture) for picture in many[start : start + CHUNK]])
            yield self.run(self.images(pixels))[self.info.answer]

    def name(self, index: int) -> str:
        """The name of class ``index``."""
        return class_name(self.class_names, index)

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
        """Logits float32 (B, K) of normalised float32 images (B, C, H, W).

        Raises:
            XciteError: a bundle of embeddings, or images that the graph does not take.
        """
        require_classes(self.info, self.bundle)
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
        outputs = self._program.run(images)
        answer = self.info.answer
        expected = (len(images), self._width)
        if outputs[answer].shape != expected:
            raise XciteError(
                f"bundle {self.bundle} gives {answer} {outputs[answer].shape} where its "
                f"description says {expected}; export again"
            )
        return outputs


def _checked(bundle: Path, info: BundleInfo, outputs: Sequence[str]) -> int:
    """The width of the answers, after comparing a bundle's description with its program."""
    architecture = info.built()
    answer = "logits" if architecture.num_classes else "embedding"
    wrong = sorted({answer, *info.outputs} - set(outputs))
    if wrong:
        raise XciteError(
            f"bundle {bundle} has no output {', '.join(wrong)}, only {', '.join(outputs)}; "
            "export again"
        )
    channels = info.preprocessing.channels
    if architecture.in_chans != channels:
        raise XciteError(
            f"bundle {bundle} takes {architecture.in_chans} channels and prepares {channels}; "
            "export again"
        )
    return architecture.num_classes or architecture.num_features


def input_pixels(
    picture: np.ndarray, preprocessing: Preprocessing, size: tuple[int, int] | None
) -> np.ndarray:
    """`evaluation_pixels`, and of them the centre where the graph's input is smaller.

    A bundle of a square preprocessing may have been made for an oblong within it.
    """
    from xcite.data.transforms import evaluation_pixels

    seen = evaluation_pixels(picture, preprocessing)
    if size is None:
        return seen
    top, left = ((side - wanted) // 2 for side, wanted in zip(seen.shape, size, strict=False))
    return seen[top : top + size[0], left : left + size[1]]
