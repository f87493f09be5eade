"""A run is never a dead end: what may be changed when it goes on, by which rule; who says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_runs import EPOCHS, STEPS, interrupt, make_both, make_pictures, tensors, tiny
from rich.console import Console

from xcite import engines
from xcite.errors import XciteError
from xcite.figures.curves import _epochs
from xcite.figures.report import write_report
from xcite.training import checkpoint, loop, pictures, steps
from xcite.training.checkpoint import Position
from xcite.training.history import History
from xcite.training.run_folder import RunFolder
from xcite.training.schedules import learning_rate
from xcite.training.status import StatusReader
from xcite.training.together import together
from xcite.weights import open_weights

ENGINE = (engines.installed() or ["paddle"])[-1]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both(tmp_path_factory.mktemp("pictures"))


def train(noise: Path, folder: Path, *settings: str, **options: Any) -> loop.Outcome:
    return loop.train(tiny(noise, ENGINE, *settings), folder, console=QUIET, **options)


def changed(noise: Path, folder: Path, *settings: str, **options: Any) -> loop.Outcome:
    return train(noise, folder, *settings, resume=True, allow_changes=True, **options)


@pytest.fixture(scope="module")
def stopped_at_2(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 2 of 4 steps of its first epoch, 12 of 24 pictures."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)
        train(noise, folder)
    return folder


@pytest.fixture
def run(stopped_at_2: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(stopped_at_2, tmp_path / "run"))


def steps_of(run: RunFolder) -> list[int]:
    return [row["step"] for row in run.rows() if row["kind"] == "step"]


class TestSchedule:
    def test_longer(self, noise: Path, run: RunFolder) -> None:
        longer = tiny(noise, ENGINE, "optim.epochs=3")
        with pytest.raises(XciteError, match=r"optim\.epochs is 2 .* --allow-changes"):
            train(noise, run.path, "optim.epochs=3", resume=True)
        assert changed(noise, run.path, "optim.epochs=3").epochs == 3
        rates = [row["lr"] for row in run.rows() if row["kind"] == "step"]
        assert steps_of(run) == list(range(1, 3 * STEPS + 1))
        assert rates[2:] == [learning_rate(longer, n, STEPS) for n in range(2, 3 * STEPS)]
        assert History(run.history).altered() == ["from step 2 on: optim.epochs from 2 to 3"]

    def test_longer_when_it_is_finished(self, noise: Path, run: RunFolder) -> None:
        train(noise, run.path, resume=True)
        assert changed(noise, run.path, "optim.epochs=3").epochs == 3
        assert StatusReader(run.path).read().state == "finished"

    def test_shorter_than_what_is_done(self, noise: Path, run: RunFolder) -> None:
        train(noise, run.path, resume=True)
        before = tensors(run.checkpoint)
        outcome = changed(noise, run.path, "optim.epochs=1")
        assert outcome.finished
        assert tensors(run.checkpoint) == before
        assert "is complete: 2 epochs are done" in run.log.read_text()
        assert "epoch 3 of 1" not in run.log.read_text()


class TestBatch:
    @pytest.mark.parametrize(
        ("batch", "goes_on_after", "steps", "again"), [(4, 3, 6, 0), (10, 1, 2, 2), (12, 1, 2, 0)]
    )
    def test_the_epoch_goes_on_where_its_pictures_are(
        self, batch: int, goes_on_after: int, steps: int, again: int, noise: Path, run: RunFolder
    ) -> None:
        outcome = changed(noise, run.path, f"optim.batch={batch}")
        assert outcome.finished
        left = steps - goes_on_after + steps * (EPOCHS - 1)
        assert steps_of(run) == list(range(1, 2 + left + 1)), "every step once"
        found = checkpoint.load(run.checkpoint)
        assert int(found.state["step"]) == found.position.done == 2 + left
        said = f"goes on after step {goes_on_after}, and {again} of the 12 pictures behind it"
        assert (said in run.log.read_text()) == (goes_on_after != 2)
        ends = [row["step"] for row in run.rows() if row["kind"] == "epoch"]
        assert ends == [2 + steps - goes_on_after, 2 + left]

    def test_changed_runs_resume_to_the_bit(
        self, noise: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = shutil.copytree(run.path, run.path.with_name("whole"))
        changed(noise, whole, "optim.batch=4")
        with monkeypatch.context() as patch:
            interrupt(patch, 8)  # the third step of the second epoch
            assert not changed(noise, run.path, "optim.batch=4").finished
        assert checkpoint.load(run.checkpoint).position.step == 3
        assert train(noise, run.path, "optim.batch=4", resume=True).finished
        assert tensors(run.checkpoint) == tensors(whole / "checkpoint.safetensors")
        assert steps_of(run) == list(range(1, 12))

    def test_no_picture_is_left_out(self) -> None:
        at = Position(epoch=1, step=5, loss=10.0, pictures=30, done=105)
        assert at.refitted(20, 6) is at
        less = at.refitted(8, 16)
        assert (less.step, less.pictures, less.done, less.loss) == (1, 16, 105, 2.0)
        assert at.refitted(3, 6).step == 3, "an epoch that became shorter is at its end"
        assert Position().refitted(8, 16).loss == 0


def test_a_checkpoint_of_an_older_xcite(noise: Path, run: RunFolder) -> None:
    found = checkpoint.load(run.checkpoint)
    old = found.position
    position = Position(**{**vars(old), "pictures": checkpoint.UNKNOWN, "done": checkpoint.UNKNOWN})
    checkpoint.save(run.checkpoint, found.state, position, identity=found.identity)
    whole = shutil.copytree(run.path, run.path.with_name("whole"))
    for folder, settings in ((whole, ()), (run.path, ("optim.batch=12",))):
        assert changed(noise, folder, *settings).finished
    assert steps_of(RunFolder(whole)) == list(range(1, 9))
    assert steps_of(run) == list(range(1, 6))


@pytest.mark.parametrize(
    "setting", ["optim.lr=0.001", "optim.clip=0.5", "optim.ema=0.8", "optim.accumulate=3"]
)
def test_what_changes_the_result_is_told_everywhere(
    setting: str, noise: Path, run: RunFolder
) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(XciteError, match="--allow-changes"):
        train(noise, run.path, setting, resume=True)
    assert changed(noise, run.path, setting).finished
    (told,) = History(run.history).altered()
    assert told.startswith(f"from step 2 on: {key} from ")
    assert told.endswith(f" to {value}")
    assert open_weights(run.last).metadata.provenance["changed on the way"] == told
    assert any(told in line for line in StatusReader(run.path).read().lines())


def test_a_report_says_what_was_changed(noise: Path, run: RunFolder, tmp_path: Path) -> None:
    changed(noise, run.path, "optim.lr=0.002", "data.validation=")
    write_report(run.path, tmp_path / "report.html", pictures=1)
    assert "from step 2 on: optim.lr from 0.01 to 0.002" in (tmp_path / "report.html").read_text()


def test_two_changes_are_refused_in_one_line(noise: Path, run: RunFolder) -> None:
    with pytest.raises(XciteError) as caught:
        train(noise, run.path, "optim.lr=0.5", "optim.clip=1", resume=True)
    for said in ("optim.lr is 0.01 in this run and would be 0.5", "optim.clip is None"):
        assert said in str(caught.value)


class TestClasses:
    def names(self, path: Path, *names: str) -> str:
        path.write_text("".join(f"{name}\n" for name in names))
        return f"data.classes={path}"

    def test_a_moved_file_is_free(self, noise: Path, run: RunFolder, tmp_path: Path) -> None:
        for name in ("one.txt", "two.txt"):
            setting = self.names(tmp_path / name, "a", "b", "c")
            assert train(noise, run.path, setting, resume=True).finished
        assert History(run.history).altered() == []

    def test_other_classes_are_refused(self, noise: Path, run: RunFolder, tmp_path: Path) -> None:
        setting = self.names(tmp_path / "other.txt", "b", "a", "c")
        with pytest.raises(XciteError, match=r"'b' where it has 'a'; set data\.classes"):
            changed(noise, run.path, setting)
        assert History(run.history).rows[-1]["event"] == "stopped", "nothing was accepted"


class TestDamagedPictures:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        make_pictures(tmp_path / "train", 8)
        make_pictures(tmp_path / "val", 3, seed=1)
        return tmp_path

    def damage(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[:60])

    @pytest.fixture
    def failed(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
        """A run that met a damaged picture in its second epoch."""
        with monkeypatch.context() as patch:
            interrupt(patch, STEPS - 1)
            train(place, place / "run")
        self.damage(place / "train" / "b" / "3.png")
        for path in (place / "train").rglob("*.png"):
            path.touch()
        with pytest.raises(XciteError, match=r"b/3\.png.*--resume \S+ --set data\.on_error=skip"):
            train(place, place / "run", resume=True, allow_changes=True)
        return RunFolder(place / "run")

    def test_skipped(self, place: Path, failed: RunFolder) -> None:
        command = StatusReader(failed.path).read().command
        assert command == f"xcite train --resume {failed.path} --set data.on_error=skip"
        assert train(place, failed.path, "data.on_error=skip", resume=True).finished
        assert failed.skipped.read_text().splitlines()[0].split("\t")[1].endswith("b/3.png")
        status = StatusReader(failed.path).read()
        assert (status.error, status.command) == ("", "")

    def test_deleted(self, place: Path, failed: RunFolder) -> None:
        (place / "train" / "b" / "3.png").unlink()
        with pytest.raises(XciteError) as caught:
            train(place, failed.path, resume=True)
        assert "1 gone (b/3.png)" in str(caught.value)
        assert caught.value.remedy == "--allow-changes"
        assert changed(place, failed.path).finished
        told = History(failed.history).altered()
        assert told[-1] == "from step 4 on: training pictures: 1 gone (b/3.png)"
        assert changed(place, failed.path).finished, "the pictures are now its own"

    def test_repaired(self, place: Path, failed: RunFolder) -> None:
        shutil.copy(place / "train" / "b" / "4.png", place / "train" / "b" / "3.png")
        with pytest.raises(XciteError, match=r"1 changed \(b/3\.png\)"):
            train(place, failed.path, resume=True)
        assert changed(place, failed.path).finished

    def test_of_validation(self, place: Path) -> None:
        self.damage(place / "val" / "a" / "0.png")
        with pytest.raises(XciteError) as caught:
            train(place, place / "run")
        run = RunFolder(place / "run")
        assert "saved after step 4 of 4 in epoch 1" in str(caught.value)
        assert checkpoint.load(run.checkpoint).position.step == STEPS
        assert train(place, run.path, "data.on_error=skip", resume=True).finished
        assert steps_of(run) == list(range(1, EPOCHS * STEPS + 1)), "no step was done again"


def test_pictures_are_told_apart(tmp_path: Path) -> None:
    from xcite.data.sources import open_source

    make_pictures(tmp_path / "one", 3)
    (tmp_path / "one" / "a" / "new\nline\t\udce9.png").write_bytes(b"x")
    source = open_source(tmp_path / "one")
    noted = tmp_path / "pictures.gz"
    pictures.write(noted, source, pictures.survey(source).sizes)
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = open_source(tmp_path / "moved")
    assert pictures.difference(noted, moved, pictures.survey(moved).sizes) == ""
    (tmp_path / "moved" / "a" / "new\nline\t\udce9.png").unlink()
    shutil.copy(tmp_path / "moved" / "a" / "0.png", tmp_path / "moved" / "c" / "9.png")
    other = open_source(tmp_path / "moved")
    said = pictures.difference(noted, other, pictures.survey(other).sizes)
    assert said == r"1 gone (a/new\nline\t\udce9.png), 1 new (c/9.png)"
    for damaged in (b"", b"x" * 50, noted.read_bytes()[:-20]):
        noted.write_bytes(damaged)
        assert pictures.difference(noted, other, pictures.survey(other).sizes) == ""


class TestGoingBack:
    def test_what_is_newest_is_what_goes_on(
        self, noise: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed right after going back, a run must not go on from what it has left behind."""
        changed(noise, run.path, "optim.epochs=3", "run.keep=5")
        back = run.numbered(1)

        def killed(*_: Any) -> None:
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(steps, "learning_rate", killed)
            with pytest.raises(SystemExit):
                changed(noise, run.path, "optim.epochs=3", "run.keep=5", checkpoint_file=back)
        assert checkpoint.load(run.checkpoint).position.epoch == 1
        assert run.numbered_checkpoints() == [back], "later ones are of work left behind"

    def test_a_numbered_checkpoint_too_many(self, noise: Path, run: RunFolder) -> None:
        train(noise, run.path, resume=True)
        shutil.copy(run.numbered(2), run.numbered(1))  # killed before it was removed
        train(noise, run.path, resume=True)
        assert run.numbered_checkpoints() == [run.numbered(2)]

    def test_what_was_undone_is_told_no_more(self, tmp_path: Path) -> None:
        history = History(tmp_path / "history.jsonl")
        for step, recipe, data in (
            (2, "A to B", ""),
            (2, "A to C", ""),
            (9, "C to D", "other pictures"),
            (9, "", ""),
            (9, "C to D", ""),
        ):
            history.add("resumed", step, altered_recipe=recipe, altered_data=data)
        lines = ["from step 2 on: A to C", "from step 9 on: other pictures"]
        assert history.altered() == [*lines, "from step 9 on: C to D"]
        history.add("resumed", 1, altered_recipe="A to D", altered_data="")
        assert History(history.path).altered() == ["from step 1 on: A to D"]

    def test_a_changed_recipe_holds_from_the_step_gone_back_to(
        self, noise: Path, run: RunFolder
    ) -> None:
        slow = ("optim.lr=0.001", "run.keep=5")
        train(noise, run.path, "run.keep=5", resume=True)
        changed(noise, run.path, *slow, "optim.epochs=3")
        changed(noise, run.path, *slow, "optim.epochs=3", checkpoint_file=run.numbered(1))
        (told,) = History(run.history).altered()
        assert told.startswith("from step 4 on: ")
        assert "optim.lr from 0.01 to 0.001" in told


