"""Checkpoints and run folders: whole or not at all, and damaged ones are refused."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training import checkpoint
from xcite.training.checkpoint import Position
from xcite.training.run_folder import RunFolder, next_run_folder

STATE = {"weights/a": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7, np.int64)}
POSITION = Position(epoch=2, step=3, loss=0.1 + 0.2, best=97.5, best_epoch=1, fingerprint="f")


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Files may not grow beyond ``at`` bytes: the kernel refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_there_and_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.safetensors", STATE, POSITION)
    state, position = checkpoint.read(tmp_path / "c.safetensors")
    assert position == POSITION
    assert state.keys() == STATE.keys()
    for name, array in STATE.items():
        assert state[name].dtype == array.dtype
        assert np.array_equal(state[name], array)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, STATE, POSITION)
    before = path.read_bytes()
    large = {"weights/a": np.zeros(100_000, np.float32)}
    with full_disk(at=10_000), pytest.raises(XciteError, match="cannot write"):
        checkpoint.save(path, large, POSITION)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"], "nothing half-written stays"


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(XciteError, match="there is no checkpoint"):
        checkpoint.read(path)
    checkpoint.save(path, STATE, POSITION)
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(XciteError, match="damaged"):
            checkpoint.read(path)
    path.write_bytes(whole.replace(b'\\"epoch\\"', b'\\"epoxh\\"'))
    with pytest.raises(XciteError, match="incomplete"):
        checkpoint.read(path)
    path.write_bytes(whole.replace(b"xcite checkpoint 1", b"xcite checkpoint 9"))
    with pytest.raises(XciteError, match="not a training checkpoint"):
        checkpoint.read(path)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in range(1, 6):
        checkpoint.save(folder.checkpoint, STATE, Position(epoch=epoch))
        checkpoint.keep_numbered(folder, epoch, keep=2)
    kept = folder.numbered_checkpoints()
    assert [path.stem for path in kept] == ["checkpoint-0004", "checkpoint-0005"]
    assert checkpoint.read(kept[0])[1].epoch == 4, "a numbered one does not follow the last"
    checkpoint.keep_numbered(folder, 5, keep=0)
    assert folder.numbered_checkpoints() == []


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    recipe = recipes.load("digits")
    folder = RunFolder.create(tmp_path / "run", recipe)
    assert recipes.load(str(tmp_path / "run")) == recipe
    with pytest.raises(XciteError, match="already exists"):
        RunFolder.create(tmp_path / "run", recipe)
    (tmp_path / "file").write_text("x")
    with pytest.raises(XciteError, match="already exists"):
        RunFolder.create(tmp_path / "file", recipe)
    with pytest.raises(XciteError, match="cannot make the run folder"):
        RunFolder.create(tmp_path / "file" / "deep" / "run", recipe)
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(XciteError, match="run folder"):
            RunFolder.open(absent)
    assert RunFolder.open(folder.path).path == folder.path


def test_metrics_forget_what_is_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(1, 6):
        folder.record({"kind": "step", "step": step})
    with folder.metrics.open("a") as file:
        file.write('{"kind": "st')  # a crash in the middle of a line
    folder.forget_after(3)
    folder.record({"kind": "step", "step": 4})
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_numbers_of_runs(tmp_path: Path) -> None:
    assert next_run_folder("digits", tmp_path).name == "digits-1"
    for name in ("digits-2", "digits-10", "digits-distilled-30", "digits-x"):
        (tmp_path / name).mkdir()
    assert next_run_folder("digits", tmp_path).name == "digits-11"
    assert next_run_folder("somewhere/my recipe.yaml", tmp_path).name == "my recipe-1"
