"""The documentation site is built without a warning, and holds what programs use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xcite
from xcite.engines import installed

for needed in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(needed)
pytestmark = pytest.mark.skipif("torch" not in installed(), reason="the models shown are PyTorch's")

ROOT = Path(__file__).parents[2]
SHOWN = [
    *(f"xcite.{name}" for name in xcite.__all__ if name != "Predictor"),
    *(f"xcite.runtime.predictor.Predictor.{name}" for name in ("predict", "embed", "run", "close")),
    "xcite.runtime.answers.UnreadablePicture",
    "xcite.runtime.opening.open_model",
    "xcite.weights.opening.open_weights",
    "xcite.weights.convert.convert",
    "xcite.training.loop.train",
    "xcite.training.fitting.recipe_for",
    "xcite.recipe.load",
    "xcite.recipe.OptimRecipe",
    "xcite.export.export.export",
    "xcite.data.sources.opening.open_source",
    "xcite.preprocessing.Preprocessing",
]


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), "site"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "site/objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, path: path)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert set(SHOWN) <= known, set(SHOWN) - known
    for page in ("index", "python", "weights", "api/predictor"):
        assert (tmp_path / f"site/{page}.html").is_file()
    page = (tmp_path / "site/api/training.html").read_text("utf-8")
    assert "lr is scaled by batch" in page, "recipes without the meaning of their fields"
