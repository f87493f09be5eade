"""Every step from training to answers for a user without a home, where nothing else is written."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from read_only import AS_USER, READ_ONLY, SHARED, UNSHARED, USER, can_be_made, writable

import xcite
from xcite.engines import installed

pytest.importorskip("nncf")
pytest.importorskip("sklearn")
SOURCE = Path(xcite.__file__).parents[1]
ROOT = can_be_made()
ANOTHER_USER = pytest.mark.skipif(
    os.name != "posix" or (os.geteuid() == 0 and not ROOT), reason="another user is needed"
)
TINY = ["--epochs=1", "--set=model.depth=1", "--set=optim.warmup_epochs=0", "--workers=0"]
# As Docker starts a user that the system does not know, and as system users are.
HOMES = {"none": {}, "missing": {"HOME": "/nonexistent"}, "root": {"HOME": "/"}}


@pytest.fixture
def without_home():
    """Runs the program as another user on a read-only system, or with a home for reading only."""
    # pytest's folders are not for other users
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        for part in ("out", "tmp"):
            (place / part).mkdir()
            os.chown(place / part, USER if ROOT else -1, USER if ROOT else -1)
        (place / "home").mkdir(mode=0o555)

        def run(*arguments, homes):
            environment = {
                **(HOMES[homes] if ROOT else {"HOME": str(place / "home")}),
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(SOURCE),
                "TMPDIR": str(place / "tmp"),
                "OMP_WAIT_POLICY": "PASSIVE",
            }
            command = [sys.executable, "-m", "xcite", *arguments]
            if ROOT:
                steps = [writable(place), READ_ONLY, SHARED, f"cd {place}/out", AS_USER]
                command = [*UNSHARED, " && ".join(steps), "sh", *command]
            done = subprocess.run(
                command,
                env=environment,
                cwd=place / "out",
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert "Traceback" not in done.stderr
            assert "WARNING" not in done.stderr
            assert not list((place / "tmp").glob("xcite-*"))  # the home went with the program
            return done

        yield run


@ANOTHER_USER
@pytest.mark.parametrize(
    ("engine", "options", "homes"),
    [
        ("paddle", ["--format=paddle"], "missing"),  # Paddle writes the code that it traces there
        ("torch", ["--precision=int8", "--validation=digits", "--max-drop=100"], "none"),
    ],
)
def test_from_training_to_answers(without_home, engine, options, homes):
    if engine not in installed():
        pytest.skip(f"no {engine}")

    def right(*arguments):
        done = without_home(*arguments, homes=homes)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    right("train", "digits", "--engine", engine, *TINY, "--out", "run")
    right("export", "run", "bundle", "--pictures=digits", *options)
    assert "pictures on" in right("evaluate", "bundle", "--data=digits")
    assert "%" in right("predict", "bundle", "digits")


@ANOTHER_USER
@pytest.mark.parametrize("homes", HOMES if ROOT else ["none"])
def test_what_would_be_kept_in_a_home_is_refused(without_home, homes):
    assert "nowhere without a home" in without_home("weights", homes=homes).stdout
    for arguments in (["weights", "nano_12_p8_224", "--fetch"], ["--install-completion"]):
        done = without_home(*arguments, homes=homes)
        assert done.returncode == 2
        assert re.fullmatch(r"xcite: .*no home folder .*\n", done.stderr)
