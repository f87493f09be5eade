"""What do a teacher's stored answers for a million pictures take: bytes to keep, time to read?

    python benchmarks/answer_cache.py [--pictures 1000000] [--place FOLDER]

Random answers of 1000 classes go the way of real ones, through `compress`, `save` and
`CachedTeacher`: classes alone (hard), and the 16 most probable ones (soft). The files lie in a
temporary folder and have just been written, so opening one finds it in the system's memory.
Batches of 1024 are asked for in random order.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xcite import recipe as recipes
from xcite.data.batch import Batch
from xcite.recipe import Recipe
from xcite.training.teachers.cache_files import Columns, join, save, view_path
from xcite.training.teachers.cached import CachedTeacher, compress

CLASSES, BATCH, HASH = 1000, 1024, "random"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5, help="openings, of which the median")
    parser.add_argument("--place", help="folder to work in")
    options = parser.parse_args()
    print(f"| {options.pictures:,} pictures | bytes a picture and view | MB a view ", end="")
    print("| compress, s | write, s | open, s | answers/s in batches |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for loss, name in (("hard", "hard"), ("soft", "soft, top 16 of 1000")):
        recipe = recipes.parse("", "benchmark", [f"distill.loss={loss}", "distill.cache=here"])
        with tempfile.TemporaryDirectory(dir=options.place) as place:
            print(f"| {name} | {measure(recipe, options.pictures, options.repeats, Path(place))} |")


def measure(recipe: Recipe, pictures: int, repeats: int, place: Path) -> str:
    """The cells of one kind of answers."""
    path, parts, compressing = view_path(place, 0), [], 0.0
    for answers in given(recipe, pictures):
        started = time.perf_counter()
        parts.append(compress(answers, recipe, CLASSES))
        compressing += time.perf_counter() - started
    columns: Columns = {**join(parts), "present": np.packbits(np.ones(pictures, bool))}
    started = time.perf_counter()
    save(path, columns, HASH, 0)
    writing = time.perf_counter() - started
    size = path.stat().st_size

    order = np.random.default_rng(1).permutation(pictures)
    batches = [batch_of(order[first : first + BATCH]) for first in range(0, pictures, BATCH)]
    manifest = {"hash": HASH, "teacher": {}}
    opening = []
    for _ in range(repeats):
        teacher = CachedTeacher(place, manifest, 1, recipe, CLASSES)
        started = time.perf_counter()
        teacher.answers(batches[0])  # opens the view
        opening.append(time.perf_counter() - started)
    started, asked = time.perf_counter(), 0
    for batch in batches:
        asked += len(teacher.answers(batch))
    speed = asked / (time.perf_counter() - started)
    figures = (f"{size / pictures:.2f}", f"{size / 1e6:.1f}", f"{compressing:.1f}")
    median = float(np.median(opening))
    return " | ".join((*figures, f"{writing:.2f}", f"{median:.3f}", f"{speed:,.0f}"))


def given(recipe: Recipe, pictures: int) -> Iterator[np.ndarray]:
    """Answers in batches as a teacher gives them: classes int64 (B,) or logits float32 (B, K)."""
    random = np.random.default_rng(0)
    for first in range(0, pictures, BATCH):
        count = min(BATCH, pictures - first)
        logits = 3 * random.standard_normal((count, CLASSES), np.float32)
        yield logits.argmax(1) if recipe.distill.loss == "hard" else logits


def batch_of(indices: np.ndarray) -> Batch:
    """What a cached teacher reads of a batch: which pictures these are."""
    views = np.stack([indices, np.zeros_like(indices)], axis=1)
    return Batch(np.empty((len(indices), 0, 0, 3), np.uint8), np.zeros(len(indices), int), views)


if __name__ == "__main__":
    main()
