"""The pictures that a run folder knows: what a command looks at where none are named."""

from pathlib import Path
from typing import TYPE_CHECKING

from xcite.errors import XciteError

if TYPE_CHECKING:
    from xcite.data.sources import Source
    from xcite.recipe_sections import DataRecipe


def own_pictures(model: str, ask: str) -> "tuple[Source, DataRecipe]":
    """The validation pictures of a run folder, and how its recipe treats pictures.

    Args:
        ask: what to say where ``model`` is no run folder.

    Raises:
        XciteError: no run folder, or one without validation pictures.
    """
    if not (Path(model) / "recipe.yaml").is_file():
        raise XciteError(ask)
    from xcite import recipe as recipes
    from xcite.training.run_data import open_validation

    return open_validation(model), recipes.load(model).data
