"""The loop on real engines: an interrupted run goes on as if nothing had happened."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_runs import EPOCHS, STEPS, deliver, interrupt, make_both, make_pictures, tensors, tiny
from tiffs import tiff

from xcite import engines
from xcite import recipe as recipes
from xcite.choices import default_choices
from xcite.data.decoding import decode
from xcite.errors import XciteError
from xcite.figures.report import write_report
from xcite.runtime.opening import open_model
from xcite.training import checkpoint, loop, validation
from xcite.training.run_folder import RunFolder
from xcite.weights import open_weights

ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in engines.installed()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both(tmp_path_factory.mktemp("pictures"))


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """The epoch rows, without what depends on the clock."""
    rows = [row for row in RunFolder(folder).rows() if row["kind"] == "epoch"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module", params=ENGINES)
def uninterrupted(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    outcome = loop.train(tiny(pictures, request.param), folder)
    return request.param, outcome


def test_what_a_run_leaves(uninterrupted: Any, pictures: Path) -> None:
    engine, outcome = uninterrupted
    assert outcome.finished
    assert outcome.epochs == EPOCHS
    folder = RunFolder(outcome.folder)
    given = tiny(pictures, engine)
    kept = recipes.load(str(folder.path))
    assert kept == recipes.with_values(given, "run", choices=default_choices(engine))
    session = json.loads(folder.environment.read_text())["sessions"][0]
    assert (session["engine"], "numpy" in session["versions"]) == (engine, True)
    log = folder.log.read_text()
    rows = [row for row in folder.rows() if row["kind"] == "epoch"]
    for row in rows:
        line = f"Validate Epoch [{row['epoch']}] acc1 ({row['acc1']:.3f}), acc5 (100.000)"
        assert line in log
        assert f"Validate EMA Epoch [{row['epoch']}] acc1 ({row['ema_acc1']:.3f})" in log
    best = open_weights(folder.path)
    top1 = max(max(row["acc1"], row["ema_acc1"]) for row in rows)
    assert best.metadata.metrics["top1"] == outcome.best == top1
    assert best.metadata.class_names == ["a", "b", "c"]
    assert best.metadata.preprocessing == tiny(pictures, engine).preprocessing
    assert best.metadata.recipe_hash == recipes.digest(kept)
    found = checkpoint.load(folder.checkpoint)
    state, position = found.state, found.position
    assert (position.epoch, position.step, int(state["step"])) == (EPOCHS, 0, EPOCHS * STEPS)
    for name, array in open_weights(folder.last).tensors.items():
        assert np.array_equal(array, state[f"weights/{name}"])
    for name, array in open_weights(folder.last_ema).tensors.items():
        assert np.array_equal(array, state[f"ema/{name}"])
    assert folder.numbered_checkpoints() == [folder.numbered(EPOCHS)]


@pytest.mark.parametrize("step", [0, 2, STEPS - 1, STEPS + 1, EPOCHS * STEPS - 1])
def test_interrupted_and_resumed_is_the_same_to_the_bit(
    uninterrupted: Any,
    step: int,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, whole = uninterrupted
    recipe = tiny(pictures, engine)
    with monkeypatch.context() as patch:
        interrupt(patch, step)
        stopped = loop.train(recipe, tmp_path / "run")
    assert not stopped.finished
    assert f"xcite train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    position = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").position
    assert position.epoch * STEPS + position.step == step + 1, "saved at the step's end"
    again = loop.train(recipe, tmp_path / "run", resume=True)
    assert again.finished
    assert tensors(again.folder / "checkpoint.safetensors") == tensors(
        whole.folder / "checkpoint.safetensors"
    )
    assert epochs_of(again.folder) == epochs_of(whole.folder)
    steps = [row["step"] for row in RunFolder(again.folder).rows() if row["kind"] == "step"]
    assert steps == list(range(1, EPOCHS * STEPS + 1)), "every step recorded once"


def test_stopped_while_evaluating(
    uninterrupted: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, whole = uninterrupted
    recipe = tiny(pictures, engine)
    real = validation.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        deliver(signal.SIGTERM)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", evaluate)
        assert not loop.train(recipe, tmp_path / "run").finished
    assert RunFolder(tmp_path / "run").rows()[-1]["kind"] == "step"
    loop.train(recipe, tmp_path / "run", resume=True)
    assert epochs_of(tmp_path / "run") == epochs_of(whole.folder)


def test_resumed_from_a_numbered_checkpoint(
    uninterrupted: Any, pictures: Path, tmp_path: Path
) -> None:
    engine, whole = uninterrupted
    recipe = tiny(pictures, engine, "run.keep=9")
    loop.train(recipe, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    loop.train(recipe, folder.path, resume=True, checkpoint_file=folder.numbered(1))
    assert tensors(folder.checkpoint) == tensors(whole.folder / "checkpoint.safetensors")
    assert epochs_of(folder.path) == epochs_of(whole.folder)


def test_a_finished_run_has_nothing_left_to_do(
    uninterrupted: Any, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, whole = uninterrupted
    before = tensors(whole.folder / "checkpoint.safetensors")
    assert loop.train(tiny(pictures, engine), whole.folder, resume=True).finished
    assert "is complete" in capsys.readouterr().out
    assert tensors(whole.folder / "checkpoint.safetensors") == before


@pytest.mark.skipif(len(engines.installed()) < 2, reason="needs both engines")
def test_a_run_goes_on_on_the_other_engine(
    uninterrupted: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, whole = uninterrupted
    other = next(name for name in engines.installed() if name != engine)
    with monkeypatch.context() as patch:
        interrupt(patch, STEPS + 1)
        loop.train(tiny(pictures, engine), tmp_path / "run")
    loop.train(tiny(pictures, other), tmp_path / "run", resume=True)
    losses = [row["loss"] for row in RunFolder(tmp_path / "run").rows() if row["kind"] == "step"]
    expected = [row["loss"] for row in RunFolder(whole.folder).rows() if row["kind"] == "step"]
    # float32 sums in another order, amplified by Adam's division; two steps after the change
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_no_number_stops_the_run(
    engine: str, pictures: Path, tmp_path: Path
) -> None:
    recipe = tiny(pictures, engine, "optim.lr=1e30", "optim.warmup_epochs=0")
    with pytest.raises(XciteError, match=r"the loss is .* in epoch 1, step [23] of 4") as caught:
        loop.train(recipe, tmp_path / "run")
    assert "lower optim.lr" in str(caught.value)
    assert not (tmp_path / "run" / "best.safetensors").exists()


class TestWithOneEngine:
    """What does not depend on the engine, on the first one installed."""

    engine = (engines.installed() or ["paddle"])[0]

    def run(self, pictures: Path, folder: Path, *settings: str, **options: Any) -> loop.Outcome:
        return loop.train(
            tiny(pictures, self.engine, "optim.epochs=1", *settings), folder, **options
        )

    def test_without_validation_and_average(self, pictures: Path, tmp_path: Path) -> None:
        out = self.run(pictures, tmp_path / "run", "data.validation=null", "optim.ema=null")
        folder = RunFolder(out.folder)
        assert out.best is None
        assert not folder.best.exists()
        assert not folder.last_ema.exists()
        assert open_weights(folder.path).metadata.metrics == {"epoch": 1, "ema": False}

    def test_other_pictures_than_the_run_began_with(self, pictures: Path, tmp_path: Path) -> None:
        out = self.run(pictures, tmp_path / "run")
        make_pictures(tmp_path / "others", 9)
        with pytest.raises(XciteError, match="are not those that"):
            self.run(pictures, out.folder, f"data.train={tmp_path / 'others'}", resume=True)

    def test_pictures_that_cannot_be_read(self, pictures: Path, tmp_path: Path) -> None:
        make_pictures(tmp_path / "train", 8)
        (tmp_path / "train" / "b" / "3.png").write_bytes(b"\x89PNG broken")
        where = f"data.train={tmp_path / 'train'}"
        with pytest.raises(XciteError, match=r"b/3\.png"):
            self.run(pictures, tmp_path / "stopped", where)
        out = self.run(pictures, tmp_path / "run", where, "data.on_error=skip")
        assert out.finished
        (row,) = RunFolder(out.folder).skipped.read_text().splitlines()
        part, name, reason = row.split("\t")
        assert (part, name[-7:], reason[:13]) == ("train", "b/3.png", "not a picture")
        assert epochs_of(out.folder)[-1]["skipped"] == 1

    def test_damaged_validation_pictures_are_counted_aloud(
        self, pictures: Path, tmp_path: Path
    ) -> None:
        make_both(tmp_path)
        (tmp_path / "val" / "b" / "odd\nname.png").write_bytes(b"nothing")
        with open(os.fsencode(tmp_path / "val" / "a") + b"/caf\xe9.png", "wb") as file:
            file.write(b"nothing")
        (tmp_path / "train" / "a" / "0.png").write_bytes(b"nothing")
        where = [f"data.train={tmp_path / 'train'}", f"data.validation={tmp_path / 'val'}"]
        out = self.run(pictures, tmp_path / "run", *where, "data.on_error=skip")
        folder = RunFolder(out.folder)
        rows = [row.split("\t") for row in folder.skipped.read_text().split("\n")[:-1]]
        assert [row[0] for row in rows] == ["train", "validation", "validation"]
        assert rows[1][1].endswith("a/caf\\udce9.png")
        assert rows[2][1].endswith("b/odd\\nname.png")
        last = epochs_of(out.folder)[-1]
        assert (last["skipped"], last["validation_skipped"]) == (1, 2)
        said = "1 of 24 pictures of data.train, 2 of 11 pictures of data.validation"
        assert folder.log.read_text().count(f"cannot be read and are left out: {said}") == 1
        # A session that meets none of them keeps the list.
        folder.write_skipped({"train": {"more": "gone"}})
        assert len(folder.skipped.read_text().splitlines()) == 4

    def test_too_many_lost_pictures_stop_the_run(self, pictures: Path, tmp_path: Path) -> None:
        make_both(tmp_path)
        for number in range(3):
            (tmp_path / "val" / "a" / f"{number}.png").write_bytes(b"nothing")
        where = [f"data.train={tmp_path / 'train'}", f"data.validation={tmp_path / 'val'}"]
        settings = [*where, "data.on_error=skip", "data.skip_limit=2"]
        with pytest.raises(XciteError, match=r"3 of 9 .*--set data\.skip_limit=6$"):
            self.run(pictures, tmp_path / "run", *settings)
        settings[-1] = "data.skip_limit=3"
        assert self.run(pictures, tmp_path / "run", *settings, resume=True).finished

    def test_five_channels_and_an_oblong_input(self, pictures: Path, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        for part in ("train", "val"):
            for name in "ab":
                (tmp_path / part / name).mkdir(parents=True)
                for number in range(6):
                    pixels = random.integers(0, 65536, (20, 30, 5)).astype(np.uint16)
                    path = tmp_path / part / name / f"{number}.tif"
                    path.write_bytes(tiff(pixels, deflate=True, differences=True))
        where = [f"data.train={tmp_path / 'train'}", f"data.validation={tmp_path / 'val'}"]
        five = "[0.5, 0.4, 0.5, 0.4, 0.5]"
        seen = [f"preprocessing.mean={five}", f"preprocessing.std={five}"]
        out = self.run(pictures, tmp_path / "run", *where, *seen, "preprocessing.size=[16, 24]")
        assert out.finished
        model = open_model(out.folder)
        assert model.preprocessing.size == (16, 24)
        assert model.architecture.in_chans == 5
        pixels = model.pixels(decode(path, channels=5))
        assert pixels.shape == (16, 24, 5)
        assert model.logits(pixels[None]).shape == (1, 2)
        write_report(out.folder, tmp_path / "report.html")
        assert "16 x 24" in (tmp_path / "report.html").read_text()

    def test_classes_and_batches_are_checked_first(self, pictures: Path, tmp_path: Path) -> None:
        names = tmp_path / "names.txt"
        names.write_text("a\nb\nc\nd\n")
        make_pictures(tmp_path / "one", 8, classes="a")
        make_pictures(tmp_path / "more", 3, classes="abcx")
        for settings, message in [
            ([f"data.classes={names}"], "has no picture of d"),
            (["optim.batch=24", "optim.batch=26"], "optim.batch 26 is larger"),
            ([f"data.train={tmp_path / 'one'}"], "at least two"),
            ([f"data.validation={tmp_path / 'more'}"], "'x'"),
            (["data.train=absent"], "absent"),
        ]:
            with pytest.raises(XciteError, match=message):
                self.run(pictures, tmp_path / "run", *settings)
        assert not (tmp_path / "run").exists(), "nothing is written before all is checked"

    def test_a_teacher_alone_may_hear_pictures_of_any_class(
        self, pictures: Path, tmp_path: Path
    ) -> None:
        teacher = self.run(pictures, tmp_path / "teacher").folder
        names = tmp_path / "names.txt"
        names.write_text("a\nb\nc\n")
        make_pictures(tmp_path / "one", 8, classes="a")
        taught = [f"data.train={tmp_path / 'one'}", f"data.classes={names}"]
        taught += ["distill.loss=hard", f"distill.teacher={teacher}"]
        for labelled in ([], ["distill.alpha=1", "distill.alpha_end=0.5"]):
            with pytest.raises(XciteError, match="has no picture of b, c"):
                self.run(pictures, tmp_path / "refused", *taught, *labelled)
        student = self.run(pictures, tmp_path / "student", *taught, "distill.alpha=1").folder
        assert open_weights(student).tensors["head.weight"].shape == (3, 16)

    def test_starting_from_weights(self, pictures: Path, tmp_path: Path) -> None:
        first = self.run(pictures, tmp_path / "first")
        here = f"init.weights={first.folder}"
        make_pictures(tmp_path / "four", 8, classes="abcd")
        four = [f"data.train={tmp_path / 'four'}", "data.validation=null"]
        with pytest.raises(XciteError):
            self.run(pictures, tmp_path / "refused", here, *four)
        with pytest.raises(XciteError, match=r"preprocessing\.mean .*trained with"):
            self.run(pictures, tmp_path / "refused", here, "preprocessing.mean=[0.5, 0.5, 0.5]")
        frozen = ["init.reset_head=true", "init.freeze_patch_embed=true"]
        second = self.run(pictures, tmp_path / "second", here, *four, *frozen)
        before, after = open_weights(first.folder), open_weights(second.folder)
        assert after.tensors["head.weight"].shape == (4, 16)
        stem = [name for name in before.tensors if name.startswith("patch_embed.")]
        for name in stem:
            if not name.endswith("num_batches_tracked"):
                assert np.array_equal(before.tensors[name], after.tensors[name]), name
        moved = "blocks.0.attn.qkv.weight"
        assert not np.array_equal(before.tensors[moved], after.tensors[moved])
        renamed = tmp_path / "renamed"
        make_pictures(renamed, 8, classes="xyz")
        with pytest.raises(XciteError, match="knows other classes"):
            self.run(pictures, tmp_path / "no", here, f"data.train={renamed}", *four[1:])

    def test_a_teacher_answers(self, pictures: Path, tmp_path: Path) -> None:
        teacher = self.run(pictures, tmp_path / "teacher")
        out = self.run(
            pictures, tmp_path / "run", "distill.loss=hard", f"distill.teacher={teacher.folder}"
        )
        assert open_weights(out.folder).metadata.provenance["teacher"]["sha256"]

    def test_tensorboard(self, pictures: Path, tmp_path: Path) -> None:
        accumulator = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator"
        ).EventAccumulator
        out = self.run(pictures, tmp_path / "run", "run.tensorboard=true")
        events = accumulator(str(out.folder / "tensorboard")).Reload()
        losses = [event.value for event in events.Scalars("step/loss")]
        rows = [row["loss"] for row in RunFolder(out.folder).rows() if row["kind"] == "step"]
        assert losses == pytest.approx(rows)
        assert "epoch/acc1" in events.Tags()["scalars"]
