"""Commands where what only Linux or POSIX has is missing; see other_system/sitecustomize.py."""

import ast
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xcite
from xcite import engines

ENGINE = (engines.installed() or ["paddle"])[-1]
PACKAGE = Path(xcite.__file__).parent
SETTINGS = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "optim.batch=256",
    "optim.warmup_epochs=0",
    "data.workers=1",
]
# Several commands in one process, as starting one takes longer than most of them.
COMMANDS = """
import sys
from xcite.cli import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as end:
        assert not end.code, (command, end.code)
"""


def environment() -> dict[str, str]:
    shim = Path(__file__).parent / "other_system"
    return {**os.environ, "PYTHONPATH": f"{shim}{os.pathsep}{PACKAGE.parent}"}


def python(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of digits and its bundle, made there."""
    folder = tmp_path_factory.mktemp("other")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    train = ["-m", "xcite.cli", "train"]
    engine = ["--engine", ENGINE, "--out", "run", "--set", "optim.epochs=1"]
    python(*train, "digits", *engine, *settings, folder=folder)
    longer = ["--set", "optim.epochs=2", "--allow-changes"]
    said = python(*train, "--resume", "run", *longer, folder=folder)
    assert "changed from step 5 on: optim.epochs from 1 to 2" in said
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "picture.png")
    commands = [
        "status run",
        "inspect run",
        "evaluate run --data digits",
        "export run bundle",
        "predict bundle picture.png",
        "report run",
    ]
    said = python("-c", COMMANDS, *commands, folder=folder)
    assert "finished" in said
    return folder


def test_the_shim_takes_things_away(tmp_path: Path) -> None:
    said = python(
        "-c",
        "import os, signal, sys\n"
        "print([hasattr(os, n) for n in ('sched_getaffinity', 'fork', 'sync', 'O_NONBLOCK')],\n"
        "      hasattr(signal, 'SIGHUP'), sys.modules['fcntl'], sys.modules['resource'])",
        folder=tmp_path,
    )
    assert said.split("] ")[1].split() == ["False", "None", "None"]
    assert "True" not in said


def test_commands_from_training_to_a_report(folder: Path) -> None:
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"best.safetensors", "report.html", "curves.png"} <= names
    assert (folder / "bundle").is_dir()


def test_a_bundle_is_served(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "xcite.cli", "serve", "bundle", "--port", "0"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert url.startswith("http://"), process.communicate()[1]
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is not None, "it stops when it is asked to"
    finally:
        process.kill()
        process.communicate()


# Names that a system may lack -> files that look first whether they are there.
GUARDED = {
    "os.sched_getaffinity": {"machine.py"},
    "os.sync": {"data/prepare.py"},
    "os.nice": {"server/decoding_worker.py"},
    "os.fork": set(),
    "os.pread": set(),
    "os.pwrite": set(),
    "os.killpg": set(),
    "os.statvfs": set(),
    "os.getuid": {"machine.py"},
    "os.uname": set(),
    "os.O_NONBLOCK": set(),
    "os.O_CLOEXEC": set(),
    "os.O_NOFOLLOW": set(),
    "os.O_DIRECTORY": set(),
    "signal.SIGHUP": set(),
    "signal.SIGUSR1": set(),
    "signal.SIGUSR2": set(),
    "signal.SIGALRM": set(),
    "signal.SIGPROF": set(),
    "signal.SIGBUS": set(),
    "signal.SIGKILL": {"processes/supervisor.py"},
    "signal.setitimer": {"machine.py"},
    "signal.getitimer": {"server/connections.py"},
    "signal.pthread_sigmask": {"data/grain_workers.py"},
    "import fcntl": {"processes/order.py", "training/ownership.py", "weights/catalog.py"},
    "import resource": {"machine.py"},
    "import pwd": set(),
    "import termios": set(),
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_what_a_system_may_lack_is_asked_for_in_one_place(path: Path) -> None:
    used = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Import):
            used |= {f"import {alias.name}" for alias in node.names}
    place = path.relative_to(PACKAGE).as_posix()
    for name in used & GUARDED.keys():
        assert place in GUARDED[name], f"{place} uses {name}, which a system may lack"
