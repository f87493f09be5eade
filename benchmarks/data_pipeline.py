"""Training pictures per second and core: Xcite's loader against a plain Pillow and NumPy pipeline.

Both run in this one process on the same JPEG bytes (drawn here, as large as ImageNet's, with the
paper's recipe: repeated augmentation, RandAugment, erasing, mixup and CutMix), alternating, timed
by the processor time of this process.

- plain: per view decode all, convert, crop, resize, flip, RandAugment, to float32, normalise,
  erase; then stack and mix in NumPy. It decodes a picture anew for each of its repetitions.
- ours: what a worker does with ``data.fast``, up to uint8 batches; and, separately, with what is
  left for the main process on a CPU, normalising, erasing and mixing.
- exact: what a worker does without ``data.fast``, where pixels are bit for bit timm's.

    python benchmarks/data_pipeline.py [--rounds 9] [--batch 63]

With ``--workers 1 2 4 8`` it measures worker processes instead, as a training run has them, on
pictures of 500 x 375, the numbers of workers by turns:

- pictures/s: by the clock, batches taken as fast as they come;
- per core: pictures per second of the workers' own processor time, which others on the machine
  disturb less: what a worker makes where it has a core for itself;
- MiB: proportional set size of a worker, and of the process that trains, in which a page that
  n processes share counts 1 / n.

    python benchmarks/data_pipeline.py --workers 1 2 4 8
"""

import argparse
import io
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
from PIL import Image

from xcite.data import mixing, randaugment, transforms
from xcite.data.batch import Batch
from xcite.data.pipeline import TrainLoader
from xcite.engines.pixels import model_input
from xcite.machine import usable_cores
from xcite.preprocessing import Preprocessing
from xcite.processor import this_processor
from xcite.recipe import Recipe, parse


def drawn_photograph(rng: np.random.Generator, height: int, width: int) -> bytes:
    """Smooth random fields of every scale with some grain: compresses as photographs do."""
    picture = np.zeros((height, width, 3))
    for octave in range(1, 8):
        side = 2**octave + 1
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(size=(side, side)).astype(np.float32))
            fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            picture[:, :, channel] += fine * 0.62**octave
    picture += rng.normal(size=(height, width, 1)) * 0.2
    picture -= picture.min()
    pixels = (picture * (255 / picture.max())).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


