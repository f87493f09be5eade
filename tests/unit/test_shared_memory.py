"""Shared memory tells its owner; what a dead one left is removed, nothing else."""

import os
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from xcite.data import shared_memory as owned
from xcite.data.shared_memory import born, name_segments_after, remove_segments_of_the_dead


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
