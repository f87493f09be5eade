"""Every way out of a run saves its state and names the command that goes on; changes have rules."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_runs import EPOCHS, STEPS, deliver, interrupt, make_both, make_pictures, tensors, tiny
from rich.console import Console

from xcite import engines
from xcite import recipe as recipes
from xcite.cli import main
from xcite.errors import XciteError
from xcite.training import checkpoint, loop, steps
from xcite.training.changes import FREE, NEVER, changes, check
from xcite.training.history import History
from xcite.training.json_lines import read as read_lines
from xcite.training.run_folder import RunFolder
from xcite.training.saving import Writer
from xcite.training.status import StatusReader
from xcite.weights.safetensors_files import write_safetensors

ENGINE = (engines.installed() or ["paddle"])[-1]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(pictures, tmp_path_factory.mktemp("whole") / "run").folder


def train(pictures: Path, folder: Path, *settings: str, **options: Any) -> loop.Outcome:
    return loop.train(tiny(pictures, ENGINE, *settings), folder, console=QUIET, **options)


def resume(pictures: Path, folder: Path, *settings: str, **options: Any) -> loop.Outcome:
    return train(pictures, folder, *settings, resume=True, **options)


def stopped(pictures: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 4) -> Path:
    """A run that was stopped after ``step`` + 1 steps."""
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        assert not train(pictures, folder).finished
    return folder


def at(monkeypatch: pytest.MonkeyPatch, step: int, do: Any) -> None:
    """Call ``do`` before optimiser step ``step``, counted from 0."""
    real = steps.learning_rate

    def rate(recipe: Any, number: int, of_epoch: int) -> float:
        if number == step:
            do()
        return real(recipe, number, of_epoch)

    monkeypatch.setattr(steps, "learning_rate", rate)


def test_a_checkpoint_of_step_0(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise SystemExit  # leaves nothing but what is on disk

    with monkeypatch.context() as patch:
        at(patch, 1, killed)
        with pytest.raises(SystemExit):
            train(pictures, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert checkpoint.load(folder.checkpoint).position.step == 0
    assert resume(pictures, folder.path).finished
    assert tensors(folder.checkpoint) == tensors(whole / "checkpoint.safetensors")


def test_a_run_without_any_checkpoint_starts_from_zero(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    folder, owned = RunFolder.create(tmp_path / "run", tiny(pictures, ENGINE))
    owned.release()  # killed before the history and the checkpoint were written
    assert resume(pictures, folder.path).finished
    assert tensors(folder.checkpoint) == tensors(whole / "checkpoint.safetensors")
    assert History(folder.history).run


@pytest.mark.parametrize(
    "error",
    [XciteError("a data worker process ended"), RuntimeError("of the\nframework"), MemoryError()],
)
def test_the_state_in_memory_is_saved_on_the_way_out(
    error: Exception, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    with monkeypatch.context() as patch:
        at(patch, STEPS + 2, fail)
        with pytest.raises(XciteError) as caught:
            train(pictures, tmp_path / "run")
    told = str(caught.value)
    assert "\n" not in told
    assert "saved after step 2 of 4 in epoch 2" in told
    assert told.endswith(f"go on with: xcite train --resume {tmp_path / 'run'}")
    assert History(tmp_path / "run" / "history.jsonl").rows[-1]["event"] == "failed"
    assert resume(pictures, tmp_path / "run").finished
    assert tensors(tmp_path / "run" / "checkpoint.safetensors") == tensors(
        whole / "checkpoint.safetensors"
    )


def test_a_step_that_was_torn_is_not_saved(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.training_state()["step"] == STEPS + 1:
            weights = self.read_weights()
            self.load_weights({name: array + 1 for name, array in weights.items()})
            raise RuntimeError("in the middle of a step")
        return real(self, *arguments, **options)

    from xcite.engines.steps import TrainingEngine

    real = TrainingEngine.train_step
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "train_step", torn)
        with pytest.raises(XciteError, match="the last checkpoint stays"):
            train(pictures, tmp_path / "run")
    assert resume(pictures, tmp_path / "run").finished
    assert tensors(tmp_path / "run" / "checkpoint.safetensors") == tensors(
        whole / "checkpoint.safetensors"
    )


def test_a_loss_that_is_no_number_names_a_remedy_that_works(pictures: Path, tmp_path: Path) -> None:
    wild = ["optim.lr=1e30", "optim.warmup_epochs=0"]
    with pytest.raises(XciteError) as caught:
        train(pictures, tmp_path / "run", *wild)
    told = str(caught.value)
    assert told.endswith(
        f"go on with: xcite train --resume {tmp_path / 'run'} --set optim.lr=5e+29 --allow-changes"
    )
    position = checkpoint.newest(RunFolder(tmp_path / "run"))[0].position  # type: ignore[union-attr]
    assert f"saved after step {position.step} of" in told
    mended = ["optim.lr=1e-9", "optim.warmup_epochs=0"]
    with pytest.raises(XciteError, match=r"optim\.lr is 1e\+30 .*--allow-changes"):
        resume(pictures, tmp_path / "run", *mended)
    with contextlib.suppress(XciteError):  # the step before may have left weights beyond help
        resume(pictures, tmp_path / "run", *mended, allow_changes=True)
    history = read_lines(tmp_path / "run" / "history.jsonl")
    changed = next(row for row in history if row["event"] == "resumed")
    assert changed["changes"] == {"optim.lr": [1e30, 1e-9]}
    assert changed["step"] == position.step
    assert recipes.load(str(tmp_path / "run")).optim.lr == 1e-9


def test_a_damaged_picture_names_a_remedy_that_works(tmp_path: Path) -> None:
    make_pictures(tmp_path / "train", 8)
    make_pictures(tmp_path / "val", 3, seed=1)
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(XciteError, match=r"--set data\.on_error=skip$"):
        train(tmp_path, tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(tmp_path / "run"), "--set", "data.on_error=skip"])
    assert end.value.code == 0
    part, name, reason = RunFolder(tmp_path / "run").skipped.read_text().strip().split("\t")
    assert part == "train"
    assert name.endswith("b/3.png")
    assert reason.startswith("not a picture")


def test_a_full_disk_keeps_the_last_checkpoint(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise XciteError("cannot write it: No space left on device")

    with monkeypatch.context() as patch:
        at(patch, 2, lambda: patch.setattr(checkpoint, "write_safetensors", full))
        with pytest.raises(XciteError, match=r"No space left .* last checkpoint stays; go on with"):
            train(pictures, tmp_path / "run", "run.checkpoint_minutes=1e-6")
    assert resume(pictures, tmp_path / "run", "run.checkpoint_minutes=1e-6").finished
    assert tensors(tmp_path / "run" / "checkpoint.safetensors") == tensors(
        whole / "checkpoint.safetensors"
    )


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_that_fails_late_loses_no_weights(
    failing: int, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes out when the finished epoch is to be saved, after its position is known."""
    real, calls = checkpoint.write_safetensors, [0]

    def once(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise XciteError("cannot write it: No space left on device")
        real(*arguments, **options)

    settings = ("run.checkpoint_minutes=1e-6", "run.evaluate_every=2")
    last = 2 * STEPS - failing
    with monkeypatch.context() as patch:
        at(patch, last, lambda: patch.setattr(checkpoint, "write_safetensors", once))
        with pytest.raises(XciteError, match="No space left"):
            train(pictures, tmp_path / "run", *settings)
    assert resume(pictures, tmp_path / "run", *settings).finished
    folder = RunFolder(tmp_path / "run")
    assert folder.best.is_file()
    assert folder.last.is_file()
    assert tensors(folder.numbered(2)) == tensors(whole / "checkpoint.safetensors")


# In a process of its own: how this one began, and what others left in it, must not matter.
NOTED = """
import faulthandler
import signal
from xcite.training.interruption import SIGNALS, StopRequest

faulthandler.enable()
for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in SIGNALS:
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.signal == number, number
        for other in SIGNALS[1:]:
            signal.raise_signal(other)  # batch systems send several
        assert stop.signal == number, number
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            continue
        raise AssertionError(f"{number!r}: the second Ctrl-C was not obeyed at once")
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with StopRequest() as stop:
    signal.raise_signal(signal.SIGHUP)
    assert stop.signal is None, "nohup"
"""


def test_signals_are_noted_and_nohup_is_respected() -> None:
    subprocess.run([sys.executable, "-c", NOTED], check=True)


def test_a_signal_that_also_ends_the_loader_is_a_stop(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        deliver(signal.SIGTERM)
        raise XciteError("a data worker process ended unexpectedly")

    at(monkeypatch, 2, end)
    assert not train(pictures, tmp_path / "run").finished
    assert checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").position.step == 2


def test_a_deleted_folder_is_noticed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def delete() -> None:
        for thread in threading.enumerate():
            if thread.name == "xcite saving":
                thread.join()  # a file that is being made right now would make its folder, too
        shutil.rmtree(folder)

    at(monkeypatch, 2, delete)
    with pytest.raises(XciteError, match=r"deleted"):
        train(pictures, folder)
    assert not folder.exists(), "nothing is made anew in its place"


def test_a_moved_folder_is_noticed_and_followed(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    with monkeypatch.context() as patch:
        at(patch, 2, lambda: (tmp_path / "run").rename(moved))
        with pytest.raises(XciteError, match=f"go on with: xcite train --resume {moved}"):
            train(pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert resume(pictures, moved).finished
    assert tensors(moved / "checkpoint.safetensors") == tensors(whole / "checkpoint.safetensors")


class TestBelongingTogether:
    """Checkpoint, recipe and data of a run are compared when it goes on."""

    def test_another_runs_checkpoint(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = (stopped(pictures, tmp_path / n, monkeypatch) for n in ("one", "other"))
        shutil.copy(other / "checkpoint.safetensors", one)
        with pytest.raises(XciteError, match="belongs to another run"):
            resume(pictures, one)
        assert resume(pictures, one, allow_changes=True).finished
        assert "belongs to another run" in (one / "log.txt").read_text()

    def test_an_edited_recipe(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = stopped(pictures, tmp_path / "run", monkeypatch)
        text = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(text.replace("lr: 0.01", "lr: 0.02"))
        with pytest.raises(XciteError, match=r"optim\.lr is 0\.01 in this run and would be 0\.02"):
            loop.train(recipes.load(str(run)), run, resume=True, console=QUIET)

    def test_pictures_with_other_contents(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_both(tmp_path)
        run = stopped(tmp_path, tmp_path / "run", monkeypatch)
        for path in (tmp_path / "train").rglob("*.png"):
            os.utime(path, (1, 1))
        shutil.rmtree(tmp_path / "train")
        make_pictures(tmp_path / "train", 8, seed=5)
        with pytest.raises(XciteError, match=r"are not those .*contents of the pictures"):
            resume(tmp_path, run)
        assert resume(tmp_path, run, allow_changes=True).finished

    def test_copied_pictures_have_other_times_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_both(tmp_path)
        run = stopped(tmp_path, tmp_path / "run", monkeypatch)
        for path in (tmp_path / "train").rglob("*.png"):
            os.utime(path, (1, 1))
        assert resume(tmp_path, run).finished
        assert "have other times than before" in (run / "log.txt").read_text()

    def test_a_position_that_cannot_be(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = stopped(pictures, tmp_path / "run", monkeypatch)
        found = checkpoint.load(run / "checkpoint.safetensors")
        state, position = found.state, found.position
        state["step"] = np.array(3, np.int64)
        checkpoint.save(run / "checkpoint.safetensors", state, position)
        with pytest.raises(XciteError, match="which cannot be with 4 steps an epoch"):
            resume(pictures, run)

    def test_a_damaged_newest(
        self, pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunFolder(stopped(pictures, tmp_path / "run", monkeypatch, step=STEPS + 1))
        data = bytearray(run.checkpoint.read_bytes())
        data[-5] ^= 16
        run.checkpoint.write_bytes(data)
        assert resume(pictures, run.path).finished
        log = run.log.read_text()
        assert "checkpoint-previous.safetensors is used instead" in log
        assert run.path.joinpath("checkpoint.safetensors.damaged").read_bytes() == data
        assert tensors(run.checkpoint) == tensors(whole / "checkpoint.safetensors")


def test_what_may_change() -> None:
    recipe = recipes.load("digits")
    for setting, allowed in {
        "data.on_error=skip": (True, True),
        "data.max_pixels=5": (True, True),
        "run.checkpoint_minutes=1": (True, True),
        "run.log_every=3": (True, True),
        "optim.lr=1": (False, True),
        "optim.clip=1": (False, True),
        "optim.epochs=50": (False, True),
        "run.precision=bf16": (False, True),
        "optim.batch=7": (False, True),
        "data.classes=names.txt": (True, True),
        "model.depth=3": (False, False),
        "data.repeats=3": (False, False),
    }.items():
        changed = changes(recipe, recipes.load("digits", [setting]))
        assert list(changed) == [setting.partition("=")[0]]
        for aloud, fine in zip((False, True), allowed, strict=True):
            if fine:
                check(changed, allowed=aloud)
            else:
                with pytest.raises(XciteError, match=f"{setting.partition('=')[0]} is"):
                    check(changed, allowed=aloud)


def test_keys_of_the_rules_exist() -> None:
    known = recipes.load("digits").model_dump()
    coming = {"outside_root", "worker_timeout"}
    for rules in (FREE, NEVER):
        for section, keys in rules.items():
            assert set(keys or ()) - coming <= set(known[section])


def test_the_writer_tells_failures_once() -> None:
    writer, done = Writer(), []

    def fail() -> None:
        raise XciteError("no")

    writer.start([lambda: done.append(1), fail, lambda: done.append(2)])
    with pytest.raises(XciteError, match="no"):
        writer.wait()
    writer.wait()
    assert (done, writer.failed) == ([1], False)


class TestStatus:
    def lines(self, folder: Path) -> dict[str, str]:
        rows = [line.partition("  ") for line in StatusReader(folder).read().lines()]
        return {name: text.strip() for name, _, text in rows}

    def test_of_a_finished_run(self, whole: Path) -> None:
        lines = self.lines(whole)
        assert lines["state"] == "finished"
        assert lines["position"] == f"epoch {EPOCHS} of {EPOCHS}, step 4 of 4, 100.0 % of the run"
        assert "go on with" not in lines

    def test_of_a_stopped_run(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = stopped(pictures, tmp_path / "run", monkeypatch)
        lines = self.lines(run)
        assert lines["state"] == "stopped"
        assert lines["position"] == "epoch 2 of 2, step 1 of 4, 62.5 % of the run"
        assert lines["go on with"] == f"xcite train --resume {run}"
        (run / "checkpoint.safetensors").write_bytes(b"x" * 100)
        assert "DAMAGED" in "".join(StatusReader(run).read().lines())

    def test_while_it_trains(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[Any] = []
        at(monkeypatch, 3, lambda: seen.append(StatusReader(tmp_path / "run").read()))
        train(pictures, tmp_path / "run")
        status = seen[0]
        assert (status.state, status.owner.pid, status.command) == ("training", os.getpid(), "")
        assert status.told["seconds_left"] >= 0

    def test_of_a_killed_run_and_of_damaged_files(
        self, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunFolder(stopped(pictures, tmp_path / "run", monkeypatch))
        run.status.write_text(json.dumps({"state": "training", "epoch": "x", "loss": [1]}))
        assert StatusReader(run.path).read().state == "killed"
        for text in ("", "[]", "{", '{"state": 3}', "[" * 100_000):
            run.status.write_text(text)
            run.history.write_text(text)
            assert StatusReader(run.path).read().lines()


def test_files_with_sound_checksums_and_other_contents(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "c.safetensors", {}, {"format": checkpoint.FORMAT})
    with pytest.raises(XciteError, match="damaged"):
        checkpoint.load(tmp_path / "c.safetensors")
