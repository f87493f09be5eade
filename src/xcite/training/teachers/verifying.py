"""Whether a cache holds what the teacher answers: some of its entries computed again."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite import recipe as recipes
from xcite.data.batch import Batch, split
from xcite.data.pipeline import TrainLoader
from xcite.data.sources import Source
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.runtime.ranking import probabilities
from xcite.training.teachers.cache_files import view_path
from xcite.training.teachers.cached import CachedTeacher, directions, open_cache
from xcite.training.teachers.checksums import check_files
from xcite.training.teachers.live import LiveTeacher

# Of a probability: float16 keeps three digits, and engines differ by less.
CLOSE = 2e-3


@dataclass(frozen=True)
class Verified:
    """What was compared.

    Attributes:
        files: of the cache, with their checksums; 0 where it has none.
        entries: answers that were computed again.
        largest: the largest difference of a probability, or of a component of features of length
            1; of classes, how much more probable the teacher's answer is than the one that is kept.
    """

    files: int
    entries: int
    largest: float


def verify(
    recipe: Recipe,
    source: Source,
    class_names: Sequence[str],
    teacher: LiveTeacher,
    entries: int,
) -> Verified:
    """Check the files of ``recipe.distill.cache``, and compute answers of random steps again.

    Args:
        entries: at least so many; whole steps are computed, as mixing joins their pictures.

    Raises:
        XciteError: no cache, damaged files, one that does not fit the recipe, or answers that
            differ by more than rounding.
    """
    folder = Path(os.path.expanduser(recipe.distill.cache or ""))
    files = check_files(folder)
    views = next(view for view in itertools.count() if not view_path(folder, view).is_file())
    recipe = recipes.with_values(recipe, "distill", views=max(views, 1))
    cached = open_cache(recipe, source, class_names)
    loader = TrainLoader(source, recipe)
    steps = loader.steps_per_epoch
    wanted = min(-(-entries // recipe.optim.batch), views * steps)
    places = np.random.default_rng().choice(views * steps, wanted, replace=False)
    compared, gaps = 0, [np.zeros(0)]
    try:
        for place in np.sort(places).tolist():
            view, step = divmod(place, steps)
            batch = next(loader.epoch(view, start_step=step))
            for part in split(batch, recipe.optim.accumulate):
                gaps.append(_gap(cached, teacher, part, recipe))
                compared += len(part)
    finally:
        loader.close()
    gap = np.concatenate(gaps)
    differing, largest = int((gap > CLOSE).sum()), float(gap.max(initial=0.0))
    if differing:
        raise XciteError(
            f"{differing} of {compared} answers of the teacher cache {folder} are not the "
            f"teacher's, by up to {largest:.3g} of a probability; make another one with "
            "`xcite teach --out`"
        )
    return Verified(files, compared, largest)


def _gap(cached: CachedTeacher, teacher: LiveTeacher, batch: Batch, recipe: Recipe) -> np.ndarray:
    """float64 (B,), what `Verified.largest` is the largest of."""
    temperature, kept = recipe.distill.temperature, cached.answers(batch)
    if recipe.distill.space == "features":
        return np.abs(directions(teacher.logits(batch)) - kept).max(1)
    shares = probabilities(teacher.logits(batch), temperature)
    if kept.ndim == 1:
        return shares.max(1) - shares[np.arange(len(kept)), kept]
    best = np.argsort(-shares, axis=1)[:, : min(recipe.distill.top, shares.shape[1])]
    difference = np.take_along_axis(np.abs(shares - probabilities(kept, temperature)), best, 1)
    return difference.max(1)