class TestNotFinite:
    wild = ("optim.lr=1e30", "optim.warmup_epochs=0")

    def test_weights_beyond_help(self, noise: Path, tmp_path: Path) -> None:
        """The first remedy starts from weights that a wild step spoilt, the next one earlier."""
        run = RunFolder(tmp_path / "run")
        with pytest.raises(XciteError, match=f"--resume {run.path} --set optim.lr=5e"):
            train(noise, run.path, *self.wild)
        with pytest.raises(XciteError) as caught:
            changed(noise, run.path, "optim.lr=5e29", "optim.warmup_epochs=0")
        command = str(caught.value).rpartition("go on with: ")[2]
        assert command == StatusReader(run.path).read().command
        words = command.split()
        assert words[:3] == ["xcite", "train", "--resume"]
        assert words[4:] == ["--set", "optim.lr=2.5e+29", "--allow-changes"]
        start = Path(words[3])
        assert checkpoint.position_of(start).done < checkpoint.position_of(run.checkpoint).done
        tame = ("optim.lr=1e-3", "optim.warmup_epochs=0")
        assert changed(noise, run.path, *tame, checkpoint_file=start).finished


class _OneOfTwo:
    """An engine whose other process has failed, or not."""

    world_size = 2

    def __init__(self, other: bool) -> None:
        self.other = other
        self.told: list[float] = []

    def average(self, values: np.ndarray) -> np.ndarray:
        self.told += values.tolist()
        return (values + float(self.other)) / 2


