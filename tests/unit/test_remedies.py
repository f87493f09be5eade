"""Every setting that a message of data, engines or training proposes is tried on a run."""

import ast
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from noise_runs import interrupt, make_both, tiny
from rich.console import Console

import xcite
from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training import changes, loop, steps
from xcite.training.run_folder import RunFolder

ENGINE = (engines.installed() or ["paddle"])[-1]
QUIET = Console(quiet=True)
PACKAGE = Path(xcite.__file__).parent
SECTIONS = "|".join(Recipe.model_fields)
KEYS = {
    f"{section}.{key}"
    for section, field in Recipe.model_fields.items()
    for key in field.annotation.model_fields  # type: ignore[union-attr]
}

# A value that a run of noise can go on with; "{}" stands for the folder of its pictures.
FREE = {
    "data.on_error": "skip",
    "data.max_pixels": "200000000",
    "data.skip_limit": "20",
    "data.worker_timeout": "600",
    "data.workers": "1",
    "data.prefetch": "1",
    "data.root": "{}",
    "data.columns": "image,label",
    "data.outside_root": "true",
    "data.train": "{}/copy",
    "data.validation": "",
    "data.classes": "{}/classes.txt",
    "run.tensorboard": "false",
    "run.engine": ENGINE,
    "run.device": "cpu",
    "run.record_views": "true",
    "run.process_timeout": "900",
}
LOUD = {
    "optim.lr": "0.001",
    "optim.clip": "0.5",
    "optim.batch": "4",
    "optim.accumulate": "1",
    "optim.ema": "",
    "run.precision": "float32",
    "run.compile": "false",
    "data.fast": "false",
    "preprocessing.mean": "[0.5, 0.5, 0.5]",
    "augment.randaugment": "rand-m5-mstd0.5-inc1",
}
# Proposed only where no run has begun, or it cannot have begun without: key -> files that do so.
BEFORE = {
    "init.reset_head": {"training/initial.py"},
    "init.freeze_patch_embed": {"training/plan.py"},
    "preprocessing.size": {"training/plan.py"},
    "init.weights": {"training/session.py", "training/changes.py"},  # of a new run, tried below
    "distill.loss": {"engines/paddle/losses.py", "engines/torch/losses.py"},
    "distill.teacher": {"training/teachers/live.py"},
    "distill.teacher_size": {"training/teachers/facts.py"},
    "distill.views": {"training/teachers/cached.py"},
}


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Every place that makes an error for people."""
    for part in ("data", "engines", "training"):
        for path in sorted((PACKAGE / part).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = getattr(getattr(node, "func", None), "id", "")
                if isinstance(node, ast.Call) and name in ("XciteError", "NotFinite"):
                    yield path.relative_to(PACKAGE).as_posix(), node


def text_of(node: ast.AST) -> str:
    """The words of a message, "7" where a value stands."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "7" for v in node.values)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return " ".join(map(text_of, ast.iter_child_nodes(node)))


def test_every_proposed_setting_is_tried_here() -> None:
    found = 0
    for place, call in raised():
        for key in re.findall(rf"\b(?:{SECTIONS})\.[a-z_]+", text_of(call)):
            found += 1
            assert key in KEYS, f"{place}:{call.lineno} proposes {key}, which no recipe has"
            if key in BEFORE:
                assert place in BEFORE[key], f"{place}:{call.lineno} proposes {key}"
            else:
                assert key in {**FREE, **LOUD}, f"{place}:{call.lineno} proposes {key}: try it here"
    assert found > 30


def test_remedies_are_options_that_parse() -> None:
    found = 0
    for place, call in raised():
        for keyword in call.keywords:
            if keyword.arg != "remedy":
                continue
            found += 1
            options = text_of(keyword.value).split("--")[1:]
            loud = False
            for option in map(str.strip, options):
                if option == "allow-changes":
                    continue
                name, _, setting = option.partition(" ")
                assert name == "set", (place, option)
                key = setting.partition("=")[0]
                assert key in {**FREE, **LOUD}, (place, option)
                loud = loud or key in LOUD
                recipes.load("digits", [setting])
            assert ("allow-changes" in options) >= loud, f"{place}: {options} would be refused"
    assert found >= 5


def test_free_and_loud_are_what_the_rules_say() -> None:
    recipe = recipes.load("imagenet")
    for values, loud in ((FREE, False), (LOUD, True)):
        for key, value in values.items():
            changed = changes.changes(recipe, recipes.load("imagenet", [f"{key}={value}"]))
            assert bool(changes.loud(changed)) == (loud and bool(changed)), key


def resume(pictures: Path, run: Path, *settings: str, **options: Any) -> loop.Outcome:
    recipe = tiny(pictures, ENGINE, "optim.epochs=30", *settings)
    return loop.train(recipe, run, resume=True, console=QUIET, **options)


class _Stop(BaseException):
    """Leaves a run at once, as a kill does."""


def stop(*_: object) -> float:
    raise _Stop


def test_a_run_goes_on_with_each_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run goes on with one proposal after the other, to its next step."""
    make_both(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, 0)
        loop.train(tiny(tmp_path, ENGINE, "optim.epochs=30"), run.path, console=QUIET)
    settings: list[str] = []
    for group in (FREE, *({key: value} for key, value in LOUD.items())):
        settings += [f"{k}={v}".replace("{}", str(tmp_path)) for k, v in group.items()]
        changed = tiny(tmp_path, ENGINE, "optim.epochs=30", *settings)
        loud = changes.loud(changes.changes(recipes.load(str(run.path)), changed))
        if loud:
            with pytest.raises(XciteError, match="|".join(map(re.escape, group))):
                resume(tmp_path, run.path, *settings)
        with monkeypatch.context() as patch:
            patch.setattr(steps, "learning_rate", stop)
            with pytest.raises(_Stop):
                resume(tmp_path, run.path, *settings, allow_changes=bool(loud))
        kept = recipes.load(str(run.path))
        assert kept == recipes.with_values(changed, "run", choices=kept.run.choices)


def test_a_new_run_begins_from_a_run(tmp_path: Path) -> None:
    make_both(tmp_path)
    loop.train(tiny(tmp_path, ENGINE, "optim.epochs=1"), tmp_path / "run", console=QUIET)
    new = tiny(tmp_path, ENGINE, "optim.epochs=1", f"init.weights={tmp_path / 'run'}")
    assert loop.train(new, tmp_path / "new", console=QUIET).finished


def test_a_remedy_comes_out_of_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(XciteError("what", remedy="--set data.on_error=skip")))
    assert (str(error), error.remedy) == ("what", "--set data.on_error=skip")
