"""One owner a run folder: a dead one keeps nothing, and parallel starts get their own folders."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training import ownership
from xcite.training.ownership import FILE, Ownership, owner_of
from xcite.training.run_folder import RunFolder

HOLD = (
    "import sys, time; from pathlib import Path; from xcite.training.ownership import Ownership\n"
    "owned = Ownership.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_owner_is_refused_with_the_name_of_the_first(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with pytest.raises(XciteError, match=f"is in use by process {holder.pid} on "):
        Ownership.take(tmp_path, patience=0)
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.pid == holder.pid
    holder.send_signal(signal.SIGSTOP)
    assert owner_of(tmp_path) is not None, "a stopped owner is no dead one"


def test_a_dead_owner_keeps_nothing(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    holder.kill()
    owned = Ownership.take(tmp_path)
    assert owner_of(tmp_path) is not None
    owned.release()
    assert owner_of(tmp_path) is None
    assert owner_of(tmp_path / "absent") is None


def test_processes_that_the_owner_started_do_not_hold_the_folder(tmp_path: Path) -> None:
    code = HOLD.replace("time.sleep(600)", "child = subprocess.Popen(['sleep', '60'])")
    code = f"import subprocess\n{code}\nprint(child.pid, flush=True)"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    child = int(owner.stdout.readline())
    try:
        owner.wait()
        os.kill(child, 0)  # it lives on
        Ownership.take(tmp_path, patience=0).release()
    finally:
        os.kill(child, signal.SIGKILL)


class TestWithoutLocks:
    """On a file system that has no locks, the name in the file decides."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(handle: int, kind: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)

    def write(self, folder: Path, host: str, pid: int, born: int | None) -> None:
        owner = {"host": host, "pid": pid, "born": born, "since": "noon"}
        (folder / FILE).write_text(json.dumps(owner))

    def test_by_process_on_this_machine(self, tmp_path: Path) -> None:
        here, parent = socket.gethostname(), os.getppid()
        birth = ownership.born(parent)
        assert birth is not None
        self.write(tmp_path, here, parent, birth)
        with pytest.raises(XciteError, match=f"process {parent} on {here} since noon"):
            Ownership.take(tmp_path, patience=0)
        self.write(tmp_path, here, parent, birth + 1)  # the number was given to another process
        Ownership.take(tmp_path, patience=0).release()

    def test_by_silence_on_another(self, tmp_path: Path) -> None:
        self.write(tmp_path, "elsewhere", 1, 1)
        with pytest.raises(XciteError, match="on elsewhere"):
            Ownership.take(tmp_path, patience=0)
        silent = time.time() - ownership.SILENCE - 1
        os.utime(tmp_path / FILE, (silent, silent))
        Ownership.take(tmp_path, patience=0).release()

    def test_damaged_names_count_as_none(self, tmp_path: Path) -> None:
        for text in ("", "{", "[]", '{"pid": "x"}'):
            (tmp_path / FILE).write_text(text)
            Ownership.take(tmp_path, patience=0).release()


def test_a_folder_that_is_moved_or_deleted_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    owned = Ownership.take(folder)
    assert owned.owns(folder)
    folder.rename(tmp_path / "moved")
    assert (owned.owns(folder), owned.place()) == (False, tmp_path / "moved")
    folder.mkdir()
    (folder / FILE).touch()
    assert not owned.owns(folder), "another folder of the same name"
    (tmp_path / "moved" / FILE).unlink()
    assert owned.place() is None
    owned.release()


def test_ten_parallel_starts_get_ten_folders(tmp_path: Path) -> None:
    code = (
        "import sys, time; from xcite import recipe; "
        "from xcite.training.run_folder import RunFolder\n"
        "chosen = recipe.load('digits'); print('ready', flush=True); sys.stdin.readline()\n"
        "folder, owned = RunFolder.create(sys.argv[1], chosen, numbered=True)\n"
        "print(folder.path.name, flush=True); sys.stdin.readline()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "runs" / "digits")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    names = [process.stdout.readline().strip() for process in started if process.stdout]
    for process in started:
        process.communicate("end\n")
    assert sorted(names) == sorted(f"digits-{number}" for number in range(1, 11))
    assert all(RunFolder(tmp_path / "runs" / name).recipe.is_file() for name in names)


def test_what_a_start_that_was_killed_at_once_leaves_is_used_again(tmp_path: Path) -> None:
    recipe = recipes.load("digits")
    left = tmp_path / "digits-1"
    left.mkdir()
    (left / FILE).touch()
    (left / ".recipe.yaml.abc.part").write_text("mod")
    folder, owned = RunFolder.create(tmp_path / "digits", recipe, numbered=True)
    owned.release()
    assert folder.path == left
    assert sorted(path.name for path in left.iterdir()) == ["recipe.yaml", FILE]
