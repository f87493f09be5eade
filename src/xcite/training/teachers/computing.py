"""`xcite teach`: a teacher's answers for every picture that training will see, computed once."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcite.data.batch import Batch, split
from xcite.data.pipeline import TrainLoader
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training.ownership import Ownership, is_leftover, remove_leftovers
from xcite.training.teachers.cache_files import (
    FORMAT,
    Columns,
    digest,
    join,
    part_path,
    read,
    read_manifest,
    save,
    view_path,
)
from xcite.training.teachers.cached import (
    compress,
    dependencies,
    divergence,
    refuse_differences,
)
from xcite.training.teachers.card import licence_of, write_card
from xcite.training.teachers.live import LiveTeacher
from xcite.whole_files import write_text

PART_PICTURES = 1024  # an interruption costs at most this many answers


def compute(
    recipe: Recipe,
    source: Source,
    class_names: Sequence[str],
    teacher: LiveTeacher,
    folder: Path,
    *,
    views: int | None = None,
    after_batch: Callable[[int, int], None] = lambda pictures, total: None,
    left_out: Callable[[dict[str, str]], None] = lambda skipped: None,
) -> int:
    """Compute and store the teacher's answers for every picture of epochs 0 to views - 1.

    An unfinished cache is continued.

    Args:
        views: epochs to compute; by default ``distill.views``, else all of the recipe's.
        after_batch: called with the number of pictures done so far, and of all.
        left_out: called at the end with name and reason of pictures that could not be decoded.

    Returns:
        How many views the cache holds now.

    Raises:
        XciteError: the folder holds a cache of another recipe, or cannot be written.
    """
    views = views or recipe.distill.views or recipe.optim.epochs
    depends = dependencies(recipe, source, class_names, teacher.identity())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "hash": digest(depends),
        "depends": depends,
        "teacher": teacher.identity(),
        "classes": teacher.outputs,
        "class_names": teacher.class_names,
        "pictures": len(source),
    }
    known: dict[str, Any] = {}
    if (folder / "manifest.json").is_file():
        known = read_manifest(folder)
        refuse_differences(folder, depends, known["depends"])
    elif folder.is_dir() and not all(map(is_leftover, folder.iterdir())):
        raise XciteError(f"{folder} is not empty and holds no teacher cache; give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XciteError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    owned = Ownership.take(folder)
    loader: TrainLoader | None = None
    try:
        remove_leftovers(folder)
        if {*manifest, "licence"} - known.keys():  # a new cache, or one of an earlier version
            manifest = {**manifest, "licence": licence_of(recipe.distill.teacher), **known}
            write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        loader = TrainLoader(source, recipe)
        work = _Work(recipe, loader, teacher, folder, manifest["hash"], len(source))
        each = work.steps * recipe.optim.batch
        for view in range(views):
            if not view_path(folder, view).is_file():
                for steps in work.compute(view):
                    after_batch(view * each + steps * recipe.optim.batch, views * each)
                write_card(folder, view_path(folder, view))
            after_batch((view + 1) * each, views * each)
        write_card(folder)  # also where nothing was left to compute: an earlier version wrote none
    finally:
        if loader is not None:
            loader.close()
            left_out(loader.skipped)
        owned.release()
    return views


class _Work:
    """Computes views part by part, so that an interruption loses little."""

    def __init__(
        self,
        recipe: Recipe,
        loader: TrainLoader,
        teacher: LiveTeacher,
        folder: Path,
        hashed: str,
        pictures: int,
    ) -> None:
        self.recipe = recipe
        self.loader = loader
        self.teacher = teacher
        self.folder = folder
        self.hashed = hashed
        self.keys = pictures * recipe.data.repeats
        self.steps = loader.steps_per_epoch
        self.part = min(self.steps, max(1, PART_PICTURES // recipe.optim.batch))  # steps in a part

    def compute(self, view: int) -> Iterator[int]:
        """Write the file of a view; yields the number of its steps done, after each."""
        count = -(-self.steps // self.part)
        paths = [part_path(self.folder, view, part) for part in range(count)]
        done = next((i for i, path in enumerate(paths) if not path.is_file()), count)
        gathered: list[Columns] = []
        step = done * self.part
        if step < self.steps:
            for batch in self.loader.epoch(view, start_step=step):
                gathered.append(self._answers(batch))
                step += 1
                if step % self.part == 0 or step == self.steps:
                    path = paths[(step - 1) // self.part]
                    save(path, join(gathered), self.hashed, view)
                    gathered = []
                yield step
        self._finish(view, join([self._read_part(path, view) for path in paths]))
        for path in paths:
            path.unlink(missing_ok=True)

    def _read_part(self, path: Path, view: int) -> Columns:
        part = read(path, self.hashed, view)
        if "shown" not in part:  # written before pictures could stand in for others
            part["shown"] = part["keys"]
        if "rest" in part and "divergence" not in part:  # written before it was measured
            part["divergence"] = np.full(len(part["rest"]), np.nan, np.float32)
        return part

    def _answers(self, batch: Batch) -> Columns:
        """Keys and stored answers of a step's batch."""
        # The teacher sees the parts that a training step sees: the same sums, the same bits.
        parts = split(batch, self.recipe.optim.accumulate)
        answers = np.concatenate([self.teacher.answers(part) for part in parts])
        keys = [part.keys(self.recipe.data.repeats) for part in parts]
        wanted, shown = (np.concatenate(each) for each in zip(*keys, strict=True))
        stored = compress(answers, self.recipe, self.teacher.outputs)
        if "rest" in stored:
            stored["divergence"] = divergence(answers, stored, self.recipe, self.teacher.outputs)
        return {"keys": wanted, "shown": shown, **stored}

    def _finish(self, view: int, whole: Columns) -> None:
        """Sort the answers of a view by key, with a bit for every key that has one."""
        keys, shown = whole.pop("keys"), whole.pop("shown")
        measured = {}
        if "rest" in whole:
            lost, outside = whole.pop("divergence"), whole["rest"].astype(np.float64)
            measured = {"outside_mean": outside.mean(), "outside_largest": outside.max()}
            if np.isfinite(lost).all():
                measured["divergence"] = lost.mean(dtype=np.float64)
        order = np.argsort(keys, kind="stable")
        present = np.zeros(self.keys, bool)
        present[keys] = True
        columns = {name: np.ascontiguousarray(column[order]) for name, column in whole.items()}
        columns["present"] = np.packbits(present)
        if (replaced := order[keys[order] != shown[order]]).size:
            columns["replaced"] = np.stack([keys[replaced], shown[replaced]], axis=1)
        save(view_path(self.folder, view), columns, self.hashed, view, measured)
