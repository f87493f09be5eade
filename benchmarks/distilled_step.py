"""What does a teacher cost per training step? Live RegNetY-160, cached, and none, side by side.

    python benchmarks/distilled_step.py [--engines paddle torch] [--batch 8] [--repeats 5]

XCiT-N12/8 at 224 learns from pictures of noise with the hard loss. The three kinds of step take
turns in one process, so that whatever else the machine does meets all of them; loading pictures is
left out, being the same for all. Processor time (of all threads) tells more than the clock where
the machine is shared. A cached step should take at most 1.15 times the undistilled one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from xcite import recipe as recipes
from xcite.data.batch import Batch
from xcite.data.pipeline import TrainLoader
from xcite.engines import create_engine
from xcite.recipe import Recipe
from xcite.recipe_sections import DistillRecipe
from xcite.training import plan
from xcite.training.teachers.cached import open_cache
from xcite.training.teachers.computing import compute
from xcite.training.teachers.live import LiveTeacher
from xcite.training.teachers.teacher import Teacher
from xcite.variants import find

KINDS = ("undistilled", "cached teacher", "live RegNetY-160")
Step = Callable[[], object]


def main() -> None:
    """Measure and print; with --json also write the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["paddle", "torch"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[tuple[float, float]]]] = {}  # clock, processor
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_pictures(place / "pictures", options.batch)
        steps = {
            engine: prepare(engine, place, options.batch, options.size)
            for engine in options.engines
        }
        for kinds in steps.values():
            for step in kinds.values():
                step()  # the first step allocates and is not counted
        for _ in range(options.repeats):
            for engine, kinds in steps.items():
                kinds["undistilled"]()  # after the other engine caches and threads are cold
                for kind, step in kinds.items():
                    start, used = time.perf_counter(), time.process_time()
                    step()
                    taken = time.perf_counter() - start, time.process_time() - used
                    seconds.setdefault(engine, {}).setdefault(kind, []).append(taken)
    print(f"xcit_nano_12_p8, {options.size} px, batch {options.batch}, {options.repeats} rounds")
    print(f"{'':<28}{'clock':^22}{'processor':^22}")
    print(f"{'engine':<8}{'step':<20}{'median':>9}{'ratio':>9}{'median':>13}{'ratio':>9}")
    for engine, kinds in seconds.items():
        for kind, taken in kinds.items():
            line = f"{engine:<8}{kind:<20}"
            for column, width in ((0, 7), (1, 11)):
                own = [pair[column] for pair in taken]
                alone = [pair[column] for pair in kinds["undistilled"]]
                ratio = statistics.median(a / b for a, b in zip(own, alone, strict=True))
                line += f"{statistics.median(own):>{width}.2f} s{ratio:>9.2f}"
            print(line)
    print("ratio: to the undistilled step of the same round, median over the rounds")
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


def write_pictures(folder: Path, count: int) -> None:
    """Pictures of noise in two classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (256, 256, 3), np.uint8)).save(path)


def prepare(engine: str, place: Path, batch: int, size: int) -> dict[str, Step]:
    """One step of each kind on an engine, all of the same batch of the same student."""
    cache = place / f"cache-{engine}"
    recipe = recipes.load(
        "imagenet-distilled",
        [
            f"run.engine={engine}",
            "model.name=xcit_nano_12_p8",
            f"data.train={place / 'pictures'}",
            "data.validation=null",
            "data.workers=0",
            f"preprocessing.size={size}",
            f"optim.batch={batch}",
            "optim.lr_per=null",
            "distill.loss=hard",
            "distill.teacher=null",
            "distill.teacher_model=null",
            f"distill.cache={cache}",
            "distill.views=1",
        ],
    )
    prepared = plan.make(recipe)
    classes = prepared.class_names
    # Untrained weights cost what trained ones do.
    regnet = create_engine(engine, find("regnety_160", num_classes=len(classes)))
    live = LiveTeacher(
        regnet.predict,
        student=recipe.preprocessing,
        own=recipe.preprocessing,
        classes=len(classes),
        columns=None,
        hard=True,
        identity={
            "name": "regnety_160",
            "sha256": "untrained",
            "size": size,
            "mean": [],
            "std": [],
        },
    )
    compute(recipe, prepared.train, classes, live, cache)
    cached = open_cache(recipe, prepared.train, classes)
    first = next(iter(TrainLoader(prepared.train, recipe).epoch(0)))
    alone = DistillRecipe()
    return {
        kind: step_of(engine, prepared, recipe, distill, teacher, first)
        for kind, distill, teacher in zip(
            KINDS,
            (alone, recipe.distill, recipe.distill),
            (None, cached, live),
            strict=True,
        )
    }


def step_of(
    engine: str,
    prepared: plan.Plan,
    recipe: Recipe,
    distill: DistillRecipe,
    teacher: Teacher | None,
    batch: Batch,
) -> Step:
    """A training step with the teacher's answers asked for, if there is one."""
    student = create_engine(engine, prepared.architecture)
    student.start_training(recipe.optim, distill, recipe.preprocessing)

    def step() -> object:
        answers = teacher.answers(batch) if teacher else None
        return student.train_step([batch], learning_rate=1e-5, paths=[None], teacher=[answers])

    return step


if __name__ == "__main__":
    main()
