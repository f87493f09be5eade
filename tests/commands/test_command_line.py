"""The command line itself: how it is called, what it says of itself, and where it runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import xcite
from xcite import installed, machine
from xcite.cli import COMMANDS


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "xcite", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_module_is_the_command_and_knows_its_version():
    told = dict(line.split() for line in run("--version").stdout.splitlines())
    assert told["xcite"] == xcite.__version__
    assert told == installed.versions()
    assert "python" in told


def test_versions_are_told_without_importing_what_computes():
    code = "import sys; from xcite.installed import versions, COMPUTING; versions(); "
    code += "print(sorted(set(COMPUTING) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_a_short_name_in_every_command(flag):
    assert "evaluate" in run(flag).stdout
    assert "--data" in run("evaluate", flag).stdout


def test_shells_complete_commands_and_options():
    # as `--show-completion` does, which looks for the shell that called it
    assert "_xcite_completion" in run(_XCITE_COMPLETE="source_bash").stdout
    asked = {"_XCITE_COMPLETE": "complete_bash", "COMP_WORDS": "xcite ", "COMP_CWORD": "1"}
    assert set(COMMANDS) <= set(run(**asked).stdout.split())
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "xcite serve --", "2"
    assert "--port" in run(**asked).stdout


def test_a_user_without_a_home_gets_one_for_the_time(monkeypatch, tmp_path):
    pwd = pytest.importorskip("pwd")

    def nobody(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(machine, "_temporary", [])
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that it is as before at the end
        monkeypatch.delenv(name)
    for home in (tmp_path, tmp_path / "to/be/made"):
        monkeypatch.setenv("HOME", str(home))
        machine.provide_home()
        assert os.environ["HOME"] == str(home)
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    (tmp_path / ".cache").mkdir()
    left = []
    monkeypatch.setattr(machine.atexit, "register", lambda *a, **k: left.append((a, k)))
    monkeypatch.setenv("HOME", str(tmp_path))
    machine.provide_home()
    home = Path.home()
    assert home.is_dir()
    assert machine.is_temporary(home / ".cache")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / ".cache")  # what lies there is found
    ((remove, *arguments), options) = left[0]
    remove(*arguments, **options)
    assert not home.exists()
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    machine.provide_home()
    assert Path.home() not in (home, Path("/"))
    remove(Path.home())