def test_processes_refuse_together() -> None:
    def refuse() -> None:
        raise XciteError("other pictures")

    assert together(_OneOfTwo(other=False), lambda: 3) == 3  # type: ignore[arg-type]
    with pytest.raises(XciteError, match="another process of this run"):
        together(_OneOfTwo(other=True), lambda: 3)  # type: ignore[arg-type]
    mine = _OneOfTwo(other=False)
    with pytest.raises(XciteError, match="other pictures"):
        together(mine, refuse)  # type: ignore[arg-type]
    assert mine.told == [1.0], "the other one is told"


def test_curves_of_epochs_of_unlike_length() -> None:
    ends = [(4, 1), (14, 2)]
    at = [_epochs(step, ends) for step in (0, 2, 4, 9, 14, 19)]
    assert at == [0, 0.5, 1, 1.5, 2, 2.5]
    assert _epochs(7, []) == 7


def test_a_history_with_other_values_in_it(tmp_path: Path) -> None:
    rows = [
        {"event": "resumed", "step": "x", "altered_recipe": "a"},
        {"event": "resumed", "step": 3, "altered_recipe": "b"},
        {"event": "resumed", "step": 4, "altered_recipe": ["c"]},
        {"event": "failed", "step": 4, "error": "e", "command": 7},
    ]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = History(path)
    assert history.altered() == ["from step 3 on: b"]
    assert history.last_error() == ("e", "")
