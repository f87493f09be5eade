"""Runs whose steps are only queued, as on a GPU, against runs that wait for each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from noise_runs import EPOCHS, STEPS, interrupt, make_both, tiny
from rich.console import Console

from xcite import engines
from xcite.engines import create_engine
from xcite.engines.base import BaseEngine
from xcite.errors import XciteError
from xcite.training import checkpoint, loop, views_log
from xcite.training.run_folder import RunFolder
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, save_weights

ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in engines.installed()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_both(tmp_path_factory.mktemp("pictures"))
    architecture = XCiTArchitecture(8, 16, 1, 2, num_classes=3)
    teacher = create_engine(engines.installed()[0], architecture, seed=1)
    metadata = Metadata(architecture=architecture.fields(), class_names=["c", "a", "b"])
    save_weights(folder / "teacher.safetensors", teacher.read_weights(), metadata)
    return folder


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Engines, the teacher's too, that believe their device to compute beside the processor."""
    real = BaseEngine.__init__

    def init(self: BaseEngine, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.asynchronous = True

    monkeypatch.setattr(BaseEngine, "__init__", init)
    return monkeypatch


def train(engine: str, pictures: Path, folder: Path, *settings: str, **options: Any) -> RunFolder:
    quiet = {"console": Console(quiet=True), **options}
    given = ("run.log_every=3", "run.record_views=true", *settings)
    loop.train(tiny(pictures, engine, *given), folder, **quiet)
    return RunFolder(folder)


def rows(run: RunFolder) -> list[dict[str, Any]]:
    clock = ("seconds", "pictures_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in run.rows()]


def assert_alike(found: RunFolder, expected: RunFolder) -> None:
    """The same up to the rounding of pixels, clipping and the average."""
    for mine, theirs in zip(rows(found), rows(expected), strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["kind"] == theirs["kind"]
        for key in theirs.keys() - {"kind"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3), key
    assert views_log.read(found.path) == views_log.read(expected.path)
    here, there = checkpoint.load(found.checkpoint), checkpoint.load(expected.checkpoint)
    assert here.position.done == there.position.done
    assert here.position.loss == pytest.approx(there.position.loss)
    assert here.state.keys() == there.state.keys()
    for name, array in here.state.items():
        if name.startswith("weights"):
            # AdamW enlarges the rounding of gradients near zero to a part of a step of 1e-2
            np.testing.assert_allclose(array, there.state[name], rtol=0, atol=5e-3, err_msg=name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_a_queued_run_is_the_same(
    engine: str, loss: str, pictures: Path, tmp_path: Path, asynchronous: pytest.MonkeyPatch
) -> None:
    """With a live teacher that sees other pixels and other classes than the student."""
    settings = [
        f"distill.loss={loss}",
        f"distill.teacher={pictures}/teacher.safetensors",
        "distill.teacher_size=24",
        "distill.teacher_mean=[0.4, 0.5, 0.6]",
        "distill.teacher_std=[0.2, 0.3, 0.25]",
        "optim.clip=1.0",
    ]
    queued = train(engine, pictures, tmp_path / "queued", *settings)
    asynchronous.undo()
    assert_alike(queued, train(engine, pictures, tmp_path / "waiting", *settings))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_queued_run_goes_on(
    engine: str, pictures: Path, tmp_path: Path, asynchronous: pytest.MonkeyPatch
) -> None:
    whole = train(engine, pictures, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 1)  # obeyed where results are looked at: after step 3
        run = train(engine, pictures, tmp_path / "run")
    assert checkpoint.load(run.checkpoint).position.done == 3
    train(engine, pictures, run.path, resume=True)
    assert_alike(run, whole)
    assert len(views_log.read(run.path)) == EPOCHS * STEPS


@pytest.mark.parametrize("engine", ENGINES)
def test_a_queued_run_stops_at_the_first_bad_step(
    engine: str, pictures: Path, tmp_path: Path, asynchronous: pytest.MonkeyPatch
) -> None:
    """The state is the one before it, though more steps were queued behind it."""
    wild = ("optim.lr=1e30", "optim.warmup_epochs=0", "run.log_every=4")
    with pytest.raises(XciteError, match=r"the loss is .*, the gradient") as found:
        train(engine, pictures, tmp_path / "queued", *wild)
    asynchronous.undo()
    with pytest.raises(XciteError) as expected:
        train(engine, pictures, tmp_path / "waiting", *wild)
    place = str(expected.value).partition("in epoch ")[2].partition(" of")[0]
    assert f"in epoch {place} of" in str(found.value)
    queued, waiting = RunFolder(tmp_path / "queued"), RunFolder(tmp_path / "waiting")
    ours, theirs = checkpoint.load(queued.checkpoint), checkpoint.load(waiting.checkpoint)
    assert ours.position.done == theirs.position.done == 1
    assert ours.state["step"] == 1
