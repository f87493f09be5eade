"""Training: the one loop, its schedules, checkpoints and run folders."""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

__all__ = ["Outcome", "recipe_for", "train"]

if TYPE_CHECKING:
    from xcite.training.fitting import recipe_for
    from xcite.training.loop import Outcome, train
else:
    __getattr__ = lazy_modules(
        __name__,
        Outcome="loop",
        recipe_for="fitting",
        train="loop",
    )
