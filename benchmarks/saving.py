"""What safety costs a run: steps while a checkpoint is written, the state's copy, opening, data.

    python benchmarks/saving.py --engine torch --model xcit_nano_12_p8 --size 224 --batch 8

Steps of three kinds take turns, so that whatever else the machine does meets all of them: without
saving; with the checkpoint written between two steps, as it was before; and with a copy written by
a thread. A save is begun before the first of every ``--every`` steps. Prints a Markdown table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from xcite.data.batch import Batch
from xcite.engines import create_engine
from xcite.engines.interface import Engine
from xcite.preprocessing import Preprocessing
from xcite.recipe_sections import DistillRecipe, OptimRecipe
from xcite.training import checkpoint
from xcite.training.checkpoint import Position
from xcite.training.json_lines import append
from xcite.training.run_folder import RunFolder
from xcite.training.saving import Writer
from xcite.variants import find


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--model", default="xcit_nano_12_p8")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=10, help="steps between two saves")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    engine = create_engine(options.engine, find(options.model, num_classes=100))
    engine.start_training(OptimRecipe(ema=0.999), DistillRecipe(), Preprocessing())
    batch = _batch(options.batch, options.size)
    step = lambda: _step(engine, batch)  # noqa: E731
    step()
    with tempfile.TemporaryDirectory() as place:
        folder, writer = RunFolder(place), Writer()
        size = sum(array.nbytes for array in engine.training_state().values())
        kinds: dict[str, Callable[[], None]] = {
            "no saving": lambda: None,
            "written between two steps": lambda: _write(folder, engine.training_state()),
            "written by a thread": lambda: _begin(folder, engine, writer),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        longest: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, save in kinds.items():
                times = []
                for number in range(options.every):
                    began = time.perf_counter()
                    if number == 0:
                        save()
                    step()
                    times.append(time.perf_counter() - began)
                writer.wait()
                seconds[kind].append(statistics.mean(times))
                longest[kind].append(max(times))
        print(
            f"{options.model} on {options.engine}, {options.batch} pictures of {options.size} px, "
            f"state {size / 2**20:.0f} MiB, a save every {options.every} steps\n"
        )
        print("| | mean step | longest step |\n| --- | --- | --- |")
        for kind in kinds:
            print(
                f"| {kind} | {1000 * statistics.median(seconds[kind]):.1f} ms "
                f"| {1000 * statistics.median(longest[kind]):.1f} ms |"
            )
        print(f"\nthe state's copy: {_milliseconds(engine.training_state):.1f} ms")
        _write(folder, engine.training_state())
        print(
            f"writing it: {_milliseconds(lambda: _write(folder, engine.training_state())):.1f} ms"
        )
        print(f"reading: {_milliseconds(lambda: checkpoint.load(folder.checkpoint)):.1f} ms")
        row = '{"kind": "step", "loss": 1.0}\n'
        print(f"a metrics row: {_milliseconds(lambda: append(folder.metrics, row)):.3f} ms")
        print(f"a status: {_milliseconds(lambda: folder.write_status({'step': 1})):.3f} ms")


def _batch(pictures: int, size: int) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        rng.integers(0, 256, (pictures, size, size, 3), dtype=np.uint8),
        np.zeros(pictures, np.int64),
        np.zeros((pictures, 2), np.int64),
        targets=np.full((pictures, 100), 0.01, np.float32),
    )


def _step(engine: Engine, batch: Batch) -> None:
    engine.train_step([batch], learning_rate=1e-5, paths=[None], teacher=[None])


def _write(folder: RunFolder, state: dict[str, np.ndarray]) -> None:
    checkpoint.save(folder.coming, state, Position())
    checkpoint.publish(folder)


def _begin(folder: RunFolder, engine: Engine, writer: Writer) -> None:
    state = engine.training_state()
    writer.start([lambda: _write(folder, state)])


def _milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
