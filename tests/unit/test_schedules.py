"""Learning rates against the public codes' own numbers and against values worked out by hand."""

import json
from pathlib import Path

import pytest

from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training.schedules import (
    distillation,
    distillation_in_words,
    in_words,
    learning_rate,
)

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "schedules" / "lr.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("steps", [1, 10, 1251])
@pytest.mark.parametrize("which", ["first", "last"])
def test_the_original_entry(steps: int, which: str) -> None:
    recipe = recipes.load("imagenet-passl")
    given = REFERENCE["passl_recipe"]["by_iters_per_epoch"][str(steps)]
    for epoch, expected in given[f"{which}_iteration_of_epoch"].items():
        step = int(epoch) * steps + (steps - 1 if which == "last" else 0)
        # paddle computes its cosine step by step, which leaves a few units in the last place
        assert learning_rate(recipe, step, steps) == pytest.approx(expected, rel=1e-9), epoch


def test_the_official_main_program() -> None:
    recipe = recipes.load("imagenet", ["optim.lr_per=null"])
    for epoch, expected in REFERENCE["official_main_py"]["lr_during_epoch"].items():
        for step in (0, 7, 9):
            given = learning_rate(recipe, int(epoch) * 10 + step, 10)
            assert given == pytest.approx(expected, rel=1e-12), epoch


def _recipe(*settings: str) -> recipes.Recipe:
    return recipes.parse("", "test", [f"optim.{setting}" for setting in settings])


def test_cosine_by_hand() -> None:
    recipe = _recipe(
        "epochs=6", "warmup_epochs=2", "lr=1.0", "lr_per=null", "min_lr=0.2", "warmup_lr=0.0"
    )
    rates = [learning_rate(recipe, step, 2) for step in range(12)]
    # two epochs of four steps up to 1; then (1 + cos(pi k / 8)) / 2 between 1 and 0.2
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert rates[8] == pytest.approx(0.6)  # half way
    assert rates[11] == pytest.approx(0.2 + 0.8 * 0.0380602337)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_constant_and_no_warmup() -> None:
    recipe = _recipe("epochs=3", "warmup_epochs=0", "schedule=constant", "lr=0.3", "lr_per=null")
    assert {learning_rate(recipe, step, 5) for step in range(15)} == {0.3}


def test_a_run_of_warmup_only() -> None:
    recipe = _recipe("epochs=5", "warmup_epochs=5", "lr=1.0", "lr_per=null", "warmup_lr=0.0")
    assert learning_rate(recipe, 49, 10) == pytest.approx(0.98)


def test_linear_scaling() -> None:
    assert recipes.load("imagenet").learning_rate() == pytest.approx(1e-3)
    assert recipes.load("imagenet-passl").learning_rate() == 5e-4


def test_in_words() -> None:
    text = in_words(recipes.load("imagenet"), 1251)
    assert "0.001 (0.0005 x 1024/512)" in text
    assert "one epoch late" in text


def _distilled(*settings: str) -> recipes.Recipe:
    common = ["optim.epochs=3", "optim.warmup_epochs=0", "distill.teacher=t", "distill.loss=soft"]
    return recipes.parse("", "test", [*common, *(f"distill.{setting}" for setting in settings)])


def test_without_ends_the_loss_is_the_recipes_own() -> None:
    recipe = _distilled("alpha=0.3", "tau=2.0")
    assert all(distillation(recipe, step, 3) is recipe.distill for step in range(9))
    assert distillation_in_words(recipe) == ""


@pytest.mark.parametrize(
    ("schedule", "shares"),
    # nine steps, so an eighth of the way from each to the next; (1 - cos(pi k / 8)) / 2
    [
        ("linear", [0, 1 / 8, 2 / 8, 3 / 8, 0.5, 5 / 8, 6 / 8, 7 / 8, 1]),
        (
            "cosine",
            [0, 0.03806023, 0.14644661, 0.30865828, 0.5, 0.69134172, 0.85355339, 0.96193977, 1],
        ),
    ],
)
def test_alpha_and_tau_go_from_the_first_to_the_last(schedule: str, shares: list[float]) -> None:
    recipe = _distilled(
        "alpha=0.9", "alpha_end=0.1", "tau=4.0", "tau_end=0.7", f"schedule={schedule}"
    )
    found = [distillation(recipe, step, 3) for step in range(9)]
    assert [d.alpha for d in found] == pytest.approx([0.9 - 0.8 * s for s in shares], rel=1e-7)
    assert [d.tau for d in found] == pytest.approx([4.0 - 3.3 * s for s in shares], rel=1e-7)
    assert (found[0].alpha, found[0].tau) == (0.9, 4.0)  # exact at both ends
    assert (found[-1].alpha, found[-1].tau) == (0.1, 0.7)
    kept = {d.model_copy(update={"alpha": 0.9, "tau": 4.0}) == recipe.distill for d in found}
    assert kept == {True}


def test_one_may_change_alone_and_a_run_may_have_one_step() -> None:
    recipe = _distilled("alpha=0.2", "alpha_end=1.0", "tau=3.0")
    assert [distillation(recipe, step, 1).alpha for step in range(3)] == [0.2, 0.6, 1.0]
    assert {distillation(recipe, step, 1).tau for step in range(3)} == {3.0}
    single = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"epochs": 1})})
    assert distillation(single, 0, 1).alpha == 0.2
    assert distillation_in_words(recipe) == "alpha from 0.2 to 1, linearly over all steps"


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (["distill.alpha_end=0"], r"distill\.alpha_end needs distill\.loss"),
        (
            ["distill.loss=hard", "distill.teacher=t", "distill.tau_end=2.0"],
            r"distill\.tau_end needs distill\.loss 'soft'",
        ),
    ],
)
def test_an_end_without_a_use_is_refused(settings: list[str], wrong: str) -> None:
    with pytest.raises(XciteError, match=wrong):
        recipes.parse("", "test", settings)
