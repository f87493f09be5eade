"""The teacher that a recipe names."""

from collections.abc import Sequence

from xcite.data.sources import Source
from xcite.recipe import Recipe
from xcite.training.teachers.cached import open_cache
from xcite.training.teachers.live import live_teacher
from xcite.training.teachers.teacher import Teacher


def build_teacher(
    recipe: Recipe, source: Source, class_names: Sequence[str], *, processes: int = 1
) -> Teacher | None:
    """The recipe's teacher: from the cache if it names one, else live; None without distillation.

    Args:
        source: the training pictures; a cache must have been made of them.
        class_names: the student's classes, in the order of its logits.
        processes: how many train together.

    Raises:
        XciteError: unreadable teacher, classes that do not match, or a cache that does not fit.
    """
    if recipe.distill.question is None:
        return None
    if recipe.distill.cache:
        return open_cache(recipe, source, class_names, processes=processes)
    return live_teacher(recipe, class_names)
