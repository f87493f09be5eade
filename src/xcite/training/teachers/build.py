"""The teacher that a recipe names."""

import os
from collections.abc import Sequence
from pathlib import Path

from xcite.data.sources import Source
from xcite.errors import naming
from xcite.recipe import Recipe
from xcite.training.teachers.cache_files import read_manifest
from xcite.training.teachers.cached import open_cache
from xcite.training.teachers.facts import facts
from xcite.training.teachers.live import live_teacher
from xcite.training.teachers.teacher import Teacher


def build_teacher(recipe: Recipe, source: Source, class_names: Sequence[str]) -> Teacher | None:
    """The recipe's teacher: from the cache if it names one, else live; None without distillation.

    Args:
        source: the training pictures; a cache must have been made of them.
        class_names: the student's classes, in the order of its logits.

    Raises:
        XciteError: unreadable teacher, classes that do not match, or a cache that does not fit.
    """
    if recipe.distill.question is None:
        return None
    if recipe.distill.cache:
        return open_cache(recipe, source, class_names)
    return live_teacher(recipe, class_names)


def projected(recipe: Recipe, class_names: Sequence[str]) -> int:
    """How many outputs a student has beside its classes, to learn in ``distill.space``.

    Raises:
        XciteError: unreadable teacher or cache, or a program that shows no features.
    """
    distill = recipe.distill
    if distill.space == "classes":
        return 0
    if distill.teacher is None:
        assert distill.cache is not None
        return int(read_manifest(Path(os.path.expanduser(distill.cache)))["classes"])
    with naming(distill.teacher, f"teacher {distill.teacher}"):
        return facts(recipe, class_names).outputs(distill.space)
