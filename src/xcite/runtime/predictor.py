"""Run a bundle: pictures in, names with probabilities out. Needs no training framework."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.runtime.answers import Answer, UnreadablePicture
from xcite.runtime.bundle import require_classes
from xcite.runtime.loaded_bundle import LoadedBundle, at_least_one
from xcite.runtime.ranking import class_name, probabilities, ranked

if TYPE_CHECKING:
    from xcite.runtime.inputs import ArrayLike, OnePicture, Pictures, Prepared

CHUNK = 32  # pictures per run of `predict`: bounds memory, and larger batches are not faster
OnError = Literal["raise", "return"]


class Predictor(LoadedBundle):
    """A bundle that names what is on pictures. May be called from several threads at once.

    In a process that was forked from the one that loaded it, and where it arrives pickled, the
    bundle is loaded anew when it is needed, and must still be the same. Paddle's format is refused
    in a process forked from one that had loaded Paddle, where it can hang. ``close`` gives the
    memory back, as does the end of a ``with`` block.

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

    @overload
    def predict(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: Literal["raise"] = "raise",
        batch: int = CHUNK,
    ) -> list[Answer]: ...
    @overload
    def predict(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: Literal["return"],
        batch: int = CHUNK,
    ) -> list[Answer | UnreadablePicture]: ...
    def predict(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: OnError = "raise",
        batch: int = CHUNK,
    ) -> Sequence[Answer | UnreadablePicture]:
        """The ``top`` most probable classes of every picture, most probable first.

        Args:
            pictures: one or many, see `xcite.runtime.inputs`: paths, folders, patterns, encoded
                bytes, open files, Pillow pictures, arrays (H, W, C), tensors (C, H, W), batches of
                them, and any iterable of these.
            on_error: "return" puts an `UnreadablePicture` in the place of a picture that cannot be
                read, and the others keep their answers; "raise" raises it.
            batch: pictures that are held and run together.

        Returns:
            Per picture (class name, probability); the class's number where no name is known.

        Raises:
            UnreadablePicture: a picture that cannot be read.
            XciteError: an unfit argument.
        """
        return list(self._answers(pictures, top, on_error, batch))

    @overload
    def predict_each(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: Literal["raise"] = "raise",
        batch: int = CHUNK,
    ) -> Iterator[Answer]: ...
    @overload
    def predict_each(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: Literal["return"],
        batch: int = CHUNK,
    ) -> Iterator[Answer | UnreadablePicture]: ...
    def predict_each(
        self,
        pictures: "Pictures",
        top: int = 5,
        *,
        on_error: OnError = "raise",
        batch: int = CHUNK,
    ) -> Iterator[Answer | UnreadablePicture]:
        """As `predict`, one answer after the other; ``pictures`` may have no end.

        ``batch`` pictures are taken before their answers come: 1 answers at once.
        """
        return self._answers(pictures, top, on_error, batch)

    def embed(self, pictures: "Pictures", *, batch: int = CHUNK) -> np.ndarray:
        """Embeddings float32 (n, d) of n pictures, from a bundle of weights without classifier.

        Args:
            pictures: as of `predict`.
            batch: pictures that are held and run together.

        Raises:
            UnreadablePicture: a picture that cannot be read.
            XciteError: a bundle that gives classes.
        """
        at_least_one("batch", batch)
        if self.info.answer != "embedding":
            raise XciteError(
                f"bundle {self.bundle} gives classes; for embeddings export weights without a "
                "classifier"
            )
        rows = [rows for _, rows in self._batches(pictures, "raise", batch)]
        return np.concatenate([np.empty((0, self._width), np.float32), *rows])

    def _answers(
        self, pictures: "Pictures", top: int, on_error: OnError, batch: int
    ) -> Iterator[Any]:
        at_least_one("top", top)
        at_least_one("batch", batch)
        if on_error not in ("raise", "return"):
            raise XciteError(f"on_error is {on_error!r}; choose raise or return")
        require_classes(self.info, self.bundle)

        def answers() -> Iterator[Answer | UnreadablePicture]:
            for together, logits in self._batches(pictures, on_error, batch):
                rows = iter(probabilities(logits))  # of (B, K)
                for one in together:
                    if one.pixels is None:
                        yield UnreadablePicture(one.error, picture=one.name)
                    else:
                        row = ranked(next(rows), self.class_names, top)
                        yield Answer(row, picture=one.name)

        return answers()

    def _batches(
        self, pictures: "Pictures", on_error: OnError, batch: int
    ) -> "Iterator[tuple[list[Prepared], np.ndarray]]":
        """Up to ``batch`` pictures, and logits or embeddings (B, width) of those that are readable.

        What is left out of folders is a warning at the end.

        Raises:
            UnreadablePicture: where ``on_error`` says so.
        """
        from xcite.data.sources import Found
        from xcite.runtime.inputs import pictures_of, prepared

        found, channels = Found(), self.preprocessing.channels
        seen = prepared(
            pictures_of(pictures, found, channels=channels), self._seen, channels=channels
        )
        while together := list(islice(seen, batch)):
            for one in together:
                if one.pixels is None and on_error == "raise":
                    raise UnreadablePicture(one.error, picture=one.name)
            pixels = [one.pixels for one in together if one.pixels is not None]
            if pixels:
                yield together, self.run(self.images(np.stack(pixels)))[self.info.answer]
            else:
                yield together, np.empty((0, self._width), np.float32)
        for kind, count in found.left_out.items():
            warnings.warn(f"left out: {count} {kind} ({found.examples[kind]})", stacklevel=4)

    def name(self, index: int) -> str:
        """The name of class ``index``."""
        return class_name(self.class_names, index)

    def _seen(self, decoded: np.ndarray) -> np.ndarray:
        return input_pixels(decoded, self.preprocessing, self.info.size)

    def pixels(self, picture: "OnePicture", *, max_pixels: int | None = None) -> np.ndarray:
        """Decode, resize and crop one picture: uint8 (H, W, C), as the model will see it.

        Args:
            picture: in any form that `predict` takes.
            max_pixels: a picture with more is refused; None for a usual limit.

        Raises:
            UnreadablePicture: not a picture, or too large.
            XciteError: none, or several.
        """
        from xcite.data.decoding import MAX_PIXELS
        from xcite.data.sources import Found
        from xcite.runtime.inputs import pictures_of, prepared

        channels = self.preprocessing.channels
        limit = MAX_PIXELS if max_pixels is None else max_pixels
        given = pictures_of(picture, Found(), channels=channels)
        several = prepared(given, self._seen, channels=channels, max_pixels=limit)
        one = next(several, None)
        if one is None or next(given, None) is not None:
            raise XciteError("give one picture; predict takes several")
        if one.pixels is None:
            raise UnreadablePicture(one.error, picture=one.name)
        return one.pixels

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised float32 (B, C, H, W) of uint8 pixels (B, H, W, C).

        Raises:
            XciteError: pixels of another type or other dimensions.
        """
        from xcite.data.transforms import normalise

        if pixels.dtype != np.uint8 or pixels.ndim != 4:
            channels = self.preprocessing.channels
            raise XciteError(
                f"pixels are {pixels.dtype} {pixels.shape}; expected uint8 (B, H, W, {channels})"
            )
        return normalise(pixels, self.preprocessing)

    def logits(self, images: "np.ndarray | ArrayLike") -> np.ndarray:
        """Logits float32 (B, K) of normalised float32 images (B, C, H, W).

        Raises:
            XciteError: a bundle of embeddings, or as `run`.
        """
        require_classes(self.info, self.bundle)
        return self.run(images)["logits"]

    def attention(self, images: "np.ndarray | ArrayLike") -> np.ndarray:
        """Class attention float32 (B, layers, heads, 1 + N); N as in `BundleInfo.grid`.

        Raises:
            XciteError: the bundle's graph does not give it, or as `run`.
        """
        if "class_attention" not in self.info.outputs:
            raise XciteError(
                f"bundle {self.bundle} ({self.info.format}) gives no attention; "
                "export an XCiT with --format openvino or onnx"
            )
        return self.run(images)["class_attention"]


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
