"""Pictures in, answers out; knows nothing of HTTP.

A picture's way: decode (processes) -> predict (one worker, batches across requests) -> encode. It
keeps its place in the queue from when it has arrived until it is answered.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from xcite.errors import XciteError
from xcite.preprocessing import sides
from xcite.runtime.predictor import Predictor
from xcite.runtime.ranking import probabilities, ranked
from xcite.server.answers import Attention, PictureAnswer, Prediction, Seen
from xcite.server.batching import Batcher, QueueFullError
from xcite.server.decoders import Decoded, Decoders, DecodingStoppedError
from xcite.server.limits import Limits
from xcite.server.metrics import Metrics
from xcite.server.request_bodies import UploadError
from xcite.server.uploads import Upload

WARM_UP = 5.0  # seconds
FRESH = 5.0  # seconds for which an answer proves that answers are given
PROOF = 10.0  # seconds for an answer to prove it


# a picture for looking whether pictures are answered
_PICTURE = b"P6 8 8 255 " + bytes(3 * 8 * 8)


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
        self._answered = 0.0  # when the last picture was, monotonic
        self._proof: asyncio.Task[str | None] | None = None
        self.decoders = Decoders(predictor.preprocessing, predictor.info.size, limits)
        self.batcher: Batcher[_Question, tuple[np.ndarray, np.ndarray | None]] = Batcher(
            self._answer,
            batch=limits.batch,
            wait=limits.wait,
            places=limits.queue,
            observe=metrics.batches.observe,
            observe_taken=metrics.waiting.set,
        )

    def warm_up(self) -> None:
        """Start the decoders; predict in batches of every size, as far as `WARM_UP` seconds go.

        A runtime prepares itself anew for each size, the extremes first; no request should pay for
        that. A second call does nothing.

        Raises:
            XciteError: the bundle cannot predict.
            DecodingStoppedError: the decoders do not start.
        """
        if self._answered:
            return
        self.decoders.start()
        preprocessing = self.predictor.preprocessing
        height, width = self.predictor.info.size or sides(preprocessing.size)
        end = time.monotonic() + WARM_UP
        for batch in (1, *range(self.limits.batch, 1, -1)):
            if time.monotonic() > end:
                break
            shape = (batch, preprocessing.channels, height, width)
            self.predictor.run(np.zeros(shape, np.float32))
        self._answered = time.monotonic()

    def close(self) -> None:
        """End the decoders, and the prediction as soon as its batch is done."""
        self.decoders.close()
        self.batcher.close(timeout=1)

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Account for the bytes of one body while it is in memory; yields what counts them.

        Counting raises QueueFullError when too much is held already.
        """
        mine = 0

        def count(size: int) -> None:
            nonlocal mine
            if self._held > mine and self._held + size > self.limits.held_bytes:
                raise QueueFullError(1)
            self._held += size
            mine += size

        try:
            yield count
        finally:
            self._held -= mine

    async def trouble(self) -> str | None:
        """Why nothing can be answered, in words; None while pictures are answered.

        An answer of the last seconds is proof enough. Without one a small picture goes the whole
        way; all who ask at the same time wait for the same one.
        """
        if not self.batcher.alive:
            return "the prediction worker has stopped"
        if time.monotonic() - self._answered < FRESH:
            return None
        if self._proof is None or self._proof.done():
            self._proof = asyncio.create_task(self._prove())
        return await asyncio.shield(self._proof)

    async def _prove(self) -> str | None:
        doing = "decoded"
        try:
            async with asyncio.timeout(PROOF):
                decoded = await self.decoders.decode(_PICTURE, lambda pixels: None)
                doing = "predicted"
                await self._predict(decoded, attention=False)
        except TimeoutError:
            return f"nothing was {doing} within {PROOF:g} s"
        except Exception as error:
            return f"nothing can be {doing} ({type(error).__name__})"
        return None

    async def answers(
        self, uploads: list[Upload], *, top: int, attention: bool
    ) -> list[PictureAnswer]:
        """Name what is on the pictures of one request; work on all ends when one raises.

        Raises:
            UploadError: the pictures have too many pixels together.
            QueueFullError: too many heavy pictures wait.
        """
        left = self.limits.max_request_pixels

        def spend(pixels: int) -> None:
            nonlocal left
            left -= pixels
            if left < 0:
                millions = self.limits.max_request_pixels / 1e6
                raise UploadError(
                    413, f"the pictures have more than {millions:.4g} megapixels together"
                )

        tasks = [
            asyncio.create_task(self._answer_one(upload, spend, top=top, attention=attention))
            for upload in uploads
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer_one(
        self, upload: Upload, spend: Callable[[int], None], *, top: int, attention: bool
    ) -> PictureAnswer:
        """Name what is on one picture; a picture that cannot be read is an answer too."""
        if upload.error is not None:
            self.metrics.pictures.labels("refused").inc()
            return PictureAnswer(file=upload.name, error=upload.error)
        try:
            decoded = await self.decoders.decode(upload.data, spend)
        except XciteError as error:
            self.metrics.pictures.labels("refused").inc()
            # what follows the semicolon is advice to who runs Xcite, not to who sends pictures
            words = str(error).partition(";")[0].replace("\0", upload.name, 1)
            return PictureAnswer(file=upload.name, error=words)
        except DecodingStoppedError:
            self._answered = 0.0
            raise
        shares, looked = await self._predict(decoded, attention=attention)
        self.metrics.pictures.labels("answered").inc()
        seen = self._seen(decoded)
        return PictureAnswer(
            file=upload.name,
            predictions=[
                Prediction(name=name, probability=probability)
                for name, probability in ranked(shares, self.predictor.class_names, top)
            ],
            attention=None if looked is None else _grid(looked, seen),
        )

    async def _predict(
        self, decoded: Decoded, *, attention: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        future = self.batcher.submit(_Question(decoded.pixels, attention))
        try:
            answer = await asyncio.wrap_future(future)
        except Exception:
            self._answered = 0.0
            raise
        self._answered = time.monotonic()
        return answer

    def _seen(self, decoded: Decoded) -> Seen:
        preprocessing = self.predictor.preprocessing
        # So many pixels of the picture became one of the input, which may be the middle of what
        # the preprocessing cuts out.
        whole = decoded.height, decoded.width
        scale = preprocessing.crop_ratio * min(
            whole[0] / preprocessing.height, whole[1] / preprocessing.width
        )
        height, width = (
            scale * seen / side for seen, side in zip(decoded.pixels.shape[:2], whole, strict=True)
        )
        return Seen(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)

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
