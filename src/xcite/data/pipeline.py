"""Batches for training and evaluation, made by worker processes on grain.

A step's batch is a pure function of (recipe, source, epoch, step): its pictures, their augmentation
and their mixing are drawn from `xcite.randomness.generator` for exactly that place. So any number
of workers gives the same bytes, any number of training processes shares out the same batch, and a
run resumes at (epoch, step) without replaying anything.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from xcite.data import decoding, mixing, transforms
from xcite.data.augmentation import Augmentation
from xcite.data.batch import Batch, share
from xcite.data.grain_workers import Reader, owned
from xcite.data.skipping import Skipping
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.randomness import generator
from xcite.recipe import Recipe

_ROUNDING = 256  # repeated augmentation ends an epoch at a multiple of this, as the official code
WORKER_TIMEOUT = 300.0
"""Seconds to wait for a batch."""


class TrainLoader:
    """This process's share of every step's batch, augmented.

    The batch of a step and its mixing do not depend on the number of processes: of R, each takes
    its part of the pairs of mixing partners (`xcite.data.batch.share`).

    Attributes:
        steps_per_epoch: at least 1; the incomplete last batch is left out.
        skipped: name to reason of the pictures that could not be decoded (``data.on_error: skip``).
            Each was replaced by the next one in the source that can.

    Raises:
        XciteError: the batch is larger than the data set, or there are more processes than pairs
            of pictures in it; in `epoch` more pictures were skipped than `Skipping` allows.
    """

    def __init__(
        self, source: Source, recipe: Recipe, *, rank: int = 0, world_size: int = 1
    ) -> None:
        batch, repeats = recipe.optim.batch, recipe.data.repeats
        views = epoch_length(len(source), repeats)
        if batch > views:
            raise XciteError(
                f"optim.batch {batch} is larger than the data set: "
                f"{views} views of {len(source)} pictures an epoch; set optim.batch lower"
            )
        self.steps_per_epoch = views // batch
        self.skipped: dict[str, str] = {}
        self._make = _TrainBatch(source, recipe, self.steps_per_epoch, rank, world_size)
        self._data = recipe.data
        self._total = recipe.optim.epochs * self.steps_per_epoch
        self._reader: Reader | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch (counted from 0), from a step on.

        Workers stay alive between epochs and read ahead into the next one. Leaving an
        epoch early, or an exception, ends them; so does `close`.
        """
        first = epoch * self.steps_per_epoch + start_step
        if self._reader is None or self._reader.position != first:
            self.close()
            stop = max(self._total, (epoch + 1) * self.steps_per_epoch)
            self._reader = Reader(
                self._make,
                range(first, stop),
                workers=self._data.workers,
                prefetch=self._data.prefetch,
                timeout=self._data.worker_timeout,
                bytes_per_item=self._make.bytes_per_batch,
            )
        finished = False
        try:
            for _ in range(start_step, self.steps_per_epoch):
                batch, skipped = _unpacked(self._reader.next())
                self.skipped |= skipped
                self._make.skipping.check(self.skipped)
                yield batch
            finished = self._reader.position < self._reader.stop
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class EvaluationLoader:
    """Every picture once, in order, as `xcite.data.transforms.evaluation_pixels` makes it.

    With several processes each takes its own run of the pictures. The last batch is smaller.

    Attributes:
        skipped: name to reason of the pictures that could not be decoded (``on_error="skip"``);
            they are in no batch.

    Raises:
        XciteError: while going on: more pictures were skipped than `Skipping` allows.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        batch: int,
        workers: int,
        on_error: str = "stop",
        skip_limit: int | None = None,
        max_pixels: int = decoding.MAX_PIXELS,
        prefetch: int = 2,
        timeout: float = WORKER_TIMEOUT,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.skipped: dict[str, str] = {}
        bounds = [len(source) * part // world_size for part in (rank, rank + 1)]
        skipping = Skipping(on_error, skip_limit, len(source))
        self._make = _EvaluationBatch(
            source, preprocessing, range(*bounds), batch, skipping, max_pixels
        )
        self._workers = workers
        self._prefetch = prefetch
        self._timeout = timeout

    def __len__(self) -> int:
        """Number of batches, if no picture is skipped."""
        return self._make.batches

    def __iter__(self) -> Iterator[Batch]:
        steps = range(len(self))
        reader = Reader(
            self._make,
            steps,
            workers=min(self._workers, len(steps)),
            prefetch=self._prefetch,
            timeout=self._timeout,
            bytes_per_item=self._make.bytes_per_batch,
        )
        try:
            for _ in steps:
                batch, skipped = _unpacked(reader.next())
                self.skipped |= skipped
                self._make.skipping.check(self.skipped)
                if len(batch):
                    yield batch
        finally:
            reader.close()


def epoch_length(pictures: int, repeats: int) -> int:
    """Views of pictures in one epoch.

    With repeated augmentation an epoch has as many views as there are pictures, rounded down to a
    multiple of 256, and so shows only 1 / repeats of them. Fewer than 256 pictures are not rounded
    (the official sampler gives an epoch of nothing there).
    """
    if repeats == 1 or pictures < _ROUNDING:
        return pictures
    return pictures // _ROUNDING * _ROUNDING


def view_order(permutation: np.ndarray, repeats: int) -> np.ndarray:
    """Views of one epoch in order: int64 (`epoch_length`, 2), picture and number of repetition.

    Every picture of the permutation occurs ``repeats`` times in succession; the epoch ends early.
    """
    length = epoch_length(len(permutation), repeats)
    indices = np.repeat(permutation, repeats)[:length]
    return np.stack([indices, np.arange(length) % repeats], axis=1).astype(np.int64)


class _TrainBatch:
    """Makes the batch of a step, counted over the whole run; runs in a worker process."""

    def __init__(
        self, source: Source, recipe: Recipe, steps_per_epoch: int, rank: int, world_size: int
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        # Places in a step's batch of the pictures of this process.
        self.places, self.pairs = share(
            recipe.optim.batch, recipe.optim.accumulate, rank, world_size
        )
        self.augmentation = Augmentation(recipe)
        self.skipping = Skipping(recipe.data.on_error, recipe.data.skip_limit, len(source))
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def bytes_per_batch(self) -> int:
        seen = self.recipe.preprocessing
        return len(self.places) * seen.height * seen.width * seen.channels

    def __call__(self, global_step: int) -> dict[str, Any]:
        epoch, step = divmod(global_step, self.steps_per_epoch)
        recipe, augment = self.recipe, self.recipe.augment
        batch = recipe.optim.batch
        wanted = self._views(epoch)[step * batch + self.places]
        views = wanted.copy()
        height, width = recipe.preprocessing.height, recipe.preprocessing.width
        channels = recipe.preprocessing.channels
        pictures = np.empty((len(views), height, width, channels), np.uint8)
        erased: list[tuple[int, ...]] = []
        noises: list[np.ndarray] = []
        skipped: dict[str, str] = {}
        opened: dict[int, decoding.Opened] = {}
        for position, (index, repeat) in enumerate(views):
            index, draws = self._augmented(
                epoch, int(index), int(repeat), pictures[position], opened, skipped
            )
            views[position, 0] = index
            if augment.erasing:
                box = transforms.random_erasing_box(draws, height, width, augment.erasing)
                if box is not None and box[2] and box[3]:
                    erased.append((position, *box))
                    noises.append(
                        draws.standard_normal(channels * box[2] * box[3], dtype=np.float32)
                    )
        draws = generator(recipe.run.seed, "mixing", epoch, step, 0)
        mixed = mixing.draw(draws, batch, height, width, augment)
        if mixed is not None:
            mixed = mixed.of(self.places)
        labels = self.source.labels[views[:, 0]]
        classes = len(self.source.class_names)
        return {
            "pictures": pictures,
            "labels": labels,
            "views": views,
            "wanted": wanted,
            "targets": mixing.soft_targets(labels, classes, augment.smoothing, mixed),
            "erased": np.array(erased, np.int32).reshape(-1, 5),
            "noise": np.concatenate(noises) if noises else np.empty(0, np.float32),
            "share": np.empty(0, np.float32) if mixed is None else mixed.share,
            "boxes": np.empty((0, 4), np.int32) if mixed is None else mixed.boxes,
            "epoch": epoch,
            "whole": batch,
            "pairs": self.pairs,
            "skipped": skipped,
        }

    def _views(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            draws = generator(self.recipe.run.seed, "shuffle", epoch)
            order = view_order(draws.permutation(len(self.source)), self.recipe.data.repeats)
            self._order = epoch, order
        return self._order[1]

    def _augmented(
        self,
        epoch: int,
        index: int,
        repeat: int,
        pixels: np.ndarray,
        opened: dict[int, decoding.Opened],
        skipped: dict[str, str],
    ) -> tuple[int, np.random.Generator]:
        """Fill in the pixels; returns the picture's index and its generator, to go on drawing.

        ``opened`` remembers the last picture: its repetitions follow and need no second decoding.
        With on_error "skip" a damaged picture is replaced by the next one that can be decoded.
        """
        data, number = self.recipe.data, len(self.source)
        for candidate in range(index, index + number):
            candidate %= number
            name = self.source.name(candidate)
            draws = generator(self.recipe.run.seed, "augmentation", epoch, candidate, repeat)
            try:
                if candidate not in opened:
                    opened.clear()
                    opened[candidate] = decoding.Opened(
                        self.source.read(candidate), max_pixels=data.max_pixels, origin=name
                    )
                pixels[:] = self.augmentation(opened[candidate], draws)
                return candidate, draws
            except (XciteError, MemoryError) as error:
                self.skipping.leave_out(error, name, skipped)
        raise XciteError(f"none of the {number} pictures can be decoded; first: {name}")


class _EvaluationBatch:
    """Makes one batch of evaluation pictures; runs in a worker process."""

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        indices: range,
        batch: int,
        skipping: Skipping,
        max_pixels: int,
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.indices = indices
        self.batch = batch
        self.skipping = skipping
        self.max_pixels = max_pixels

    @property
    def batches(self) -> int:
        return -(-len(self.indices) // self.batch)

    @property
    def bytes_per_batch(self) -> int:
        seen = self.preprocessing
        return self.batch * seen.height * seen.width * seen.channels

    def __call__(self, step: int) -> dict[str, Any]:
        wanted = self.indices[step * self.batch : (step + 1) * self.batch]
        seen = self.preprocessing
        pictures = np.empty((len(wanted), seen.height, seen.width, seen.channels), np.uint8)
        decoded: list[int] = []
        skipped: dict[str, str] = {}
        for index in wanted:
            name = self.source.name(index)
            try:
                picture = decoding.decode(
                    self.source.read(index),
                    channels=seen.channels,
                    max_pixels=self.max_pixels,
                    origin=name,
                )
                pixels = transforms.evaluation_pixels(picture, seen)
            except (XciteError, MemoryError) as error:
                self.skipping.leave_out(error, name, skipped)
                continue
            pictures[len(decoded)] = pixels
            decoded.append(index)
        views = np.zeros((len(decoded), 2), np.int64)
        views[:, 0] = decoded
        return {
            "pictures": pictures[: len(decoded)],
            "labels": self.source.labels[views[:, 0]],
            "views": views,
            "skipped": skipped,
        }


def _unpacked(item: dict[str, Any]) -> tuple[Batch, dict[str, str]]:
    """A `Batch` of what a worker sent, and the skipped pictures."""
    arrays = {key: owned(value) for key, value in item.items() if isinstance(value, np.ndarray)}
    skipped = item["skipped"]
    batch = Batch(arrays["pictures"], arrays["labels"], arrays["views"])
    if "targets" not in arrays:
        return batch, skipped
    erased = []
    start, channels = 0, batch.pictures.shape[3]
    for position, top, left, height, width in arrays["erased"].tolist():
        stop = start + channels * height * width
        noise = arrays["noise"][start:stop].reshape(channels, height, width)
        erased.append((position, top, left, noise))
        start = stop
    mixed = mixing.Mixing(arrays["share"], arrays["boxes"]) if len(arrays["share"]) else None
    return (
        replace(
            batch,
            wanted=arrays["wanted"],
            targets=arrays["targets"],
            erased=erased,
            mixing=mixed,
            epoch=int(item["epoch"]),
            whole=int(item["whole"]),
            pairs=tuple(item["pairs"]),
        ),
        skipped,
    )
