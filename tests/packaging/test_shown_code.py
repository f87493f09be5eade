"""The Python that README, docs and a generated model card show runs as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcite.canonical import initial_weights
from xcite.engines import installed
from xcite.preprocessing import Preprocessing
from xcite.training.teachers.cache_files import save, view_path
from xcite.variants import XCiTArchitecture, find
from xcite.weights import Metadata, WeightFile, save_weights
from xcite.weights.card import model_card
from xcite.weights.convert import convert
from xcite.weights.inspection import inspect

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(FENCE.findall(page.read_text("utf-8")), 1)
]
NAMED = sorted(
    {
        name
        for page in PAGES
        for name in re.findall(r"`(xcite(?:\.[A-Za-z_]\w*)+)", page.read_text("utf-8"))
    }
)
needs_engines = pytest.mark.skipif(
    set(installed()) != {"paddle", "torch"}, reason="the code shown uses both engines"
)


def run(code: str, folder: Path) -> None:
    """In an interpreter of its own: nothing but what the code imports is imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of, small and real."""
    pytest.importorskip("openvino")
    from xcite.export.export import export
    from xcite.export.options import ExportOptions

    place = tmp_path_factory.mktemp("shown")
    Image.new("RGB", (40, 30), "teal").save(place / "picture.png")
    small = XCiTArchitecture(patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=10)
    metadata = Metadata(architecture=small, preprocessing=Preprocessing(size=16))
    weights = WeightFile(initial_weights(small, 0), small, "xcite", metadata)
    export(weights, place / "digits-bundle", ExportOptions(format="onnx"))
    nano = find("xcit_nano_12_p8")
    save_weights(place / "x.safetensors", initial_weights(nano, 0), Metadata(architecture=nano))
    convert(place / "x.safetensors", place / "xcit_nano_12_p8_224_dist.pdparams", to="ppcls")
    columns = {"present": np.packbits([1, 0, 1]), "classes": np.array([3, 1], np.uint16)}
    save(view_path(place / "CACHE", 0), columns, "hash", 0)
    return place


def test_the_pages_show_code() -> None:
    pages = {str(block.id).rpartition("-")[0] for block in BLOCKS}
    assert {"README.md", "README.zh-CN.md", "docs/python.md", "docs/weights.md"} <= pages


def test_a_page_in_two_languages_shows_the_same() -> None:
    def shown(page: str) -> tuple[list[str], list[str], list[list[str]]]:
        lines = (ROOT / "docs" / page).read_text("utf-8").split("\n")
        commands = [line.split(" #")[0].strip() for line in lines if line.startswith("    ")]
        headings = [line.split()[0] for line in lines if re.match("#+ ", line)]
        rows = [line for line in lines if line.startswith("|")]
        figures = [sorted(re.findall(r"\d(?:[\d,.]*\d)?", row)) for row in rows]
        return commands, headings, figures

    assert shown("distillation.md") == shown("distillation.zh-CN.md")


@needs_engines
@pytest.mark.parametrize("block", BLOCKS)
def test_shown_code_runs(block: str, folder: Path) -> None:
    run(block, folder)


def test_named_objects_are_reached_from_the_package_alone(tmp_path: Path) -> None:
    assert "xcite.weights.open_weights" in NAMED
    run("import xcite\n" + "\n".join(NAMED), tmp_path)


@needs_engines
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("xcit_nano_12_p16", {}),
        ("xcit_nano_12_p16", {"in_chans": 1, "depth": 1, "attention_scale": 0.5}),
        ('nano"); import os', {}),
        (None, {"num_classes": 0}),
    ],
)
def test_the_code_of_a_model_card_runs(
    variant: str | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    shape = find("xcit_nano_12_p16", **{"num_classes": 3, **changes})
    path = tmp_path / 'the `final` ["weights"].safetensors'
    metadata = Metadata(variant=variant, architecture=shape)
    save_weights(path, initial_weights(shape, 0), metadata)
    report = inspect(path)
    (block,) = FENCE.findall(model_card(report, report.parts[0]))
    run(block, tmp_path)
    assert ("create_model" in block) == (variant == "xcit_nano_12_p16")
