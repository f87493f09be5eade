"""`xcite tune`, and a run that looks its choices up, measures them, keeps them."""

import json

import pytest
from noise_runs import make_both, tiny
from rich.console import Console

from xcite import recipe as recipes
from xcite.choices import Choices, default_choices
from xcite.cli import main
from xcite.engines import installed
from xcite.training import computing, loop, plan
from xcite.training.run_folder import RunFolder
from xcite.tuning import profile
from xcite.tuning.knobs import NEVER, Work
from xcite.tuning.search import Found

ENGINE = installed()[-1]
SMALL = ["xcit_nano_12_p16", "--engine", ENGINE, "--batch", "2", "--size", "32", "32"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["tune", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_measure_show_and_forget(capsys):
    assert "nothing was tuned" in run(capsys, "--show")
    assert "times as fast as untuned" in run(capsys, *SMALL, "--seconds", "1")
    assert "batch 2, 32 x 32" in run(capsys, "--show")
    entry = json.loads(run(capsys, *SMALL, "--forward", "--seconds", "1", "--json"))
    assert entry["before"] >= entry["after"] > 0
    kept = json.loads(run(capsys, "--show", "--json"))["entries"]
    assert [one["work"]["kind"] for one in kept] == ["train", "forward"]
    assert Choices.model_validate(kept[0]["choices"])
    run(capsys, "--forget")
    assert "nothing was tuned" in run(capsys, "--show")


def test_what_cannot_be_kept_is_said(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        main(["tune", *SMALL, "--seconds", "1"])
    said = capsys.readouterr()
    assert "times as fast as untuned" in said.out
    assert "not kept" in said.err


def test_a_model_with_one_way_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tune", "regnety_160"])
    assert ended.value.code == 2
    assert "nothing to tune" in capsys.readouterr().err


@pytest.fixture
def console():
    return Console(record=True, width=200, file=open("/dev/null", "w"))


def begin(folder, console, *settings):
    recipe = tiny(folder, ENGINE, "optim.epochs=1", *settings)
    return loop.train(recipe, folder / "run", console=console), recipe


def work_of(recipe):
    architecture = plan.make(recipe).architecture
    batch = recipe.optim.batch // recipe.optim.accumulate
    return Work(architecture, ENGINE, batch, 16, 16, "float32")


OTHER = default_choices(ENGINE).model_copy(update={"covariance_above": NEVER, "slice_bytes": 1568})


def test_a_run_takes_what_the_profile_holds_and_keeps_it(tmp_path, console):
    make_both(tmp_path)
    profile.keep(work_of(tiny(tmp_path, ENGINE)), Found(OTHER, 2.0, 1.0, 9, 1.0))
    begin(tmp_path, console)
    assert "as tuned for this machine" in console.export_text()
    folder = RunFolder(tmp_path / "run")
    assert recipes.load(str(folder.path)).run.choices == OTHER
    profile.profile_file().unlink()
    longer = tiny(tmp_path, ENGINE, "optim.epochs=2")
    loop.train(longer, folder.path, resume=True, allow_changes=True, console=console)
    assert recipes.load(str(folder.path)).run.choices == OTHER  # to the end


def test_a_long_run_measures_first_unless_told_not_to(tmp_path, console, monkeypatch):
    make_both(tmp_path)
    monkeypatch.setattr(computing, "LONG_RUN", 1.0)
    monkeypatch.setattr(computing, "TUNING_SECONDS", 1.0)
    recipe = tiny(tmp_path, ENGINE, "run.tune=off")
    engine, settled = computing.engine_for(
        recipe, plan.make(recipe).architecture, 24, say=console.print
    )
    assert settled.run.choices == engine.choices == default_choices(ENGINE)
    assert console.export_text() == ""
    begin(tmp_path, console)
    told = console.export_text()
    assert "a long run" in told
    assert "times as fast as untuned" in told
    assert profile.look_up(work_of(recipe)) is not None
