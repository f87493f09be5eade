"""The Dockerfile's steps, run without Docker: the same commands in a fresh virtual environment,
then the same command as another user, without HOME, where nothing can be written."""

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("onnx")
from read_only import AS_USER, READ_ONLY, SHARED, UNSHARED, USER
from serving import make_bundle, photograph

ROOT = Path(__file__).parents[2]


def _instructions():
    """Name and text of every instruction, lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def _all(name):
    return [text for found, text in _instructions() if found == name]


def _command(name):
    [text] = [text[text.index("[") :] for text in _all(name)]
    return json.loads(text)


def test_the_image_is_small_in_rights():
    assert all(re.fullmatch(r"python:3\.\d+-slim( AS \w+)?", text) for text in _all("FROM"))
    assert _all("USER") == [f"{USER}:{USER}"]
    last = [name for name, _ in _instructions()][-1]
    assert last == "ENTRYPOINT"
    assert _command("HEALTHCHECK")[:2] == ["python", "-c"]
    assert all("-c /source/constraints.txt" in text for text in _all("RUN") if "pip " in text)


def test_what_is_copied_is_there_and_not_ignored():
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split()
    kept = [pattern[1:] for pattern in ignore if pattern.startswith("!")]
    assert ignore[0] == "*"  # nothing else reaches a builder: no runs, no weights, no .git
    copied = [text.split()[:-1] for text in _all("COPY") if "--from" not in text]
    names = [name for parts in copied for name in parts]
    assert sorted(names) == sorted(kept)
    assert all((ROOT / name).exists() for name in names)
    for name in (ROOT / "src/xcite").rglob("*"):
        if "__pycache__" not in name.parts:
            assert not any(fnmatch.fnmatch(str(name), p) for p in ignore if p[0] not in "*!")


@pytest.fixture(scope="module")
def installed():
    """The first stage: what its RUN line makes, in a folder of ours instead of /opt/xcite."""
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))  # /tmp becomes another one below
    place.chmod(0o755)
    (place / "source").mkdir()
    for name in ("constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", place / "source/src", ignore=rubbish)
    [command] = _all("RUN")
    command = command.replace("/opt/xcite", f"{place}/xcite").replace("/source", f"{place}/source")
    command = command.replace("python -m venv", f"{sys.executable} -m venv", 1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    run = ["sh", "-ec", command]
    done = subprocess.run(run, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(place / "source")  # the second stage has only what was installed
    make_bundle(place / "bundle")
    (place / "cat.png").write_bytes(photograph())
    yield place
    shutil.rmtree(place)


ASK = """
import sys, urllib.request as r
head = {"content-type": "image/png"}
body = open(sys.argv[1], "rb").read()
print(r.urlopen(r.Request("http://127.0.0.1:8000/predict", body, head)).read().decode())
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only and change the user")
@pytest.mark.parametrize(
    ("mounts", "workers", "starts"),
    [
        ([SHARED], 1, True),
        ([SHARED], 2, True),
        ([f"{SHARED} && mount -o remount,ro /dev/shm"], 1, True),
        ([f"{SHARED} && mount -o remount,ro /dev/shm"], 2, False),
        ([f"{SHARED} && mount -o remount,ro /dev/shm", "mount -t tmpfs tmpfs /tmp"], 2, True),
    ],
    ids=["docker", "docker, workers", "no shared memory", "workers, nowhere", "--tmpfs /tmp"],
)
def test_the_image_serves_where_nothing_can_be_written(installed, mounts, workers, starts):
    bundle = str(installed / "bundle")
    entry = [bundle if part == "/bundle" else part for part in _command("ENTRYPOINT")]
    script = " && ".join(
        [
            "ip link set lo up",
            READ_ONLY,
            *mounts,
            AS_USER,
        ]
    )
    environment = dict(re.findall(r"(PYTHON\w+)=(\S+)", " ".join(_all("ENV"))))
    environment["PATH"] = f"{installed}/xcite/bin:{os.environ['PATH']}"
    process = subprocess.Popen(
        [*UNSHARED, script, "sh", *entry, "--workers", str(workers)],
        cwd=bundle,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    inside = ["nsenter", f"--target={process.pid}", "--net", "--mount"]
    try:
        line = process.stdout.readline()
        if not starts:
            assert line == ""
            assert "--tmpfs /tmp" in process.stderr.read()  # says what to do
            assert process.wait(20) == 2
            return
        assert line.startswith("serving "), line + process.stderr.read()
        subprocess.run([*inside, *_command("HEALTHCHECK")], env=environment, check=True)
        ask = ["python", "-c", ASK, str(installed / "cat.png")]
        answer = subprocess.check_output([*inside, *ask], env=environment, text=True)
        assert len(json.loads(answer)["pictures"][0]["predictions"]) == 5
        assert f"Uid:\t{USER}\t{USER}" in Path(f"/proc/{process.pid}/status").read_text()
        assert subprocess.run([*inside, "touch", f"{bundle}/x"], stderr=-3).returncode != 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        told = process.stderr.read()  # that no token guards an address for everyone
        assert told.startswith("xcite: anyone who reaches this address")
        assert told.count("\n") == 1
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_health_check_fails_where_nothing_answers(installed):
    check = _command("HEALTHCHECK")
    check[2] = check[2].replace(":8000", ":1")
    done = subprocess.run([f"{installed}/xcite/bin/python", *check[1:]], capture_output=True)
    assert done.returncode != 0
