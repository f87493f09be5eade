"""Two machines, played by two network namespaces with names of their own; and SLURM's scripts."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import run, small

from xcite import engines
from xcite.processes import slurm
from xcite.training import checkpoint
from xcite.training.run_folder import RunFolder

ENGINE = engines.installed()[-1]
TIMEOUT = 8
Started = subprocess.Popen[str]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other as 10.213.7.1 and 10.213.7.2."""
    if not shutil.which("ip") or not shutil.which("unshare") or os.geteuid():
        pytest.skip("needs root, ip and unshare")
    names = [f"xcite{letter}{os.getpid()}" for letter in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {error.stderr}")
        ends = [("netns", names[0]), ("peer", "name", "x1", "netns", names[1])]
        ip("link", "add", "x0", *ends[0], "type", "veth", *ends[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.213.7.{number + 1}/24", "dev", f"x{number}")
            for device in ("lo", f"x{number}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def start(machine: str, arguments: list[str]) -> Started:
    """The command on a machine of that name."""
    words = ["ip", "netns", "exec", machine, "unshare", "--uts", "sh", "-c"]
    words += ['hostname "$0"; exec "$@"', machine, sys.executable, "-m", "xcite.cli", "train"]
    return subprocess.Popen(
        [*words, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def together(folder: Path, engine: str, hosts: str = "2", *more: str) -> list[str]:
    return [
        *("digits", "--engine", engine, "--out", str(folder), "--auto-resume"),
        *("--processes", "1", "--hosts", hosts, "--rendezvous", "10.213.7.1:29417", *more),
        *small("data.workers=0", "optim.epochs=4000", "run.checkpoint_minutes=1e-6"),
        *("--set", f"run.process_timeout={TIMEOUT}"),
    ]


def rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def await_rows(folder: Path, count: int, running: list[Started], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while rows(folder) < count:
        assert all(p.poll() is None for p in running), [p.communicate() for p in running]
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_a_link_that_is_cut(engine: str, machines: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = together(folder, engine)
    running = [start(machine, arguments) for machine in machines]
    try:
        await_rows(folder, 3, running)
        ip("-n", machines[1], "link", "set", "x1", "down")
        cut = time.monotonic()
        for process in running:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 2, error
            (line,) = error.splitlines()
            assert f"has not been heard of for {TIMEOUT} seconds" in line
            assert f"go on with: xcite train --resume {folder} --processes 1 --hosts 2" in line
        assert time.monotonic() - cut < 100
        ip("-n", machines[1], "link", "set", "x1", "up")
        before = checkpoint.load(folder / "checkpoint.safetensors").position.done
        assert before > 0
        resume = ["--resume", str(folder), "--set", "optim.epochs=4000", *arguments[6:12]]
        running = [start(machine, resume) for machine in machines]
        known = max(rows(folder), before)
        await_rows(folder, known + 3, running)
        steps = [row["step"] for row in RunFolder(folder).rows() if row["kind"] == "step"]
        assert steps == list(range(1, len(steps) + 1))
        running[0].send_signal(2)
        for process in running:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 130, error
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif("torch" not in engines.installed(), reason="PyTorch's launcher alone can")
def test_the_rest_goes_on_without_a_lost_machine(machines: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = together(folder, "torch", "1:2")
    running = [start(machine, arguments) for machine in machines]
    try:
        await_rows(folder, 3, running)
        ip("-n", machines[1], "link", "set", "x1", "down")
        history, until = folder / "history.jsonl", time.monotonic() + 240
        while '"event": "resumed"' not in history.read_text():
            assert running[0].poll() is None, running[0].communicate()
            assert time.monotonic() < until
            time.sleep(0.2)
        await_rows(folder, rows(folder) + 3, running[:1])
        running[0].terminate()
        out, error = running[0].communicate(timeout=120)
        assert running[0].returncode == 130, error
        assert "a process of this run was lost; all are started again" in error
        assert "resumed" in out
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_tasks_of_srun_are_one_run(engine: str, tmp_path: Path) -> None:
    """Two tasks as srun starts them, without any other launcher."""
    command = [sys.executable, "-m", "xcite.cli", "train", "digits", "--engine", engine]
    running = [
        subprocess.Popen(
            [*command, "--out", "run", *small("data.workers=0")],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "SLURM_PROCID": str(rank),
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_LOCALID": str(rank),
                "SLURM_NODEID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(28000 + os.getpid() % 2000),
            },
        )
        for rank in range(2)
    ]
    (out, error), (silent, other) = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], error + other
    assert out.count("Validate Epoch [2]") == 1
    assert silent == ""


def script(*options: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("slurm", "digits", *options) == 0
    text = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def test_what_a_batch_script_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "4", "--gpus", "8", "--time", "1-00:00:00", "--partition", "gpu"]
    text = script(*options, "--account", "a1", "--cpus", "6", "--out", "my run", capsys=capsys)
    for line in (
        *("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=48"),
        *("--time=1-00:00:00", "--partition=gpu", "--account=a1", "--requeue", "--signal=USR1@300"),
    ):
        assert f"#SBATCH {line}\n" in text
    assert "--out 'my run' --auto-resume --processes 8 --hosts 4 --rendezvous" in text
    single = script("--gpus", "2", capsys=capsys)
    assert "--rendezvous" not in single
    assert "--processes 2" in single
    assert run("slurm", "digits", "--partition", "a b\n#SBATCH --x") == 2
    assert "is no value for SLURM" in capsys.readouterr().err
    assert run("slurm", "digits", "--gpus", "0") == 2
    assert "--gpus 0 needs --processes" in capsys.readouterr().err


FAKES = {
    "srun": """#!/bin/bash
# Two nodes on one machine; says how the worst of them ended, as srun does.
[ "$1" = --kill-on-bad-exit=0 ] && shift
"$@" & first=$!
sleep 1.5
"$@" & second=$!
trap 'kill -USR1 $first $second' USR1
echo $$ > srun.pid
worst=0
for child in $first $second; do
    while kill -0 $child 2> /dev/null; do wait $child; code=$?; done
    [ $code -gt $worst ] && worst=$code
done
exit $worst
""",
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; echo 127.0.0.2; else echo "$@" >> scontrol.log; fi
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_a_batch_script_is_queued_again_and_goes_on(engine: str, tmp_path: Path) -> None:
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    job = slurm.Job(
        name="xcite digits",
        python=sys.executable,
        train=("digits", "--engine", engine, *small("data.workers=0", "optim.epochs=30")),
        out="run",
        nodes=2,
        gpus=0,
        processes=1,
    )
    (tmp_path / "job.sh").write_text(slurm.script(job))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
    }
    begin = ["bash", "job.sh"]
    with (tmp_path / "out.log").open("w") as log:
        job_process = subprocess.Popen(begin, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + 150
        while rows(tmp_path / "run") < 2:
            assert job_process.poll() is None, (tmp_path / "out.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(int((tmp_path / "srun.pid").read_text()), 10)  # SIGUSR1, before its time is over
        assert job_process.wait(timeout=120) == 130, (tmp_path / "out.log").read_text()
        assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
        done = subprocess.run(
            begin, cwd=tmp_path, env=environment, stdout=log, stderr=log, timeout=300
        )
    said = (tmp_path / "out.log").read_text()
    assert done.returncode == 0, said
    assert "resumed on" in said
    steps = [row["step"] for row in RunFolder(tmp_path / "run").rows() if row["kind"] == "step"]
    assert steps == list(range(1, 151))
