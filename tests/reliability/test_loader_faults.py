"""Loader workers under faults of machine and data: one clear end, within bounded time."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from xcite.data.pipeline import EvaluationLoader, TrainLoader
from xcite.data.sources import open_source
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.recipe import Recipe


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(64):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return tmp_path / "data"


def recipe(**data):
    return Recipe.model_validate(
        {
            "preprocessing": {"size": 24},
            "optim": {"epochs": 1_000, "batch": 8, "lr_per": None},
            "data": {"workers": 2, **data},
        }
    )


def consume(loader, before=None, until=60.0, enough=lambda: False):
    """Take batches for some seconds, with one blow after the first."""
    started = time.monotonic()
    for epoch in range(1_000):
        for batch in loader.epoch(epoch):
            assert len(batch) == 8
            if before is not None:
                before()
                before = None
            if time.monotonic() - started > until or enough():
                return


def blow(number):
    children = multiprocessing.active_children()
    assert len(children) == 2
    os.kill(children[0].pid, number)


def test_a_stopped_worker_is_noticed_and_ended(folder):
    loader = TrainLoader(open_source(folder), recipe(worker_timeout=15.0))
    started = time.monotonic()
    with pytest.raises(XciteError, match=r"nothing for 15 seconds \(process \d+ is stopped\)"):
        consume(loader, lambda: blow(signal.SIGSTOP))
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_noticed(folder):
    loader = TrainLoader(open_source(folder), recipe(worker_timeout=30.0))
    started = time.monotonic()
    with pytest.raises(XciteError, match="a data worker process ended unexpectedly"):
        consume(loader, lambda: blow(signal.SIGKILL))
    assert time.monotonic() - started < 60
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_the_time_under_a_stop_of_the_whole_run_does_not_count(folder):
    script = f"""
        import time
        from xcite.data.pipeline import TrainLoader
        from xcite.data.sources import open_source
        from xcite.recipe import Recipe

        if __name__ == "__main__":
            recipe = Recipe.model_validate({{
                "preprocessing": {{"size": 24}},
                "optim": {{"epochs": 9, "batch": 8, "lr_per": None}},
                "data": {{"workers": 1, "worker_timeout": 20.0}},
            }})
            loader = TrainLoader(open_source({str(folder)!r}), recipe)
            for epoch in range(9):
                for batch in loader.epoch(epoch):
                    print(epoch, flush=True)
                    time.sleep(0.05)
            print("done")
    """
    path = folder.parent / "run.py"
    path.write_text(textwrap.dedent(script))
    process = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(25)
    os.killpg(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert output.endswith("done\n")
    assert process.returncode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_data_deleted_under_way(folder, workers):
    source = open_source(folder)
    with pytest.raises(XciteError, match=r"\.png: No such file.*on_error: skip"):
        consume(TrainLoader(source, recipe(workers=workers)), lambda: shutil.rmtree(folder / "b"))
    assert multiprocessing.active_children() == []


def test_a_counted_loss_with_skip(folder):
    source = open_source(folder)
    loader = TrainLoader(source, recipe(on_error="skip", skip_limit=64))
    consume(loader, lambda: shutil.rmtree(folder / "b"), enough=lambda: len(loader.skipped) > 20)
    loader.close()
    assert {os.path.basename(os.path.dirname(name)) for name in loader.skipped} == {"b"}
    assert len(loader.skipped) > 20
    shutil.rmtree(folder)
    with pytest.raises(XciteError, match="none of the 64 pictures"):
        consume(TrainLoader(source, recipe(on_error="skip", skip_limit=64)))


def test_many_losses_are_no_loss_but_missing_data(tmp_path):
    lines = [f"{number}.png 0\n" for number in range(5_000)]
    (tmp_path / "list.txt").write_text("".join(lines))
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    loader = TrainLoader(open_source(tmp_path / "list.txt"), recipe(on_error="skip", workers=0))
    with pytest.raises(
        XciteError, match=r"51 of 5000 .*more than the 50 that may be skipped .*\d+\.png: No such"
    ):
        consume(loader)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_memory_errors_are_named_or_counted(folder, monkeypatch, on_error):
    from xcite.data import pipeline

    decode, calls = pipeline.decoding.decode, []

    def fail_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return decode(*arguments, **options)

    monkeypatch.setattr(pipeline.decoding, "decode", fail_once)
    loader = EvaluationLoader(
        open_source(folder), Preprocessing(size=24), batch=8, workers=0, on_error=on_error
    )
    if on_error == "stop":
        with pytest.raises(XciteError, match=r"\.png: memory ran out .*on_error: skip"):
            list(loader)
    else:
        assert sum(map(len, loader)) == 63
        assert len(loader.skipped) == 1


def test_names_with_line_ends_are_one_name(folder):
    (folder / "a" / "x\ny.png").write_bytes(b"nothing")
    loader = EvaluationLoader(
        open_source(folder), Preprocessing(size=24), batch=8, workers=2, on_error="skip"
    )
    assert sum(map(len, loader)) == 64
    assert [name.endswith("x\ny.png") for name in loader.skipped] == [True]


@pytest.mark.parametrize(
    ("limit", "said"),
    [("ulimit -n 64", "ulimit -n 4096"), ("ulimit -v 1200000", "memory ran out")],
)
def test_limits_of_the_shell(folder, limit, said):
    command = (
        f"{limit}; exec {sys.executable} -m xcite.cli train digits --out {folder.parent}/run "
        f"--set data.train={folder} --set data.validation=null --set data.workers=8 "
        "--set optim.batch=8 --set optim.epochs=1 --set optim.warmup_epochs=0 "
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr[-2000:]
    assert said in done.stderr.splitlines()[-1]
    if "-n" in limit:  # without memory, grain adds remarks of its own before
        assert len(done.stderr.splitlines()) == 1, done.stderr[-3000:]
