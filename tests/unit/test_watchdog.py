"""The watch over other processes, between two real ones without a framework."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xcite.processes.watchdog import Watchdog

SECONDS = 1.5


def child(rank: int, folder: Path, deed: str) -> None:
    """One of two processes: half a second of steps, then the second one's deed."""

    def sum_over_all(array: np.ndarray) -> np.ndarray:
        """Process 0's, as the other one has only zeros."""
        told = folder / "told.npy"
        if rank == 0:
            np.save(folder / "part.npy", array)
            (folder / "part.npy").rename(told)
        while not told.exists():
            time.sleep(0.01)
        return np.load(told)

    record = (folder / f"record-{rank}").write_text
    with Watchdog(rank, 2, SECONDS, "127.0.0.1", sum_over_all, advice="!", record=record) as watch:
        for _ in range(5):
            time.sleep(0.1)
            watch.progress()
        if rank == int(deed[-1]):
            if deed.startswith("stopped"):
                os.kill(os.getpid(), signal.SIGSTOP)
            if deed.startswith("ended"):
                os._exit(0)
            if deed.startswith("busy"):
                with watch.busy():
                    time.sleep(3 * SECONDS)
                watch.progress()
                (folder / "done").touch()
                return
            if deed.startswith("good-bye"):
                (folder / "done").touch()
                return
        while not (folder / "done").exists():
            time.sleep(0.02)
        if deed.startswith("good-bye"):
            time.sleep(2 * SECONDS / 3)


def pair(folder: Path, deed: str) -> list[tuple[int | None, str]]:
    """Exit codes and errors of both; None for one that had to be killed."""
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder), deed],
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    ends: list[tuple[int | None, str]] = []
    for rank, process in enumerate(running):
        if deed == f"stopped-{rank}":
            ends.append((None, ""))
            continue
        _, error = process.communicate(timeout=60)
        ends.append((process.returncode, error))
    for process in running:
        process.kill()
        process.communicate()
    return ends


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="has no such signal")
@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("stopped-0", "process 0 of 2 has not been heard of for 1.5 seconds"),
        ("stopped-1", "process 1 of 2 has not been heard of for 1.5 seconds"),
        ("ended-0", "process 0 of 2 has ended, and this one waits for it in vain"),
        ("ended-1", "process 1 of 2 has ended, and this one waits for it in vain"),
        ("stuck-1", "no step has ended for 1.5 seconds (run.process_timeout)"),
    ],
)
def test_who_waits_in_vain_ends(deed: str, said: str, tmp_path: Path) -> None:
    ends = pair(tmp_path, deed)
    other = 1 - int(deed[-1])
    code, error = ends[other]
    assert code == 2
    assert error.startswith(f"xcite: {said}")
    assert error.endswith("!\n")
    assert (tmp_path / f"record-{other}").read_text() == error.removeprefix("xcite: ").rstrip("\n")


@pytest.mark.parametrize("deed", ["busy-0", "busy-1", "good-bye-0", "good-bye-1"])
def test_who_is_waited_for_may_take_its_time(deed: str, tmp_path: Path) -> None:
    assert pair(tmp_path, deed) == [(0, ""), (0, "")]


def test_a_single_process_watches_nobody() -> None:
    def never(array: np.ndarray) -> np.ndarray:
        raise AssertionError

    with Watchdog(0, 1, 0.1, "", never, advice="", record=print) as watch:
        time.sleep(0.5)
        watch.progress()


if __name__ == "__main__":
    child(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
