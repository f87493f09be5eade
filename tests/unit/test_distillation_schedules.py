"""Runs whose loss of distillation changes from step to step, and what a cache gives them."""

import json
from pathlib import Path

import numpy as np
import pytest
from noise_runs import interrupt, tensors
from rich.console import Console
from test_teacher_cache import place, recipe_of, softmax, teacher_of

from xcite import recipe as recipes
from xcite.data.pipeline import TrainLoader
from xcite.engines import installed
from xcite.training import plan
from xcite.training.loop import train
from xcite.training.teachers.cached import (
    compress,
    log_probabilities,
    open_cache,
    probabilities,
)
from xcite.training.teachers.computing import compute

__all__ = ["place"]  # the fixture

QUIET = Console(quiet=True)
SCHEDULE = [
    "distill.loss=soft",
    "distill.alpha=0.9",
    "distill.alpha_end=0.4",
    "distill.tau=3.0",
    "distill.tau_end=1.0",
    "run.log_every=1",
]
STEPS = 6  # two epochs of three


def rows(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "step"]


@pytest.mark.parametrize("engine", installed())
def test_an_interrupted_run_with_a_schedule_ends_as_if_it_had_not_been(
    engine: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(place, f"run.engine={engine}", *SCHEDULE)
    train(recipe, tmp_path / "whole", console=QUIET)
    with monkeypatch.context() as patch:
        interrupt(patch, 4)  # within the second epoch
        assert not train(recipe, tmp_path / "run", console=QUIET).finished
    assert train(recipe, tmp_path / "run", console=QUIET, resume=True).finished
    whole, found = (tensors(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "run"))
    assert found == whole

    for run in ("whole", "run"):
        told = rows(tmp_path / run)
        share = np.arange(STEPS) / (STEPS - 1)
        np.testing.assert_allclose([row["alpha"] for row in told], 0.9 - 0.5 * share, rtol=1e-12)
        np.testing.assert_allclose([row["tau"] for row in told], 3.0 - 2.0 * share, rtol=1e-12)

    constant = recipe_of(
        place,
        f"run.engine={engine}",
        *(setting for setting in SCHEDULE if "_end" not in setting),
    )
    train(constant, tmp_path / "constant", console=QUIET)
    assert tensors(tmp_path / "constant" / "checkpoint.safetensors") != whole
    first = rows(tmp_path / "constant")[0]
    assert "alpha" not in first
    assert "tau" not in first
    assert first["loss"] == rows(tmp_path / "whole")[0]["loss"]  # the first step has first values


def test_the_plan_says_the_schedule(place: Path) -> None:
    recipe = recipe_of(place, *SCHEDULE, "distill.schedule=cosine")
    said = "\n".join(plan.make(recipe).lines())
    assert "alpha from 0.9 to 0.4, tau from 3 to 1, by a cosine over all steps" in said
    assert "by a cosine" not in "\n".join(plan.make(recipe_of(place)).lines())


def test_a_cache_serves_other_temperatures_than_its_own(place: Path, tmp_path: Path) -> None:
    made = ["distill.loss=soft", "distill.tau=3.0", "distill.views=1"]
    for top in (3, 1):
        settings = [*made, f"distill.top={top}"]
        recipe = recipe_of(place, *settings)
        prepared, live = teacher_of(recipe)
        compute(recipe, prepared.train, prepared.class_names, live, tmp_path / str(top))
    # the same recipe with an end of tau opens the cache that was made without
    gaps = {}
    for top in (3, 1):
        used = recipe_of(
            place, *made, f"distill.top={top}", "distill.tau_end=1.0",
            f"distill.cache={tmp_path / str(top)}",
        )  # fmt: skip
        table = open_cache(used, prepared.train, prepared.class_names)
        loader = TrainLoader(prepared.train, used)
        batch = next(loader.epoch(0))
        loader.close()
        given, kept = live.answers(batch).astype(np.float64), table.answers(batch)
        gaps[top] = {tau: abs(softmax(given / tau) - softmax(kept / tau)).max() for tau in (3, 1)}
    # With all classes stored nothing but float16's last bits is lost, three times as many at tau 1.
    assert gaps[3][3] < 1e-3
    assert gaps[3][1] < 3e-3
    assert gaps[1][1] > 10 * gaps[3][1]  # the others were spread evenly


def test_the_documented_loss_at_another_temperature() -> None:
    logits = (2.5 * np.random.default_rng(0).standard_normal((200, 1000))).astype(np.float32)

    def lost(made: float, used: float) -> float:
        recipe = recipes.parse(
            "", "test", ["distill.loss=soft", "distill.teacher=t", f"distill.tau={made}"]
        )
        kept = compress(logits, recipe, 1000)
        answers = made * log_probabilities(
            kept["top_classes"], kept["top_probabilities"], kept["rest"], 1000
        )
        p, q = probabilities(logits, used), probabilities(answers, used)
        return float((p * np.log(p / q)).sum(1).mean())

    found = [lost(1, 4), lost(4, 4), lost(4, 1), lost(1, 1)]
    assert found == pytest.approx([0.156, 0.151, 0.85, 0.62], rel=0.01)
