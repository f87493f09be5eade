"""Runs on Paddle say and keep whether their operators are compiled."""

import io
import json

import pytest
from noise_runs import make_both, tiny
from rich.console import Console

from xcite import recipe as recipes
from xcite.choices import default_choices
from xcite.training import loop, plan
from xcite.training.run_folder import RunFolder
from xcite.tuning import profile
from xcite.tuning.knobs import Work, knobs
from xcite.tuning.search import Found
from xcite.variants import find

pytest.importorskip("paddle")

from xcite.engines.paddle.kernels import library

LOST = "compiled operators, which cannot be made here"
CHOICES = default_choices("paddle")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_both(tmp_path)


def have(monkeypatch, compiler):
    monkeypatch.setattr(library, "available", lambda: compiler)


def train(folder, *settings, **options):
    console = Console(record=True, width=300, file=io.StringIO())
    recipe = tiny(folder, "paddle", *settings)
    loop.train(recipe, folder / "run", console=console, **options)
    return console.export_text()


def kept(folder):
    """What recipe and last session say."""
    sessions = json.loads(RunFolder(folder / "run").environment.read_text())["sessions"]
    return recipes.load(str(folder / "run")).run.choices.compiled, sessions[-1]["choices"][
        "compiled"
    ]


@pytest.mark.skipif(not library.available(), reason="no C++ compiler")
def test_a_run_keeps_them_and_says_when_they_are_lost(folder, monkeypatch):
    assert LOST not in train(folder, "optim.epochs=1")
    assert kept(folder) == (True, True)
    have(monkeypatch, False)
    said = train(folder, "optim.epochs=2", resume=True, allow_changes=True)
    assert LOST in said
    assert kept(folder)[1] is False


def test_a_run_that_began_without_goes_on_without(folder, monkeypatch):
    have(monkeypatch, False)
    assert LOST not in train(folder, "optim.epochs=1")
    assert kept(folder) == (False, False)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert LOST not in train(folder, "optim.epochs=2", resume=True, allow_changes=True)
    assert kept(folder) == (False, False)


@pytest.mark.parametrize("compiler", [True, False])
def test_a_plan_says_it(folder, monkeypatch, compiler):
    have(monkeypatch, compiler)
    lines = plan.make(tiny(folder, "paddle")).lines()
    (engine,) = [line for line in lines if line.startswith("engine")]
    assert ("operators compiled here" in engine) == compiler
    off = CHOICES.model_copy(update={"compiled": False})
    recipe = recipes.with_values(tiny(folder, "paddle"), "run", choices=off)
    assert "compiled" not in " ".join(plan.make(recipe).lines())


@pytest.mark.parametrize("compiler", [True, False])
def test_a_plan_on_torch_says_it_where_it_is_the_default(folder, monkeypatch, compiler):
    pytest.importorskip("torch")
    from xcite.engines.torch.kernels import library as torch_library

    monkeypatch.setattr(torch_library, "available", lambda: compiler)
    (engine,) = [
        line for line in plan.make(tiny(folder, "torch")).lines() if line.startswith("engine")
    ]
    default = default_choices("torch").compiled
    assert ("operators compiled here" in engine) == (compiler and default)


def test_a_recipe_from_before_says_without():
    old = CHOICES.model_dump()
    del old["compiled"]
    assert type(CHOICES).model_validate(old).compiled is False


def test_a_profile_from_before_is_searched_anew(folder):
    work = Work(find("xcit_nano_12_p8"), "paddle", 16, 224, 224, "float32")
    assert knobs(work)["compiled"] == (True, False)
    profile.keep(work, Found(CHOICES, 2.0, 1.0, 1, 1.0))
    assert profile.look_up(work) == CHOICES
    path = profile.profile_file()
    told = json.loads(path.read_text())
    del told["entries"][0]["choices"]["compiled"]
    path.write_text(json.dumps(told))
    assert profile.look_up(work) is None
