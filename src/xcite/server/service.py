"""Pictures in, answers out; knows nothing of HTTP.

A picture's way: decode (thread pool) -> predict (one worker, batches across requests) -> encode. It
keeps its place in the queue from before it is read until it is answered.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from xcite.data.decoding import decode
from xcite.errors import XciteError
from xcite.runtime.predictor import Predictor
from xcite.runtime.ranking import probabilities, ranked
from xcite.server.answers import Attention, PictureAnswer, Prediction, Seen
from xcite.server.batching import Batcher, QueueFullError
from xcite.server.limits import Limits
from xcite.server.metrics import Metrics
from xcite.server.uploads import Upload

WARM_UP = 5.0  # seconds


@dataclass(frozen=True)
class _Question:
    pixels: np.ndarray  # uint8 (size, size, C)
    attention: bool


class Service:
    """Pictures in, answers out; knows nothing of HTTP."""

    def __init__(self, predictor: Predictor, limits: Limits, metrics: Metrics) -> None:
        self.predictor = predictor
        self.limits = limits
        self.metrics = metrics
        self._held = 0
        self._decoders = ThreadPoolExecutor(
            max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="xcite-decode"
        )
        self.batcher: Batcher[_Question, tuple[np.ndarray, np.ndarray | None]] = Batcher(
            self._answer,
            batch=limits.batch,
            wait=limits.wait,
            places=limits.queue,
            observe=metrics.batches.observe,
        )
        metrics.waiting.set_function(lambda: self.batcher.taken)

    def warm_up(self) -> None:
        """Predict in batches of every size, as far as `WARM_UP` seconds go, the extremes first.

        A runtime prepares itself anew for each size; no request should pay for that.
        """
        preprocessing = self.predictor.preprocessing
        height, width = self.predictor.info.size or (preprocessing.size, preprocessing.size)
        end = time.monotonic() + WARM_UP
        for batch in (1, *range(self.limits.batch, 1, -1)):
            if time.monotonic() > end:
                break
            shape = (batch, preprocessing.channels, height, width)
            self.predictor.run(np.zeros(shape, np.float32))

    def close(self) -> None:
        """Answer what was accepted, then stop."""
        self._decoders.shutdown()
        self.batcher.close()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Account for a body of ``size`` bytes while it is in memory.

        Raises:
            QueueFullError: too much is held already.
        """
        if self._held and self._held + size > self.limits.held_bytes:
            raise QueueFullError(1)
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def answer(self, upload: Upload, *, top: int, attention: bool) -> PictureAnswer:
        """Name what is on one picture; a picture that cannot be read is an answer too."""
        loop = asyncio.get_running_loop()
        try:
            pixels, seen = await loop.run_in_executor(self._decoders, self._decode, upload)
        except XciteError as error:
            self.metrics.pictures.labels("refused").inc()
            # what follows the semicolon is advice to who runs Xcite, not to who sends pictures
            return PictureAnswer(file=upload.name, error=str(error).partition(";")[0])
        future = self.batcher.submit(_Question(pixels, attention))
        shares, looked = await asyncio.wrap_future(future)
        self.metrics.pictures.labels("answered").inc()
        return PictureAnswer(
            file=upload.name,
            predictions=[
                Prediction(name=name, probability=probability)
                for name, probability in ranked(shares, self.predictor.class_names, top)
            ],
            attention=None if looked is None else _grid(looked, seen),
        )

    def _decode(self, upload: Upload) -> tuple[np.ndarray, Seen]:
        preprocessing = self.predictor.preprocessing
        picture = decode(
            upload.data,
            channels=preprocessing.channels,
            max_pixels=self.limits.max_pixels,
            origin=upload.name,
        )
        pixels = self.predictor.pixels(picture)
        # The square of `size` comes from this many pixels of the picture; the input may be an
        # oblong from its middle.
        square = min(picture.shape[:2]) * preprocessing.crop_ratio
        height, width = (
            square * seen / preprocessing.size / whole
            for seen, whole in zip(pixels.shape[:2], picture.shape[:2], strict=True)
        )
        seen = Seen(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)
        return pixels, seen

    def _answer(self, questions: list[_Question]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        images = self.predictor.images(np.stack([q.pixels for q in questions]))  # (B, C, H, W)
        outputs = self.predictor.run(images)
        shares = probabilities(outputs["logits"])  # (B, K)
        looked: list[np.ndarray | None] = [None] * len(questions)
        if "class_attention" in outputs:  # (B, layers, heads, 1 + N)
            grid = self.predictor.info.grid(*images.shape[2:])
            # CLS looks at itself first; the last layer is what the classifier hears
            patches = outputs["class_attention"][:, -1, :, 1:].mean(axis=1).reshape(-1, *grid)
            looked = [
                row if question.attention else None
                for row, question in zip(patches, questions, strict=True)
            ]
        return list(zip(shares, looked, strict=True))


def _grid(looked: np.ndarray, seen: Seen) -> Attention:
    scale = max(float(looked.max()), 1e-12)
    values = [round(float(value) / scale, 4) for value in looked.ravel()]
    return Attention(rows=looked.shape[0], columns=looked.shape[1], values=values, seen=seen)
