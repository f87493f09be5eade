"""Shared memory tells its owner; what a dead one left is removed, nothing else."""

import os
import re
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcite.data import shared_memory as owned
from xcite.data.pipeline import TrainLoader
from xcite.data.shared_memory import born, name_segments_after, remove_segments_of_the_dead
from xcite.data.sources import open_source
from xcite.recipe import Recipe


def make(owner: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A segment named after a process."""
    with monkeypatch.context() as patch:
        for name in ("_SHM_NAME_PREFIX", "_SHM_SAFE_NAME_LENGTH"):
            patch.setattr(shared_memory, name, getattr(shared_memory, name))
        name_segments_after(owner)
        segment = shared_memory.SharedMemory(create=True, size=100)
    segment.close()
    return owned.FOLDER / segment.name


def test_only_what_the_dead_left_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ours, theirs = make(os.getpid(), monkeypatch), make(process.pid, monkeypatch)
    remove_segments_of_the_dead()
    assert ours.exists()
    assert theirs.exists()
    process.kill()
    while born(process.pid) is not None:
        pass
    assert remove_segments_of_the_dead() >= 1
    assert ours.exists()
    assert not theirs.exists()
    process.communicate()
    ours.unlink()


def test_other_containers_are_left_alone() -> None:
    other = owned.FOLDER / "xcite-1-1-1-0123456789abcdef"
    other.write_bytes(b"x")
    try:
        remove_segments_of_the_dead()
        assert other.exists()
    finally:
        other.unlink()


def test_a_process_that_is_not_there() -> None:
    assert born(2**22 + 1) is None
    assert born(os.getpid()) == born(os.getpid())


def test_workers_use_memory_again_and_leave_none(tmp_path: Path) -> None:
    """Batches that are kept stay what they were while their memory holds later ones."""
    rng = np.random.default_rng(0)
    for number in range(32):
        path = tmp_path / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)

    def ours() -> set[str]:
        return {
            name
            for name in os.listdir(owned.FOLDER)
            if re.match(rf"xcite-\d+-{os.getpid()}-", name)
        }

    seen: set[str] = set()
    kept: dict[int, list[np.ndarray]] = {0: [], 2: []}
    for workers, pictures in kept.items():
        recipe = Recipe.model_validate(
            {
                "preprocessing": {"size": 80},  # 8 pictures take 154 kB: through shared memory
                "optim": {"epochs": 12, "batch": 8, "lr_per": None},
                "augment": {"erasing": 0},
                "data": {"workers": workers, "prefetch": 2},
            }
        )
        loader = TrainLoader(open_source(tmp_path), recipe)
        for epoch in range(12):
            for batch in loader.epoch(epoch):
                pictures.append(batch.pictures)
                seen |= ours()
        loader.close()
    assert len(kept[0]) == 48
    np.testing.assert_array_equal(kept[0], kept[2])
    # a worker fills one, two lie ready, two more may be in this process, one is being read
    assert 1 <= len(seen) <= 2 * 6
    assert not ours()
