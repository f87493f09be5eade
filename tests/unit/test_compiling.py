"""Compiling the operators: once for all processes, in private, in time, and never by necessity."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("paddle")

from xcite.engines.kernels import compiled
from xcite.engines.paddle.kernels import library

FOLDER = Path(compiled.__file__).parent
pytestmark = pytest.mark.skipif(
    not library.available(), reason="no C++ compiler, or another build of Paddle"
)


LOADS = """
import sys
from pathlib import Path
from xcite.engines.kernels import compiled
assert compiled.load(Path(compiled.__file__).parent, "paddle") is not None
"""


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "xcite" / "kernels"


def compiler(monkeypatch, tmp_path, script):
    path = tmp_path / "my c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{path}'")


def test_what_was_compiled_is_found_again(cache, monkeypatch, tmp_path):
    assert compiled.load(FOLDER, "paddle") is not None
    (made,) = cache.iterdir()
    before = made.stat()
    assert compiled.load(FOLDER, "paddle") is not None
    assert list(cache.iterdir()) == [made]
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    # another source, or other instructions, is another library
    changed = tmp_path / "sources"
    changed.mkdir()
    for path in FOLDER.iterdir():
        if path.suffix in (".h", ".cpp"):
            (changed / path.name).write_text(path.read_text() + "\n")
    assert compiled.load(changed, "paddle") is not None
    assert len(list(cache.iterdir())) == 2


def test_processes_compile_at_once(cache):
    started = [subprocess.Popen([sys.executable, "-c", LOADS]) for _ in range(3)]
    assert [process.wait(300) for process in started] == [0, 0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense >&2; exit 3", "exit 0"])
def test_a_broken_compiler_is_none(cache, monkeypatch, tmp_path, script):
    compiler(monkeypatch, tmp_path, script)
    assert compiled.load(FOLDER, "paddle") is None
    assert list(cache.iterdir()) == []


def test_a_damaged_library_is_made_anew(cache):
    compiled.load(FOLDER, "paddle")
    (made,) = cache.iterdir()
    # not in place: this process has it open
    made.unlink()
    made.write_bytes(b"")
    made.chmod(0o700)
    loads = [sys.executable, "-c", LOADS]  # this process would find the one it has loaded
    assert [subprocess.run(loads, check=False).returncode for _ in range(2)] == [1, 0]


def test_a_compiler_that_hangs_is_given_up(cache, monkeypatch, tmp_path):
    compiler(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(compiled, "SECONDS", 0.3)
    start = time.monotonic()
    assert compiled.load(FOLDER, "paddle") is None
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("named", ["/no/such/c++", "no-such-compiler -x"])
def test_no_compiler_is_none(cache, monkeypatch, named):
    monkeypatch.setenv("CXX", named)
    assert compiled.load(FOLDER, "paddle") is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert compiled.load(FOLDER, "paddle") is None


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_may_write_is_not_used(cache, mode):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert compiled.load(FOLDER, "paddle") is None
    assert list(cache.iterdir()) == []


def test_a_library_that_others_may_write_is_not_loaded(cache):
    assert compiled.load(FOLDER, "paddle") is not None
    (made,) = cache.iterdir()
    made.chmod(0o777)
    assert compiled.load(FOLDER, "paddle") is None


def test_a_user_without_a_cache_does_without(monkeypatch):
    monkeypatch.setattr(compiled, "user_cache", lambda name: None)
    assert compiled.load(FOLDER, "paddle") is None


STEP = """
import numpy as np
from xcite.choices import default_choices
from xcite.engines import create_engine
from xcite.engines.paddle.kernels import operators
from xcite.variants import XCiTArchitecture
called = []
call = operators.call
operators.call = lambda name, *rest: (called.append(name), call(name, *rest))
shape = XCiTArchitecture(8, 32, 2, 4, num_classes=3)
images = np.random.default_rng(0).standard_normal((2, 3, 48, 64), np.float32)
engine = create_engine("paddle", shape)
found = engine.predict(images)
print(engine.choices.compiled, bool(called))
asked = default_choices("paddle")  # such as a run's that began elsewhere
other = create_engine("paddle", shape, choices=asked)
print(other.choices.compiled)
expected = create_engine("paddle", shape, operators="plain").predict(images)
assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
"""


def step(**environment):
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_engines_use_them_with_any_instructions(tmp_path):
    assert step() == ["True", "True", "True"]
    assert step(ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2") == ["True"] * 3


@pytest.mark.parametrize("without", [{"CXX": "/no/such"}, {"XCITE_KERNELS": "off"}])
def test_engines_do_without(without):
    assert step(**without) == ["False", "False", "False"]