class Memory:
    """A source of pictures that are in memory already."""

    def __init__(self, pictures: list[bytes]) -> None:
        self.pictures = pictures
        self.class_names = [str(label) for label in range(1000)]
        self.labels = np.arange(len(pictures), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> bytes:
        return self.pictures[index]

    def name(self, index: int) -> str:
        return f"drawn/{index}"

    def fingerprint(self) -> str:
        return "drawn"


def plain_batch(source: Memory, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """One batch as float32 (B, C, H, W), one straightforward step after the other."""
    size, preprocessing = recipe.preprocessing.size, recipe.preprocessing
    policy = randaugment.parse(recipe.augment.randaugment or "")
    fill = randaugment.fill_colour(preprocessing.mean)
    mean, std = np.float32(preprocessing.mean), np.float32(preprocessing.std)
    repeats = recipe.data.repeats
    images = []
    for view in range(recipe.optim.batch):
        image = Image.open(io.BytesIO(source.read(view // repeats % len(source)))).convert("RGB")
        box = transforms.random_resized_crop_box(rng, image.height, image.width)
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = randaugment.apply(image, randaugment.draw(rng, policy), fill)
        array = (np.asarray(image).astype(np.float32) / np.float32(255) - mean) / std
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
        erased = transforms.random_erasing_box(rng, size, size, recipe.augment.erasing)
        if erased is not None:
            top, left, height, width = erased
            noise = rng.standard_normal((3, height, width), dtype=np.float32)
            array[:, top : top + height, left : left + width] = noise
        images.append(array)
    batch = np.stack(images)
    mixed = mixing.draw(rng, len(batch), size, size, recipe.augment)
    if mixed is not None and mixed.boxes[0, 0] < 0:
        share = mixed.share[0]
        batch = batch * share + batch[::-1] * (1 - share)
    elif mixed is not None:
        top, bottom, left, right = mixed.boxes[0]
        batch[:, :, top:bottom, left:right] = batch[::-1, :, top:bottom, left:right].copy()
    return batch


def processor_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def endless(loader: TrainLoader) -> Generator[Batch, None, None]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def measure(height: int, width: int, repeats: int, batch: int, rounds: int) -> dict[str, str]:
    rng = np.random.default_rng(0)
    source = Memory([drawn_photograph(rng, height, width) for _ in range(max(batch, 64))])
    recipe, exact = (settings(0, repeats, batch, fast) for fast in (True, False))
    preprocessing: Preprocessing = recipe.preprocessing
    batches, exact_batches = (endless(TrainLoader(source, each)) for each in (recipe, exact))
    held: dict[str, object] = {}
    times: dict[str, list[float]] = {"plain": [], "ours": [], "engine": [], "exact": []}
    for turn in range(rounds + 1):
        seconds = {
            "plain": processor_seconds(lambda: plain_batch(source, recipe, rng)),
            "ours": processor_seconds(lambda: held.update(batch=next(batches))),
            "engine": processor_seconds(lambda: model_input(held["batch"], preprocessing)),
            "exact": processor_seconds(lambda: next(exact_batches)),
        }
        if turn:  # the first round only warms up
            for name, value in seconds.items():
                times[name].append(batch / value)
    batches.close()
    exact_batches.close()
    rates = {name: statistics.median(values) for name, values in times.items()}
    rates["ours with the rest"] = 1 / (1 / rates["ours"] + 1 / rates["engine"])
    return {
        "picture": f"{width} x {height}",
        "kB": f"{statistics.mean(len(p) for p in source.pictures) / 1000:.0f}",
        "repeats": str(repeats),
        **{name: f"{rate:.1f}" for name, rate in rates.items()},
        "ratio": f"{rates['ours'] / rates['plain']:.2f}",
        "of exact": f"{rates['exact'] / rates['plain']:.2f}",
        "with the rest": f"{rates['ours with the rest'] / rates['plain']:.2f}",
    }


def settings(workers: int, repeats: int, batch: int, fast: bool) -> Recipe:
    return parse(
        f"{{data: {{workers: {workers}, repeats: {repeats}, fast: {str(fast).lower()}}}, "
        f"optim: {{batch: {batch}, lr_per: null}}}}",
        "benchmark",
    )


def processor_seconds_of(pid: int | None) -> float:
    """That a process has used so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_mib(pid: int | None) -> float:
    """Proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} tells no proportional set size")


def measure_once(source: Memory, recipe: Recipe) -> tuple[float, float, float, float]:
    """Pictures/s, pictures per second of processor time, MiB of a worker and of this process."""
    workers, prefetch = recipe.data.workers, recipe.data.prefetch
    batches = endless(TrainLoader(source, recipe))
    for _ in range(2 * (prefetch + 1) * workers):  # until nothing is taken that lay ready
        next(batches)
    pids = [process.pid for process in multiprocessing.active_children()]
    used = [processor_seconds_of(pid) for pid in pids]
    start, count = time.perf_counter(), 8 * workers
    for _ in range(count):
        next(batches)
    pictures, seconds = count * recipe.optim.batch, time.perf_counter() - start
    processor = sum(processor_seconds_of(pid) for pid in pids) - sum(used)
    sizes = statistics.mean(proportional_mib(pid) for pid in pids)
    result = pictures / seconds, pictures / processor, sizes, proportional_mib(os.getpid())
    batches.close()
    return result


def measure_workers(numbers: list[int], batch: int, rounds: int) -> None:
    """Print a table: for each number of workers, by turns."""
    rng = np.random.default_rng(0)
    source = Memory([drawn_photograph(rng, 375, 500) for _ in range(max(batch, 64))])
    kinds = [(3, True), (1, True), (1, False)]
    results: dict[tuple[int, bool, int], list[tuple[float, ...]]] = {}
    for _ in range(rounds):
        for workers, (repeats, fast) in itertools.product(numbers, kinds):
            seen = measure_once(source, settings(workers, repeats, batch, fast))
            results.setdefault((repeats, fast, workers), []).append(seen)
    processor, cores = this_processor(), usable_cores()
    print(
        "| repeats | data.fast | workers | pictures/s | per core | a worker, MiB | training, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (repeats, fast, workers), values in sorted(
        results.items(), reverse=True, key=lambda x: (x[0][0], x[0][1], -x[0][2])
    ):
        rate, own, worker, here = (
            statistics.median(column) for column in zip(*values, strict=True)
        )
        more = f", more than the {cores} cores" if workers > cores else ""
        print(
            f"| {repeats} | {'yes' if fast else 'no'} | {workers}{more} | {rate:.0f} | {own:.0f} "
            f"| {worker:.0f} | {here:.0f} |"
        )
    print(f"\n{cores} cores of {processor.name}, model {processor.model or 'unknown'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=63)
    parser.add_argument("--workers", type=int, nargs="+", help="measure worker processes instead")
    options = parser.parse_args()
    if options.workers:
        measure_workers(options.workers, options.batch, options.rounds)
        return
    heads: list[str] = []
    for height, width, repeats in ((375, 500, 3), (375, 500, 1), (768, 1024, 3)):
        row = measure(height, width, repeats, options.batch, options.rounds)
        if not heads:
            heads = [*row]
            print(f"| {' | '.join(heads)} |\n| {' | '.join(['---'] * len(heads))} |")
        print(f"| {' | '.join(row.values())} |", flush=True)


if __name__ == "__main__":
    main()
