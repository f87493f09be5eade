"""Single bits of checkpoint, weights, teacher cache and bundle flip: noticed, or without effect.

XCITE_FLIPS sets how many of each (100).
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_runs import SETTINGS, one_line

from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.export.export import ExportOptions, export
from xcite.runtime.predictor import Predictor
from xcite.training import checkpoint, loop
from xcite.training.run_folder import RunFolder
from xcite.training.teachers import cache_files
from xcite.weights import open_weights

FLIPS = int(os.environ.get("XCITE_FLIPS", "100"))

pytestmark = pytest.mark.slow


def _checkpoint(path: Path) -> Any:
    found = checkpoint.load(path)
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.state.items()}
    return arrays, found.position, found.identity


def _weights(path: Path) -> Any:
    found = open_weights(path)
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.tensors.items()}
    return arrays, found.metadata, found.architecture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("flips") / "run"
    engine = f"run.engine={engines.installed()[-1]}"
    recipe = recipes.load("digits", [*SETTINGS, engine, "data.workers=0", "optim.epochs=1"])
    return RunFolder(loop.train(recipe, path, console=Console(quiet=True)).folder)


def _flips(paths: list[Path], read: Callable[[], Any], name: str) -> None:
    """Flip bits of files in turn; half of those in a file's first 4 KiB, where headers lie."""
    expected = read()
    places, noticed = random.Random(0), 0
    for number in range(FLIPS):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        head = min(len(whole), 4096)
        bit = places.randrange(8 * (head if number // len(paths) % 2 else len(whole)))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read()
        except XciteError as error:
            one_line(error)
            noticed += 1
        else:
            assert found == expected, f"bit {bit} of {path.name} changes the result in silence"
        finally:
            path.write_bytes(whole)
    print(f"{name}: {FLIPS} flips, {noticed} noticed, {FLIPS - noticed} without effect")


@pytest.mark.parametrize(("name", "read"), [("checkpoint", _checkpoint), ("best", _weights)])
def test_flipped_bits_of_a_run(folder: RunFolder, name: str, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(getattr(folder, name).read_bytes())
    _flips([path], lambda: read(path), name)


def test_flipped_bits_of_a_teacher_cache(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    depends = {"data.train": "x" * 64, "run.seed": 0}
    hashed = cache_files.digest(depends)
    manifest = {"format": cache_files.FORMAT, "hash": hashed, "depends": depends, "teacher": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    columns = {
        "present": np.full(64, 255, np.uint8),
        "top_classes": draw.integers(0, 100, (512, 10)).astype(np.uint16),
        "top_probabilities": draw.random((512, 10)).astype(np.float16),
        "rest": draw.random(512).astype(np.float16),
    }
    cache_files.save(cache_files.view_path(tmp_path, 0), columns, hashed, 0)

    def read() -> Any:
        said = cache_files.read_manifest(tmp_path)
        found = cache_files.read_view(tmp_path, 0, said["hash"], 100)
        return said, {name: column.tobytes() for name, column in found.items()}

    _flips([tmp_path / "manifest.json", cache_files.view_path(tmp_path, 0)], read, "teacher cache")


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_flipped_bits_of_a_bundle(folder: RunFolder, format: str, tmp_path: Path) -> None:
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime"}[format])
    export(open_weights(folder.best), tmp_path / "bundle", ExportOptions(format=format))
    files = sorted(path for path in (tmp_path / "bundle").iterdir() if path.is_file())
    images = np.random.default_rng(0).standard_normal((2, 1, 32, 32)).astype(np.float32)

    def read() -> Any:
        predictor = Predictor(tmp_path / "bundle")
        size = predictor.info.preprocessing.size
        return predictor.info, predictor.logits(images[..., :size, :size]).tobytes()

    _flips(files, read, f"{format} bundle of {[path.name for path in files]}")
